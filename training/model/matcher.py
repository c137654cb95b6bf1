"""Which anchor learns which box: RetinaNet's assignment by overlap.

    matches = match(anchors, boxes, crowd)     # (N,) index of a box, BACKGROUND or IGNORED

An anchor that overlaps a box by half is foreground, by less than 0.4 background, and between the two it teaches
nothing. Every box keeps the anchor that overlaps it most, however little, so that none goes unlearnt. Crowd
boxes are regions to keep silent about: nothing is matched to them, and no anchor inside them is background.
"""

import torch
from torch import Tensor

from retinaserve.training.boxes import area, intersection, iou

FOREGROUND_IOU, BACKGROUND_IOU = 0.5, 0.4
CROWD_SHARE = 0.5  # of an anchor's area inside a crowd region
BACKGROUND, IGNORED = -1, -2


def match(anchors: Tensor, boxes: Tensor, crowd: Tensor) -> Tensor:
    """Return the box of each anchor (N,), or BACKGROUND, or IGNORED.

    `anchors`: (N, 4); `boxes`: (M, 4); `crowd`: (M,) bool.
    """
    matches = torch.full((len(anchors),), BACKGROUND, dtype=torch.int64, device=anchors.device)
    if crowd.any():
        inside = intersection(anchors, boxes[crowd]).amax(dim=1) / area(anchors)
        matches[inside >= CROWD_SHARE] = IGNORED
    real = (~crowd).nonzero().flatten()
    if not len(real):
        return matches
    overlaps = iou(anchors, boxes[real])
    best, owner = overlaps.max(dim=1)
    matches[(best >= BACKGROUND_IOU) & (best < FOREGROUND_IOU)] = IGNORED
    foreground = best >= FOREGROUND_IOU
    matches[foreground] = real[owner[foreground]]
    # A box's best anchor is its own, unless it is another box's best too and overlaps that one more.
    most = overlaps.amax(dim=0)
    kept = torch.where((overlaps == most) & (most > 0), overlaps, -1.0)
    overlap, owner = kept.max(dim=1)
    matches[overlap > 0] = real[owner[overlap > 0]]
    return matches
