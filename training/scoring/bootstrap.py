"""How far AP may be chance: the same images drawn again, with replacement.

    weights = draw(len(matches.image_ids), resamples=1000, seed=0)
    interval(resampled_ap(new, weights) - resampled_ap(old, weights))     # paired: both sides see the same draw
    margin(matches)                                                        # 0.041 of AP 0.584

The percentile bootstrap over images (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13).
AP of a draw is what COCOeval gives for a file in which each image stands as often as it was drawn; the matches are
the judge's and are made once, so a draw costs sums, not matching. A test holds it to COCOeval on such files.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from retinaserve.training.scoring.judge import ClassMatches
from retinaserve.training.scoring.scores import Matches

RECALLS = np.linspace(0.0, 1.0, 101)  # COCOeval's
LATE = np.arange(101) / 100 < RECALLS  # by a rounding: exactly that share of the boxes does not reach it
CONFIDENCE = 0.95
QUICK, MOST_IMAGES = 200, 2000  # draws of `margin`, and images beyond which it would take seconds
CELLS = 2_000_000  # of one table of right detections by draws: 16 MB

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
    drawn = np.ascontiguousarray(weights.T, np.float64)  # (N, B): a row an image, added whole
    for of_class in matches.of_class:
        size = max(1, CELLS // max(1, np.count_nonzero(of_class.matched.any(axis=0))))
        for start in range(0, len(weights), size):
            part = slice(start, start + size)
            boxes = of_class.instances @ drawn[:, part]
            total[part] += np.where(boxes > 0, _class_ap(of_class, drawn[:, part], boxes), 0.0)
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


def margin(matches: Matches) -> float | None:
    """Return half the interval of AP, None where there is no AP or the set has more than MOST_IMAGES."""
    images = len(matches.image_ids)
    if not 1 < images <= MOST_IMAGES:
        return None
    found = interval(resampled_ap(matches, draw(images, resamples=QUICK, seed=0)), seed=0)
    return None if found is None else (found.high - found.low) / 2


def _class_ap(of_class: ClassMatches, drawn: Floats, boxes: Floats) -> Floats:
    """Return the AP of each draw (B,): `drawn` (N, B) has the images, `boxes` (B,) the number of labels."""
    image, total = of_class.image, np.zeros(len(boxes))
    # Wrong detections only lower precision, and a row of copies of a right one only raises it, so the right ones,
    # each the last of its copies, are all it takes.
    places = np.flatnonzero(of_class.matched.any(axis=0))
    every = _running(drawn, image, places)  # (P, B) found up to each of them
    for matched, ignored in zip(of_class.matched, of_class.ignored, strict=True):
        mine = np.flatnonzero(matched[places])
        if not len(mine):
            continue
        right = _running(drawn, image[places[mine]], np.arange(len(mine)))
        counted = every[mine]
        if ignored.any():
            left_out = np.flatnonzero(ignored)
            dropped = _running(drawn, image[left_out], np.arange(len(left_out)))
            earlier = np.searchsorted(left_out, places[mine])
            counted[earlier > 0] -= dropped[earlier[earlier > 0] - 1]
        precision = right / (counted + np.spacing(1))
        for place in range(len(mine) - 2, -1, -1):  # never lower than what follows, as COCOeval makes it
            np.maximum(precision[place], precision[place + 1], out=precision[place])
        total += _read(precision, right, boxes)
    return total / len(of_class.matched)


def _running(drawn: Floats, image: Counts, keep: Counts) -> Floats:
    """Return how many of a row of detections were drawn up to each of the places to keep (P, B)."""
    so_far, table, start = np.zeros(drawn.shape[1]), np.empty((len(keep), drawn.shape[1])), 0
    for row, place in enumerate(keep.tolist()):
        for where in image[start : place + 1].tolist():
            so_far += drawn[where]
        table[row], start = so_far, place + 1
    return table


def _read(precision: Floats, right: Floats, boxes: Floats) -> Floats:
    """Return the mean over the recalls of the precision where each is first reached, 0 where it is not."""
    draws, recalls = len(boxes), len(RECALLS)
    percent = 100 * right / np.maximum(boxes, 1)
    whole = np.floor(percent)
    reached = whole.astype(np.int16) + 1  # (P, B) recalls reached: 0, 0.01 ... percent
    exact = np.flatnonzero(whole == percent)
    reached.ravel()[exact] -= LATE[whole.ravel()[exact].astype(np.int64)]
    new = np.diff(reached, axis=0, prepend=np.int16(0)).ravel()
    first = np.flatnonzero(new > 0)  # in the order of places, then of draws
    count = new[first].astype(np.int64)
    start = first % draws * recalls + reached.ravel()[first] - count  # of each run of recalls, a row a draw
    runs = np.repeat(start - np.cumsum(count) + count, count) + np.arange(count.sum())
    read = np.zeros(draws * recalls)
    read[runs] = np.repeat(precision.ravel()[first], count)
    mean: Floats = read.reshape(draws, recalls).mean(axis=1)
    return mean
