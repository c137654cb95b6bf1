"""Which anchor learns which box, and what it costs, in float32 whatever the network computes in.

    losses = detection_loss(model(images), targets, anchors)
    losses = aligned_loss(model(images), targets, anchors, strides)     # of one anchor a cell
    (losses.cls + losses.box).backward()

Boxes are xyxy pixels, half-open: a box's width is x2 - x1. The served graph does the same arithmetic. Both losses
of RetinaNet are sums divided by the number of foreground anchors of the whole batch, so that an image full of
boxes weighs more than one with a single box; a batch without a box divides by one. The box loss is smooth L1 of
the deltas, or the generalised IoU of the decoded boxes (https://arxiv.org/abs/1902.09630).

An anchor that overlaps a box by half is foreground, by less than 0.4 background, and between the two ignored.
Every box keeps the anchor that overlaps it most, however little, so that none goes unlearnt. Nothing is matched to
crowd boxes, and anchors inside them are ignored.

The aligned loss lets cells learn the boxes that they are best at already: task-aligned assignment and its quality
focal loss, https://arxiv.org/abs/2108.07755. A cell's fitness for a box is its score for the box's class times its
predicted box's IoU to the sixth power; the fittest cells inside a box learn it, and the score they learn is that
IoU, so that it ranks boxes by how well they lie. At the start, when scores are all alike and predicted boxes are
the anchors, the fittest are those whose anchors overlap the box most.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from retinaserve.training.spec import DELTA_CLAMP

FOREGROUND_IOU, BACKGROUND_IOU = 0.5, 0.4
CROWD_SHARE = 0.5  # of an anchor's area inside a crowd region
BACKGROUND, IGNORED = -1, -2
ALPHA, GAMMA = 0.25, 2.0  # https://arxiv.org/abs/1708.02002, table 1b
EPSILON = 1e-7
BETA = 0.11  # where smooth L1 turns from square to straight; Detectron's value for RetinaNet
SHARPNESS = 6  # the power of the IoU; the score's is 1
MOST_CELLS = 13  # that learn a box
REACH = 1.0  # a box is at least so many strides to each side of its centre: small ones have cells too


def area(boxes: Tensor) -> Tensor:
    """Return the areas (...) of boxes (..., 4)."""
    return (boxes[..., 2:] - boxes[..., :2]).prod(dim=-1)


def intersection(boxes: Tensor, others: Tensor) -> Tensor:
    """Return the areas that boxes share; (..., 4) and (..., 4) are broadcast."""
    low = torch.maximum(boxes[..., :2], others[..., :2])
    high = torch.minimum(boxes[..., 2:], others[..., 2:])
    return (high - low).clamp(min=0).prod(dim=-1)


def iou_matrix(boxes: Tensor, others: Tensor) -> Tensor:
    """Return the IoU (N, M) of boxes (N, 4) with others (M, 4), in 0..1; boxes without an area overlap nothing."""
    shared = intersection(boxes[:, None], others[None])
    union = area(boxes)[:, None] + area(others)[None] - shared
    return torch.where(union > 0, shared / union, 0.0)


def encode(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Return dx, dy, dw, dh (N, 4) of boxes with respect to as many anchors: Faster R-CNN's coding, unscaled."""
    centres, sizes = _centres(boxes)
    anchor_centres, anchor_sizes = _centres(anchors)
    return torch.cat(((centres - anchor_centres) / anchor_sizes, (sizes / anchor_sizes).log()), dim=1)


def decode(deltas: Tensor, anchors: Tensor) -> Tensor:
    """Return the boxes (N, 4) of deltas; dw and dh are clamped from above, so that no box explodes."""
    anchor_centres, anchor_sizes = _centres(anchors)
    centres = deltas[:, :2] * anchor_sizes + anchor_centres
    halves = deltas[:, 2:].clamp(max=DELTA_CLAMP).exp() * anchor_sizes / 2
    return torch.cat((centres - halves, centres + halves), dim=1)


def _centres(boxes: Tensor) -> tuple[Tensor, Tensor]:
    return (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]


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
        matched[_inside(anchors, gt_boxes[crowd])] = IGNORED
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


def _inside(anchors: Tensor, crowds: Tensor) -> Tensor:
    """Return which anchors (N,) lie in one of the crowd regions (M, 4)."""
    return intersection(anchors[:, None], crowds[None]).amax(dim=1) / area(anchors) >= CROWD_SHARE


def focal_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the sum of the sigmoid focal loss; `targets` are 0 or 1, of the logits' shape."""
    logits = logits.float()
    entropy = functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    wrong = (logits.sigmoid() - targets).abs()  # 1 - p_t
    weight = ALPHA * targets + (1 - ALPHA) * (1 - targets)
    return (weight * wrong**GAMMA * entropy).sum()


def smooth_l1(predicted: Tensor, targets: Tensor) -> Tensor:
    """Return the sum of smooth L1: d^2 / (2 BETA) up to a distance of BETA, d - BETA / 2 beyond."""
    return functional.smooth_l1_loss(predicted.float(), targets, beta=BETA, reduction="sum")


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
    logits, deltas = _rows(heads)
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


def _rows(heads: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return logits (B, N, C) and deltas (B, N, 4) of all levels' maps (B, A*C, h, w), with a row an anchor."""
    anchors = heads[0][1].shape[1] // 4
    # (B, A*C, h, w) -> (B, A, C, h, w) -> (B, A, h, w, C) -> (B, A*h*w, C)
    logits, deltas = (
        torch.cat([maps.unflatten(1, (anchors, -1)).permute(0, 1, 3, 4, 2).flatten(1, 3) for maps in side], dim=1)
        for side in zip(*heads, strict=True)
    )
    return logits, deltas


def aligned_loss(
    heads: Sequence[tuple[Tensor, Tensor]],
    targets: Sequence[Target],
    anchors: Tensor,
    strides: Tensor,
    *,
    divisor: Callable[[Tensor], Tensor] = lambda count: count.clamp(min=1),
) -> Losses:
    """Return the losses of a batch, each divided by the sum of the scores to be learnt.

    heads: the model's output; anchors: (N, 4) of all levels, each in the order of a flattened (A, h, w) map;
    strides: (N,) of the anchors' levels; divisor: makes of the batch's sum what is divided by.
    """
    logits, deltas = (values.float() for values in _rows(heads))
    boxes = decode(deltas.flatten(0, 1), anchors.repeat(len(targets), 1)).view_as(deltas)
    wanted = torch.zeros_like(logits)
    ignored = torch.zeros_like(logits[..., 0], dtype=torch.bool)
    chosen, gt_boxes, weights = [], [], []
    with torch.no_grad():
        for image, target in enumerate(targets):
            if target.crowd.any():
                ignored[image] = _inside(anchors, target.boxes[target.crowd])
            real, classes = target.boxes[~target.crowd], target.classes[~target.crowd]
            cells, box, quality = assign(logits[image].sigmoid(), boxes[image], anchors, strides, real, classes)
            wanted[image, cells, classes[box]] = quality
            ignored[image, cells] = False
            chosen.append(image * len(anchors) + cells)
            gt_boxes.append(real[box])
            weights.append(quality)
    weight = torch.cat(weights)
    total = divisor(weight.sum())
    scores = logits.sigmoid()
    entropy = functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    focal = (scores - wanted).abs() ** GAMMA * entropy
    cls = focal.masked_fill(ignored[..., None], 0.0).sum() / total
    box = giou_loss(boxes.flatten(0, 1)[torch.cat(chosen)], torch.cat(gt_boxes), weight) / total
    return Losses(cls, box)


def assign(
    scores: Tensor, boxes: Tensor, anchors: Tensor, strides: Tensor, gt_boxes: Tensor, gt_classes: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return which cells learn (F,), the box that each learns (F,), and the score that it learns (F,).

    scores: (N, C) of 0 to 1; boxes: (N, 4) predicted; anchors: (N, 4); strides: (N,); gt_boxes: (M, 4);
    gt_classes: (M,).
    """
    if not len(gt_boxes):
        nothing = torch.zeros(0, dtype=torch.int64, device=boxes.device)
        return nothing, nothing, scores.new_zeros(0)
    iou = iou_matrix(gt_boxes, boxes)  # (M, N)
    fitness = scores[:, gt_classes].T * iou**SHARPNESS
    centres, middles = (anchors[:, :2] + anchors[:, 2:]) / 2, (gt_boxes[:, :2] + gt_boxes[:, 2:]) / 2
    half = torch.maximum((gt_boxes[:, 2:] - gt_boxes[:, :2])[:, None] / 2, REACH * strides[None, :, None])
    inside = ((centres[None] - middles[:, None]).abs() < half).all(dim=2)  # (M, N)
    fitness = torch.where(inside, fitness + EPSILON * iou, 0.0)
    best, cells = fitness.topk(min(MOST_CELLS, fitness.shape[1]), dim=1)
    taken = torch.zeros_like(inside).scatter_(1, cells, best > 0)
    # A cell that several boxes chose learns the one that it overlaps most.
    most, box = torch.where(taken, iou, -1.0).max(dim=0)
    found = (most >= 0).nonzero().flatten()
    box = box[found]
    # Of the cells that a box is left with, the fittest learns the highest IoU.
    own = torch.zeros_like(inside).index_put_((box, found), torch.ones_like(found, dtype=torch.bool))
    fittest = (fitness * own).amax(dim=1).clamp(min=1e-12)
    quality = fitness[box, found] / fittest[box] * (iou * own).amax(dim=1)[box]
    return found, box, quality
