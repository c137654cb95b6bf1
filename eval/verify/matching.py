"""Two detectors' boxes of one image, matched, and how far all of them may be apart, by the precision.

    result = match(reference, candidate, Cuts(score_threshold=0.05, max_detections=100, nms_iou=0.5, margin=0.01))
    result.iou, result.score_difference, result.unmatched
    limits_for("int8", {"ap-loss": 0.01})["score-max"]

A box that one side lacks is no fault where a limit of the detector cut it off by a hair: its score is at the
threshold, at the last of a level's candidates or of the K places, or its overlap with a better box is at the limit
of NMS. Those are counted apart, as borderline. Limits are tight enough that a changed weight shows, loose enough
that another runtime's arithmetic passes: at least twice what bccd-cpu showed on 87 images.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from retinaserve.plugins import reference as arithmetic
from retinaserve.training.detections import Detections
from retinaserve.training.errors import Exit, UserError

MATCH_IOU = 0.5  # from which two boxes may be the same one, COCO's loosest
THIN = 1.0  # px
IOU_MARGINS = 2.0  # how much of a score's margin an overlap may be off NMS's limit; it moves with all four deltas

Side = Literal["reference", "candidate"]
Indices = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
PRECISIONS = ("fp32", "fp16", "bf16", "int8")  # from the tightest
ALIASES: Mapping[str, str] = {"f32": "fp32", "f16": "fp16"}  # as OpenVINO writes them

# name: what it limits, then the default for each of PRECISIONS
TABLE: Mapping[str, tuple[str, tuple[float, float, float, float]]] = {
    "head-max": ("largest difference of a logit or delta", (0.002, 0.1, 0.5, 4.0)),
    "head-mean": ("mean difference of the logits or deltas of a level", (0.0001, 0.005, 0.03, 0.15)),
    "head-cosine": ("cosine of a level's logits or deltas, at least", (0.99999, 0.9999, 0.9995, 0.99)),
    "unmatched": ("share of boxes without a counterpart", (0.001, 0.005, 0.02, 0.03)),
    "moved": ("share of matched boxes whose IoU is below 0.9", (0.001, 0.03, 0.08, 0.15)),
    "score-max": ("largest score difference of the matched others", (0.001, 0.01, 0.2, 0.3)),
    "score-mean": ("mean score difference of the matched others", (0.0001, 0.001, 0.006, 0.015)),
    "iou-mean": ("mean IoU of the matched others, at least", (0.9999, 0.995, 0.98, 0.96)),
    "ap-loss": ("AP lost, of 1", (0.0005, 0.001, 0.005, 0.005)),
    "margin": ("score distance from a cut within which a lone box is borderline", (0.0002, 0.01, 0.03, 0.05)),
}
AT_LEAST = frozenset({"head-cosine", "iou-mean"})


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
    sizes = enumerate((len(reference), len(candidate)))
    free = [np.setdiff1d(np.arange(size), pairs[:, column]) for column, size in sizes]
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


def precision_named(name: str) -> str:
    """Return the precision of PRECISIONS that a name means, or an empty string."""
    known = ALIASES.get(name.lower(), name.lower())
    return known if known in PRECISIONS else ""


def loosest(*precisions: str) -> str:
    """Return the least exact of some precisions; one that is unknown counts as fp32, the tightest."""
    return max((name or PRECISIONS[0] for name in precisions), key=PRECISIONS.index)


def limits_for(precision: str, overrides: Mapping[str, float] | None = None) -> dict[str, float]:
    """Return each limit by its name."""
    column = PRECISIONS.index(precision)
    return {name: values[column] for name, (_, values) in TABLE.items()} | dict(overrides or {})


def parse_overrides(words: tuple[str, ...]) -> dict[str, float]:
    """Read words of the form NAME=VALUE. Raises UserError for an unknown name or no number."""
    overrides = {}
    for word in words:
        name, _, value = word.partition("=")
        if name not in TABLE:
            hint = f"one of: {', '.join(TABLE)}"
            raise UserError(f"--limit {word}: no limit has this name", hint, code=Exit.USAGE)
        try:
            overrides[name] = float(value)
        except ValueError:
            problem = f"--limit {word}: {value!r} is no number"
            raise UserError(problem, f"as in {name}=0.01", code=Exit.USAGE) from None
    return overrides
