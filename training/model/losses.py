"""Which anchor learns which box, and RetinaNet's two losses, in float32 whatever the network computes in.

    losses = detection_loss(model(images), targets, anchors)
    (losses.cls + losses.box).backward()

Both losses are sums divided by the number of foreground anchors of the whole batch, so that an image full of boxes
weighs more than one with a single box; a batch without a box divides by one. The box loss is smooth L1 of the
deltas, or the generalised IoU of the decoded boxes (https://arxiv.org/abs/1902.09630).

An anchor that overlaps a box by half is foreground, by less than 0.4 background, and between the two ignored.
Every box keeps the anchor that overlaps it most, however little, so that none goes unlearnt. Nothing is matched to
crowd boxes, and anchors inside them are ignored.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from retinaserve.training.boxes import area, decode, encode, intersection, iou_matrix

FOREGROUND_IOU, BACKGROUND_IOU = 0.5, 0.4
CROWD_SHARE = 0.5  # of an anchor's area inside a crowd region
BACKGROUND, IGNORED = -1, -2
ALPHA, GAMMA = 0.25, 2.0  # https://arxiv.org/abs/1708.02002, table 1b
EPSILON = 1e-7
BETA = 0.11  # where smooth L1 turns from square to straight; Detectron's value for RetinaNet


class Target(NamedTuple):
    """What is to be found in one image, in the network input's pixels."""

    boxes: Tensor  # (M, 4) float32 xyxy
    classes: Tensor  # (M,) int64
    crowd: Tensor  # (M,) bool


class Losses(NamedTuple):
    """The two losses of a batch, scalars."""

    cls: Tensor
    box: Tensor


def match(anchors: Tensor, gt_boxes: Tensor, crowd: Tensor) -> Tensor:
    """Return the box of each anchor (N,), or BACKGROUND, or IGNORED.

    anchors: (N, 4); gt_boxes: (M, 4); crowd: (M,) bool.
    """
    matched = torch.full((len(anchors),), BACKGROUND, dtype=torch.int64, device=anchors.device)
    if crowd.any():
        inside = intersection(anchors[:, None], gt_boxes[crowd][None]).amax(dim=1) / area(anchors)
        matched[inside >= CROWD_SHARE] = IGNORED
    real = (~crowd).nonzero().flatten()
    if not len(real):
        return matched
    overlaps = iou_matrix(anchors, gt_boxes[real])  # (N, M)
    best, box = overlaps.max(dim=1)
    matched[(best >= BACKGROUND_IOU) & (best < FOREGROUND_IOU)] = IGNORED
    foreground = best >= FOREGROUND_IOU
    matched[foreground] = real[box[foreground]]
    # A box's best anchor is its own, unless it is another box's best too and overlaps that one more.
    most = overlaps.amax(dim=0)
    kept = torch.where((overlaps == most) & (most > 0), overlaps, -1.0)
    overlap, box = kept.max(dim=1)
    matched[overlap > 0] = real[box[overlap > 0]]
    return matched


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


def giou_loss(predicted: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the sum of 1 - GIoU of as many boxes (N, 4): 0 where they agree, near 2 where they are far apart.

    weights: (N,) of the terms, 1 if not given.
    """
    hull = torch.cat(
        (torch.minimum(predicted[:, :2], targets[:, :2]), torch.maximum(predicted[:, 2:], targets[:, 2:])), dim=1
    )
    overlap, around = intersection(predicted, targets), area(hull)
    union = area(predicted) + area(targets) - overlap
    giou = overlap / union.clamp(min=EPSILON) - (around - union) / around.clamp(min=EPSILON)
    return (1 - giou).sum() if weights is None else ((1 - giou) * weights).sum()


def detection_loss(
    heads: Sequence[tuple[Tensor, Tensor]],
    targets: Sequence[Target],
    anchors: Tensor,
    *,
    giou: bool = False,
    divisor: Callable[[Tensor], Tensor] = lambda count: count.clamp(min=1),
) -> Losses:
    """Return the losses of a batch.

    heads: the model's output; anchors: (N, 4) of all levels, each in the order of a flattened (A, h, w) map;
    divisor: makes of the batch's number of foreground anchors what both sums are divided by.
    """
    anchors_per_cell = heads[0][1].shape[1] // 4
    logits = torch.cat([rows(cls, anchors_per_cell) for cls, _ in heads], dim=1)  # (B, N, C)
    deltas = torch.cat([rows(box, anchors_per_cell) for _, box in heads], dim=1)  # (B, N, 4)
    matched = torch.stack([match(anchors, target.boxes, target.crowd) for target in targets])  # (B, N)

    foreground, valid = matched >= 0, matched != IGNORED
    gt_classes = torch.zeros_like(logits, dtype=torch.float32)
    for image, target in enumerate(targets):
        fg_idx = foreground[image].nonzero().flatten()
        gt_classes[image, fg_idx, target.classes[matched[image, fg_idx]]] = 1.0
    count = divisor(foreground.sum().float())
    cls = focal_loss(logits[valid], gt_classes[valid]) / count

    gt_boxes = torch.cat(
        [target.boxes[row[row >= 0]] for target, row in zip(targets, matched, strict=True)]
    )  # (F, 4) of all foreground anchors
    fg_anchors = torch.cat([anchors[row] for row in foreground])
    pred_deltas = deltas[foreground].float()
    if giou:
        box = giou_loss(decode(pred_deltas, fg_anchors), gt_boxes)
    else:
        box = smooth_l1(pred_deltas, encode(gt_boxes, fg_anchors))
    return Losses(cls, box / count)


def rows(maps: Tensor, anchors_per_cell: int) -> Tensor:
    """Return a level's maps (B, A*C, h, w) with a row an anchor: (B, A*h*w, C)."""
    batch, channels, height, width = maps.shape
    split = maps.reshape(batch, anchors_per_cell, channels // anchors_per_cell, height, width)
    return split.permute(0, 1, 3, 4, 2).flatten(1, 3)  # (B, A, C, h, w) -> (B, A*h*w, C)
