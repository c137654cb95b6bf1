"""What the scores say: precision, recall, F1, errors and confusion at each threshold, and the calibration.

    table = ThresholdTable.of(classified)
    best = table.best()                        # the threshold of the highest F1, all classes pooled
    table.confusion(best)                      # (K + 1, K + 1), the last row and column are the background
    calibrate(classified)["expected_calibration_error"]       # 0 is perfect

The thresholds are 0.00, 0.01 ... 1.00; a detection counts from its score on (score >= threshold). Right and wrong
do not depend on the threshold, because pycocotools hands boxes out from the best score down. What a missed box is
called does: a box that is not found is `confused` with the class of the best detection that has IoU 0.5 with it
and another class; the other wrong detections are confusions with the background. A box is a `missed` error, as
TIDE has it, when no localisation or class error explains it. The report's page repeats this arithmetic on
`to_dict()`.
"""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from retinaserve.eval.report.error_types import CORRECT, KINDS, NEVER, ClassifiedBoxes

GRID = np.arange(101) / 100
STEPS = len(GRID)
BINS = 10  # of the calibration

Counts = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ThresholdTable:
    """Counts by class and by the place of the score in GRID; -1 is the place of what does not exist."""

    detections: Counts  # (K, 6 kinds, 101)
    instances: Counts  # (K,)
    # (G,) of each labelled box
    category: Counts
    found: Counts
    claim: Counts  # the best detection that calls it by another name
    claim_category: Counts
    covered: Counts

    @classmethod
    def of(cls, classified: ClassifiedBoxes) -> Self:
        """Count what became of a set's boxes."""
        classes = len(classified.class_names)
        known = classified.kind >= 0
        counts = np.zeros((classes, len(KINDS), STEPS), np.int64)
        np.add.at(counts, (classified.category[known], classified.kind[known], steps(classified.score[known])), 1)
        claimed = classified.claimant >= 0
        claim_category = np.full(len(classified.found), -1, np.int64)
        claim_category[claimed] = classified.category[classified.claimant[claimed]]
        return cls(
            detections=counts,
            instances=np.bincount(classified.truth_category, minlength=classes),
            category=classified.truth_category,
            found=steps(classified.found),
            claim=steps(classified.claim),
            claim_category=claim_category,
            covered=steps(classified.covered),
        )

    def curves(self) -> tuple[Floats, Floats, Floats]:
        """Return precision, recall and F1 (K + 1, 101), the last row all classes pooled; NaN where undefined."""
        above = self.detections[:, :, ::-1].cumsum(axis=2)[:, :, ::-1]  # (K, 6, 101) at or above each threshold
        right, every = above[:, CORRECT], above.sum(axis=1)
        right, every = (np.vstack([values, values.sum(axis=0)]) for values in (right, every))
        boxes = np.append(self.instances, self.instances.sum())[:, None]
        with np.errstate(invalid="ignore", divide="ignore"):
            return right / every, right / boxes, np.where(boxes > 0, 2 * right / (every + boxes), np.nan)

    def best(self, category: int | None = None) -> float:
        """Return the threshold with the highest F1, the lowest of several; 0.5 where no F1 is above 0.

        `category` is a class's place, None all classes pooled.
        """
        f1 = np.nan_to_num(self.curves()[2][-1 if category is None else category])
        return float(GRID[f1.argmax()]) if f1.max(initial=0) > 0 else 0.5

    def errors(self, threshold: float) -> dict[str, int]:
        """Return how many errors of each kind there are, `missed` among them."""
        step = int(steps(np.array([threshold]))[0])
        above = self.detections[:, :, step:].sum(axis=(0, 2))
        missed = (self.found < step) & (self.covered < step)
        return {**{KINDS[kind]: int(above[kind]) for kind in range(1, len(KINDS))}, "missed": int(missed.sum())}

    def confusion(self, threshold: float) -> Counts:
        """Return (K + 1, K + 1): rows are labels, columns detections, the last the background."""
        step, classes = int(steps(np.array([threshold]))[0]), len(self.instances)
        found = self.found >= step
        confused = ~found & (self.claim >= step)
        called = np.where(found, self.category, np.where(confused, self.claim_category, classes))
        table = np.zeros((classes + 1, classes + 1), np.int64)
        np.add.at(table, (self.category, called), 1)
        wrong = self.detections[:, CORRECT + 1 :, step:].sum(axis=(1, 2))
        table[classes, :classes] = wrong - np.bincount(self.claim_category[confused], minlength=classes)
        return table

    def to_dict(self) -> dict[str, Any]:
        """Return the counts for the page, which computes the rest at the threshold its reader chooses."""
        return {
            "kinds": KINDS,
            "detections": self.detections.tolist(),
            "instances": self.instances.tolist(),
            "boxes": [
                values.tolist()
                for values in (self.category, self.found, self.claim, self.claim_category, self.covered)
            ],
        }


def calibrate(classified: ClassifiedBoxes) -> dict[str, Any]:
    """Return the reliability diagram and the expected calibration error of all detections, for JSON.

    A bin's scores lie in [low, high); it has their mean and the share that is right. None is for no detections.

    Reliability diagram and error as Guo et al. have them ("On Calibration of Modern Neural Networks", ICML 2017),
    with precision in the place of accuracy as for detectors (Küppers et al., "Multivariate Confidence Calibration
    for Object Detection", CVPR-W 2020): a detection is right when it found a box at IoU 0.5.
    """
    known = classified.kind >= 0
    score, right = classified.score[known], classified.kind[known] == CORRECT
    edges = np.arange(BINS + 1) / BINS
    place = np.minimum(np.searchsorted(edges, score, side="right") - 1, BINS - 1)  # a score of 1 is in the last
    bins, error = [], 0.0
    for number in range(BINS):
        mine = place == number
        count = int(mine.sum())
        mean, share = (float(values[mine].mean()) if count else None for values in (score, right))
        bounds = {"low": float(edges[number]), "high": float(edges[number + 1])}
        bins.append({**bounds, "detections": count, "score": mean, "precision": share})
        if mean is not None and share is not None:
            error += count / len(score) * abs(share - mean)
    return {"expected_calibration_error": error if len(score) else None, "bins": bins}


def steps(score: Floats) -> Counts:
    """Return the place in GRID of the highest threshold that each score passes, -1 for NEVER."""
    places: Counts = np.searchsorted(GRID, score, side="right") - 1
    return np.where(score <= NEVER, -1, places)


def image_errors(classified: ClassifiedBoxes, threshold: float) -> Counts:
    """Return each image's errors (N,) at a threshold: boxes not found, and detections that are wrong."""
    wrong = (classified.kind > CORRECT) & (classified.score >= threshold)
    missed = classified.found < threshold
    count = len(classified.image_ids)
    return np.bincount(classified.image[wrong], minlength=count) + np.bincount(
        classified.truth_image[missed], minlength=count
    )
