"""The loss of detectors with one anchor a cell: cells learn the boxes that they are best at already.

    losses = aligned_loss(model(images), targets, anchors, strides)

Task-aligned assignment and its quality focal loss: https://arxiv.org/abs/2108.07755. A cell's fitness for a box
is its score for the box's class times its predicted box's IoU to the sixth power; the fittest cells inside a box
learn it, and the score they learn is that IoU, so that it ranks boxes by how well they lie. At the start, when
scores are all alike and predicted boxes are the anchors, the fittest are those whose anchors overlap the box most.
Cells inside crowd boxes learn nothing. All arithmetic is in float32.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from retinaserve.training.boxes import area, decode, intersection
from retinaserve.training.model.losses import CROWD_SHARE, EPSILON, GAMMA, Losses, Target, giou_loss, rows

SHARPNESS = 6  # the power of the IoU; the score's is 1
MOST_CELLS = 13  # that learn a box
REACH = 1.0  # a box is at least so many strides to each side of its centre: small ones have cells too


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
    each = heads[0][1].shape[1] // 4
    logits = torch.cat([rows(cls, each) for cls, _ in heads], dim=1).float()  # (B, N, C)
    deltas = torch.cat([rows(box, each) for _, box in heads], dim=1).float()  # (B, N, 4)
    boxes = decode(deltas.flatten(0, 1), anchors.repeat(len(targets), 1)).view_as(deltas)
    wanted = torch.zeros_like(logits)
    ignored = torch.zeros_like(logits[..., 0], dtype=torch.bool)
    chosen, gt_boxes, weights = [], [], []
    with torch.no_grad():
        for image, target in enumerate(targets):
            if target.crowd.any():
                inside = intersection(anchors[:, None], target.boxes[target.crowd][None]).amax(dim=1)
                ignored[image] = inside / area(anchors) >= CROWD_SHARE
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
    overlap = intersection(gt_boxes[:, None], boxes[None])  # (M, N)
    iou = overlap / (area(gt_boxes)[:, None] + area(boxes)[None] - overlap).clamp(min=EPSILON)
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
