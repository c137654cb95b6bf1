"""What a detector does at each score threshold: precision, recall, F1, errors, confusion; and which to choose.

    table = ThresholdTable.of(outcomes)
    best = table.best()                        # the threshold of the highest F1, all classes pooled
    table.confusion(best)                      # (K + 1, K + 1), the last row and column are the background

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

from retinaserve.eval.report.outcomes import CORRECT, KINDS, NEVER, Outcomes

GRID = np.arange(101) / 100
STEPS = len(GRID)

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
    def of(cls, outcomes: Outcomes) -> Self:
        """Count a set's outcomes."""
        classes = len(outcomes.class_names)
        known = outcomes.kind >= 0
        counts = np.zeros((classes, len(KINDS), STEPS), np.int64)
        np.add.at(counts, (outcomes.category[known], outcomes.kind[known], steps(outcomes.score[known])), 1)
        claimed = outcomes.claimant >= 0
        claim_category = np.full(len(outcomes.found), -1, np.int64)
        claim_category[claimed] = outcomes.category[outcomes.claimant[claimed]]
        return cls(
            detections=counts,
            instances=np.bincount(outcomes.truth_category, minlength=classes),
            category=outcomes.truth_category,
            found=steps(outcomes.found),
            claim=steps(outcomes.claim),
            claim_category=claim_category,
            covered=steps(outcomes.covered),
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
        """Return (K + 1, K + 1): rows are what is labelled, columns what was said, the last is the background."""
        step, classes = int(steps(np.array([threshold]))[0]), len(self.instances)
        found = self.found >= step
        confused = ~found & (self.claim >= step)
        said = np.where(found, self.category, np.where(confused, self.claim_category, classes))
        table = np.zeros((classes + 1, classes + 1), np.int64)
        np.add.at(table, (self.category, said), 1)
        wrong = self.detections[:, CORRECT + 1 :, step:].sum(axis=(1, 2))
        table[classes, :classes] = wrong - np.bincount(self.claim_category[confused], minlength=classes)
        return table

    def to_dict(self) -> dict[str, Any]:
        """Return the counts for the page, which computes the rest at the threshold its reader chooses."""
        return {
            "kinds": KINDS,
            "detections": self.detections.tolist(),
            "instances": self.instances.tolist(),
            "boxes": [self.category.tolist(), *(values.tolist() for values in self._of_boxes())],
        }

    def _of_boxes(self) -> tuple[Counts, ...]:
        return self.found, self.claim, self.claim_category, self.covered


def steps(score: Floats) -> Counts:
    """Return the place in GRID of the highest threshold that each score passes, -1 for NEVER."""
    places: Counts = np.searchsorted(GRID, score, side="right") - 1
    return np.where(score <= NEVER, -1, places)


def image_errors(outcomes: Outcomes, threshold: float) -> Counts:
    """Return each image's errors (N,) at a threshold: boxes not found, and detections that are wrong."""
    wrong = (outcomes.kind > CORRECT) & (outcomes.score >= threshold)
    missed = outcomes.found < threshold
    count = len(outcomes.image_ids)
    return np.bincount(outcomes.image[wrong], minlength=count) + np.bincount(
        outcomes.truth_image[missed], minlength=count
    )
