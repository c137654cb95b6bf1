"""RetinaNet's two losses, in float32 whatever the network computes in.

    losses = detection_loss(model(images), targets, anchors)
    (losses.cls + losses.box).backward()

Both are sums divided by the number of foreground anchors of the whole batch, so that a picture full of boxes
weighs more than one with a single box; a batch without a box divides by one. The box loss is smooth L1 of the
deltas, or the generalised IoU of the decoded boxes (https://arxiv.org/abs/1902.09630).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from retinaserve.training.boxes import decode, encode
from retinaserve.training.model.matcher import IGNORED, match

ALPHA, GAMMA = 0.25, 2.0  # https://arxiv.org/abs/1708.02002, table 1b
EPSILON = 1e-7
BETA = 0.11  # where smooth L1 turns from square to straight; Detectron's value for RetinaNet


class Target(NamedTuple):
    """What is to be found in one picture, in the network input's pixels."""

    boxes: Tensor  # (M, 4) float32 xyxy
    classes: Tensor  # (M,) int64
    crowd: Tensor  # (M,) bool


class Losses(NamedTuple):
    """The two losses of a batch, scalars."""

    cls: Tensor
    box: Tensor


def focal_loss(logits: Tensor, targets: Tensor, *, alpha: float = ALPHA, gamma: float = GAMMA) -> Tensor:
    """Return the sum of the sigmoid focal loss; `targets` are 0 or 1, of the logits' shape."""
    logits = logits.float()
    entropy = functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    wrong = (logits.sigmoid() - targets).abs()  # 1 - p_t
    weight = alpha * targets + (1 - alpha) * (1 - targets)
    return (weight * wrong**gamma * entropy).sum()


def smooth_l1(predicted: Tensor, targets: Tensor, *, beta: float = BETA) -> Tensor:
    """Return the sum of smooth L1: d^2 / (2 beta) up to a distance of beta, d - beta / 2 beyond."""
    return functional.smooth_l1_loss(predicted.float(), targets, beta=beta, reduction="sum")


def giou_loss(predicted: Tensor, targets: Tensor) -> Tensor:
    """Return the sum of 1 - GIoU of as many boxes (N, 4): 0 where they agree, near 2 where they are far apart."""
    shared = (
        torch.minimum(predicted[:, 2:], targets[:, 2:]) - torch.maximum(predicted[:, :2], targets[:, :2])
    ).clamp(min=0)
    hull = torch.maximum(predicted[:, 2:], targets[:, 2:]) - torch.minimum(predicted[:, :2], targets[:, :2])
    overlap, around = shared.prod(dim=1), hull.prod(dim=1)
    union = (
        (predicted[:, 2:] - predicted[:, :2]).prod(dim=1) + (targets[:, 2:] - targets[:, :2]).prod(dim=1) - overlap
    )
    giou = overlap / union.clamp(min=EPSILON) - (around - union) / around.clamp(min=EPSILON)
    return (1 - giou).sum()


def detection_loss(
    heads: Sequence[tuple[Tensor, Tensor]],
    targets: Sequence[Target],
    anchors: Tensor,
    *,
    giou: bool = False,
    divisor: Callable[[Tensor], Tensor] = lambda count: count.clamp(min=1),
) -> Losses:
    """Return the losses of a batch.

    `heads`: the model's output; `anchors`: (N, 4) of all levels, each in the order of a flattened (A, h, w) map;
    `divisor` makes of the batch's number of foreground anchors what both sums are divided by.
    """
    anchors_per_cell = heads[0][1].shape[1] // 4
    logits = torch.cat([_rows(cls, anchors_per_cell) for cls, _ in heads], dim=1)  # (B, N, C)
    deltas = torch.cat([_rows(box, anchors_per_cell) for _, box in heads], dim=1)  # (B, N, 4)
    matches = torch.stack([match(anchors, target.boxes, target.crowd) for target in targets])

    wanted = torch.zeros_like(logits, dtype=torch.float32)
    boxes, seats = [], []
    for row, (target, matched) in enumerate(zip(targets, matches, strict=True)):
        places = (matched >= 0).nonzero().flatten()
        owners = matched[places]
        wanted[row, places, target.classes[owners]] = 1.0
        boxes.append(target.boxes[owners])
        seats.append(anchors[places])
    foreground = matches >= 0
    count = divisor(foreground.sum().float())
    taught = matches != IGNORED
    cls = focal_loss(logits[taught], wanted[taught]) / count
    theirs, places, ours = torch.cat(boxes), torch.cat(seats), deltas[foreground].float()
    box = giou_loss(decode(ours, places), theirs) if giou else smooth_l1(ours, encode(theirs, places))
    return Losses(cls, box / count)


def _rows(maps: Tensor, anchors_per_cell: int) -> Tensor:
    batch, channels, height, width = maps.shape
    split = maps.reshape(batch, anchors_per_cell, channels // anchors_per_cell, height, width)
    return split.permute(0, 1, 3, 4, 2).flatten(1, 3)  # (B, A, C, h, w) -> (B, A*h*w, C)
