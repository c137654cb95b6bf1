"""Arithmetic of boxes in torch: areas, overlaps, and the coding of a box as deltas of an anchor.

    deltas = encode(boxes, anchors)
    decode(deltas, anchors)     # the boxes again

Boxes are xyxy pixels, half-open: a box's width is x2 - x1. The served graph does the same arithmetic.
"""

import torch
from torch import Tensor

from retinaserve.training.spec import DELTA_CLAMP


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
