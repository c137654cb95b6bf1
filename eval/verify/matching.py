"""Two detectors' boxes of one image, matched: what both found, what one found alone, and what a cut explains.

    result = match(reference, candidate, Cuts(score_threshold=0.05, max_detections=100, nms_iou=0.5, margin=0.01))
    result.iou, result.score_difference, result.unmatched

A box that one side lacks is no fault where a limit of the detector cut it off by a hair: its score is at the
threshold, at the last of a level's candidates or of the K places, or its overlap with a better box is at the limit
of NMS. Those are counted apart, as borderline.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from retinaserve.plugins import reference as arithmetic
from retinaserve.training.detections import Detections

MATCH_IOU = 0.5  # from which two boxes may be the same one, COCO's loosest
THIN = 1.0  # px
IOU_MARGINS = 2.0  # how much of a score's margin an overlap may be off NMS's limit; it moves with all four deltas

Side = Literal["reference", "candidate"]
Indices = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Cuts:
    """Where a detector cuts, and how near in score a box has to be for the cut to explain it."""

    score_threshold: float
    max_detections: int
    nms_iou: float
    margin: float
    topk: tuple[float, ...] = ()  # scores at which a level's candidates were cut, of those that had too many


@dataclass(frozen=True)
class Unmatched:
    """A box without a counterpart; `other_class` is the class the other side gave the same place, or -1."""

    side: Side
    index: int  # in that side's detections
    score: float
    other_class: int = -1


@dataclass(frozen=True, eq=False)
class Matching:
    """What came of one image; `pairs` (n, 2) are the matched indices of reference and candidate."""

    pairs: Indices
    iou: Floats  # (n,)
    score_difference: Floats  # (n,) candidate less reference
    unmatched: tuple[Unmatched, ...]
    borderline: int


def match(reference: Detections, candidate: Detections, cuts: Cuts) -> Matching:
    """Match the boxes of a class one to one, the highest IoU first."""
    overlap = iou_matrix(reference.boxes, candidate.boxes)
    pairs = pair(overlap, reference.classes[:, None] == candidate.classes[None, :])
    free = [
        np.setdiff1d(np.arange(len(found)), pairs[:, column])
        for column, found in enumerate((reference, candidate))
    ]
    unmatched: list[Unmatched] = []
    borderline = 0
    sides: tuple[tuple[Side, Detections, Detections, Indices, Indices, Floats], ...] = (
        ("reference", reference, candidate, free[0], free[1], overlap),
        ("candidate", candidate, reference, free[1], free[0], overlap.T),
    )
    for side, found, other, mine, others, iou in sides:
        for index in mine:
            if _at_a_cut(found, other, int(index), cuts):
                borderline += 1
                continue
            rivals = iou[index, others]
            same_place = len(others) and rivals.max() >= MATCH_IOU
            other_class = int(other.classes[others[rivals.argmax()]]) if same_place else -1
            unmatched.append(Unmatched(side, int(index), float(found.scores[index]), other_class))
    return Matching(
        pairs=pairs,
        iou=overlap[pairs[:, 0], pairs[:, 1]],
        score_difference=candidate.scores[pairs[:, 1]].astype(np.float64) - reference.scores[pairs[:, 0]],
        unmatched=tuple(unmatched),
        borderline=borderline,
    )


def iou_matrix(one: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> Floats:
    """Return the IoU (n, m) of boxes (n, 4) and (m, 4).

    A box thinner than a pixel is compared half a pixel larger on all sides, and so is its partner: boxes that were
    clipped to a line at the image's edge are the same in all but the last digit, which is all their area.
    """
    a, b = one.astype(np.float64), other.astype(np.float64)
    thin = np.minimum.outer((a[:, 2:] - a[:, :2]).min(axis=1), (b[:, 2:] - b[:, :2]).min(axis=1)) < THIN
    grown = np.array([-0.5, -0.5, 0.5, 0.5]) * THIN
    return np.where(thin, arithmetic.iou_matrix(a + grown, b + grown), arithmetic.iou_matrix(a, b))


def pair(overlap: Floats, same_class: npt.NDArray[np.bool_], least: float = MATCH_IOU) -> Indices:
    """Return pairs (n, 2) of rows and columns of an overlap (N, M), one to one, the highest first."""
    # not `overlap < least`: a box of NaN pairs with nothing
    rows, columns = np.nonzero(same_class & (overlap >= least))
    pairs: list[tuple[int, int]] = []
    used: tuple[set[int], set[int]] = (set(), set())
    for place in np.argsort(-overlap[rows, columns], kind="stable"):
        row, column = int(rows[place]), int(columns[place])
        if row not in used[0] and column not in used[1]:
            used[0].add(row)
            used[1].add(column)
            pairs.append((row, column))
    return np.array(sorted(pairs), np.int64).reshape(-1, 2)


def _at_a_cut(found: Detections, other: Detections, index: int, cuts: Cuts) -> bool:
    score = float(found.scores[index])
    if score <= cuts.score_threshold + cuts.margin:
        return True
    if any(abs(score - cut) <= cuts.margin for cut in cuts.topk):
        return True
    if len(other) >= cuts.max_detections and score <= float(other.scores.min()) + cuts.margin:
        return True
    better = (found.classes == found.classes[index]) & (found.scores >= score)
    better[index] = False
    overlaps = iou_matrix(found.boxes[[index]], found.boxes[better])
    # on both sides of the limit: far above it, NMS ought to have taken the box, and that is a fault
    return bool((np.abs(overlaps - cuts.nms_iou) <= IOU_MARGINS * cuts.margin).any())
