"""Two detectors' boxes of one picture, paired: what both found, what one found alone, and what lay on the edge.

    pairs = match(reference, candidate, Edges(score_threshold=0.05, max_detections=100, nms_iou=0.5, margin=0.01))
    pairs.iou, pairs.score_difference, pairs.odd

A box that one side lacks is no fault where a limit of the detector cut it off by a hair: its score is at the
threshold, at the last of a level's candidates or of the K places, or its overlap with a better box is at the limit
of NMS. Those are counted apart, as borderline. Nothing here knows a picture or a file.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from retinaserve.training.detections import Detections

SAME_BOX = 0.5  # IoU from which two boxes may be the same one, COCO's loosest
SLIVER = 1.0  # px
IOU_MARGINS = 2.0  # how much of a score's margin an overlap may be off NMS's limit; it moves with all four deltas

Side = Literal["reference", "candidate"]


@dataclass(frozen=True)
class Edges:
    """Where a detector cuts, and how near in score a box has to be for the cut to explain it."""

    score_threshold: float
    max_detections: int
    nms_iou: float
    margin: float
    level_cuts: tuple[float, ...] = ()  # scores at which a level's candidates were cut, of those that had too many


@dataclass(frozen=True)
class Odd:
    """A box without a counterpart; `other_class` is the class the other side gave the same place, or -1."""

    side: Side
    index: int  # in that side's detections
    score: float
    other_class: int = -1


@dataclass(frozen=True, eq=False)
class Pairs:
    """What came of one picture; `rows` (n, 2) are the matched indices of reference and candidate."""

    rows: npt.NDArray[np.int64]
    iou: npt.NDArray[np.float64]  # (n,)
    score_difference: npt.NDArray[np.float64]  # (n,) candidate less reference
    odd: tuple[Odd, ...]
    borderline: int


def match(reference: Detections, candidate: Detections, edges: Edges) -> Pairs:
    """Pair the boxes of a class one to one, the highest IoU first."""
    overlap = iou_matrix(reference.boxes, candidate.boxes)
    rows = _pair(overlap, reference.classes[:, None] == candidate.classes[None, :])
    free_reference = np.setdiff1d(np.arange(len(reference)), rows[:, 0])
    free_candidate = np.setdiff1d(np.arange(len(candidate)), rows[:, 1])
    odd: list[Odd] = []
    borderline = 0
    others = {
        "reference": _nearest(overlap, free_reference, free_candidate),
        "candidate": _nearest(overlap.T, free_candidate, free_reference),
    }
    sides: tuple[tuple[Side, Detections, Detections, npt.NDArray[np.int64]], ...] = (
        ("reference", reference, candidate, free_reference),
        ("candidate", candidate, reference, free_candidate),
    )
    for side, mine, other, free in sides:
        for index in free:
            if _on_the_edge(mine, other, int(index), edges):
                borderline += 1
                continue
            twin = others[side].get(int(index), -1)
            other_class = int(other.classes[twin]) if twin >= 0 else -1
            odd.append(Odd(side, int(index), float(mine.scores[index]), other_class))
    return Pairs(
        rows=rows,
        iou=overlap[rows[:, 0], rows[:, 1]],
        score_difference=candidate.scores[rows[:, 1]].astype(np.float64) - reference.scores[rows[:, 0]],
        odd=tuple(odd),
        borderline=borderline,
    )


def iou_matrix(one: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Return the IoU (n, m) of boxes (n, 4) and (m, 4).

    A sliver, thinner than a pixel, is compared half a pixel larger on all sides, and so is its partner: boxes that
    were clipped to a line at the picture's edge are the same in all but the last digit, which is all their area.
    """
    a, b = one.astype(np.float64)[:, None], other.astype(np.float64)[None, :]
    thin = np.minimum((a[..., 2:] - a[..., :2]).min(-1), (b[..., 2:] - b[..., :2]).min(-1)) < SLIVER
    grown = np.array([-0.5, -0.5, 0.5, 0.5]) * SLIVER
    return np.where(thin, _iou(a + grown, b + grown), _iou(a, b))


def _iou(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    overlap = sides.clip(min=0).prod(-1)
    union = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - overlap
    iou: npt.NDArray[np.float64] = np.divide(overlap, union, out=np.zeros_like(overlap), where=union > 0)
    return iou


def _pair(overlap: npt.NDArray[np.float64], same_class: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    # not `overlap < SAME_BOX`: a box of NaN pairs with nothing
    rows, columns = np.nonzero(same_class & (overlap >= SAME_BOX))
    taken: tuple[set[int], set[int]] = (set(), set())
    pairs = []
    for place in np.argsort(-overlap[rows, columns], kind="stable"):
        row, column = int(rows[place]), int(columns[place])
        if row not in taken[0] and column not in taken[1]:
            taken[0].add(row)
            taken[1].add(column)
            pairs.append((row, column))
    return np.array(sorted(pairs), np.int64).reshape(-1, 2)


def _nearest(
    overlap: npt.NDArray[np.float64], mine: npt.NDArray[np.int64], others: npt.NDArray[np.int64]
) -> dict[int, int]:
    """Return, for each free box, the free box of the other side at the same place."""
    if not len(others):
        return {}
    free = overlap[np.ix_(mine, others)]
    best = free.argmax(1)
    return {
        int(index): int(others[best[row]]) for row, index in enumerate(mine) if free[row, best[row]] >= SAME_BOX
    }


def _on_the_edge(mine: Detections, other: Detections, index: int, edges: Edges) -> bool:
    score = float(mine.scores[index])
    if score <= edges.score_threshold + edges.margin:
        return True
    if any(abs(score - cut) <= edges.margin for cut in edges.level_cuts):
        return True
    if len(other) >= edges.max_detections and score <= float(other.scores.min()) + edges.margin:
        return True
    better = (mine.classes == mine.classes[index]) & (mine.scores >= score)
    better[index] = False
    overlaps = iou_matrix(mine.boxes[[index]], mine.boxes[better])
    # on both sides of the limit: far above it, NMS ought to have taken the box, and that is a fault
    return bool((np.abs(overlaps - edges.nms_iou) <= IOU_MARGINS * edges.margin).any())
