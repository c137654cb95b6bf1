"""How far AP may be chance: the same images drawn again, with replacement.

    weights = draw(len(matches.image_ids), resamples=1000, seed=0)
    interval(resampled_ap(new, weights) - resampled_ap(old, weights))     # paired: both sides see the same draw

The percentile bootstrap over images (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13).
AP of a draw is what COCOeval gives for a file in which each image stands as often as it was drawn; the matches are
pycocotools' and are made once, so a draw costs sums, not matching. A test holds it to COCOeval on such files. The
AP that is reported is always pycocotools' own.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from retinaserve.training.judge import ClassMatches
from retinaserve.training.scores import Matches

RECALLS = np.linspace(0.0, 1.0, 101)  # COCOeval's
CONFIDENCE = 0.95
CELLS = 4_000_000  # of one table of detections by draws: 32 MB

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Interval:
    """The middle 95 % of what the draws gave."""

    low: float
    high: float
    resamples: int
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """Return everything for JSON."""
        return {**asdict(self), "confidence": CONFIDENCE}


def draw(images: int, *, resamples: int, seed: int) -> Counts:
    """Return how often each image is drawn in each resample: (B, N), every row sums to N."""
    return np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), resamples)


def resampled_ap(matches: Matches, weights: Counts) -> Floats:
    """Return AP (IoU 0.50:0.95) of each draw (B, N), NaN for a draw without a labelled box."""
    total, known = np.zeros(len(weights)), np.zeros(len(weights), np.int64)
    for of_class in matches.of_class:
        size = max(1, CELLS // max(1, len(of_class.score), 101))
        for start in range(0, len(weights), size):
            part = slice(start, start + size)
            boxes = weights[part] @ of_class.instances
            total[part] += np.where(boxes > 0, _class_ap(of_class, weights[part], boxes), 0.0)
            known[part] += boxes > 0
    with np.errstate(invalid="ignore"):
        return total / known


def interval(values: Floats, *, seed: int) -> Interval | None:
    """Return the interval of what the draws gave, None when none of them gave a number."""
    known = values[np.isfinite(values)]
    if not len(known):
        return None
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(known, [tail, 1 - tail])
    return Interval(float(low), float(high), len(known), seed)


def _class_ap(of_class: ClassMatches, weights: Counts, boxes: Counts) -> Floats:
    """Return one class's AP of each draw (B,), given how many labelled boxes each draw has (B,)."""
    drawn = weights[:, of_class.image]  # (B, D)
    needed = _needed(boxes)  # (B, 101)
    counted = np.cumsum(drawn, axis=1) if not of_class.ignored.any() else None
    total = np.zeros(len(weights))
    for matched, ignored in zip(of_class.matched, of_class.ignored, strict=True):
        places = np.flatnonzero(matched)
        if not len(places):
            continue
        right = np.cumsum(drawn[:, places], axis=1)  # (B, P) found up to each right detection
        every = counted if counted is not None else np.cumsum(drawn * ~ignored, axis=1)
        precision = right / (every[:, places] + np.spacing(1))
        # Never lower than what follows, as COCOeval makes it. Wrong detections only lower precision, and a row of
        # copies of a right one only raises it, so the right ones, each the last of its copies, are all it takes.
        precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        total += _read(precision, right, needed)
    return total / len(of_class.matched)


def _needed(boxes: Counts) -> Counts:
    """Return how many boxes must be found for each recall (B, 101), exactly as COCOeval's float comparison."""
    count = np.floor(RECALLS * boxes[:, None]).astype(np.int64)
    with np.errstate(invalid="ignore", divide="ignore"):
        return count + (count / boxes[:, None] < RECALLS)


def _read(precision: Floats, right: Counts, needed: Counts) -> Floats:
    """Return the mean over the recalls of the precision where each is first reached, 0 where it is not."""
    rows, width = precision.shape
    # One sorted list instead of a row each: integers, so that shifting them loses nothing.
    shift = np.arange(rows)[:, None] * (int(max(right.max(initial=0), needed.max(initial=0))) + 1)
    first = np.searchsorted((right + shift).ravel(), (needed + shift).ravel(), side="left").reshape(needed.shape)
    first -= np.arange(rows)[:, None] * width
    padded = np.hstack([precision, np.zeros((rows, 1))])
    mean: Floats = np.take_along_axis(padded, np.minimum(first, width), axis=1).mean(axis=1)
    return mean
