"""Whether a score means what it says: of the detections scored about 0.8, how many are right?

    calibration = calibrate(outcomes)
    calibration.error                          # expected calibration error, 0 is perfect

Reliability diagram and ECE with ten bins of equal width (Guo et al., "On Calibration of Modern Neural Networks",
ICML 2017), with precision in the place of accuracy as for detectors (Küppers et al., "Multivariate Confidence
Calibration for Object Detection", CVPR-W 2020): a detection is right when it found a box at IoU 0.5. Position and
size of boxes are not looked at, and detections below the detector's own score threshold can't be.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from retinaserve.eval.report.outcomes import CORRECT, Outcomes

BINS = 10


@dataclass(frozen=True)
class Bin:
    """The detections whose scores lie in [low, high): their mean score, and the share that is right."""

    low: float
    high: float
    detections: int
    score: float | None
    precision: float | None


@dataclass(frozen=True)
class Calibration:
    """A reliability diagram and the expected calibration error, None without detections."""

    bins: tuple[Bin, ...]
    error: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return everything for JSON."""
        return {"expected_calibration_error": self.error, "bins": [asdict(item) for item in self.bins]}


def calibrate(outcomes: Outcomes) -> Calibration:
    """Return the calibration of all detections, classes pooled."""
    known = outcomes.kind >= 0
    score, right = outcomes.score[known], outcomes.kind[known] == CORRECT
    edges = np.arange(BINS + 1) / BINS
    place = np.minimum(np.searchsorted(edges, score, side="right") - 1, BINS - 1)  # a score of 1 is in the last
    bins, error = [], 0.0
    for number in range(BINS):
        mine = place == number
        count = int(mine.sum())
        mean = float(score[mine].mean()) if count else None
        share = float(right[mine].mean()) if count else None
        bins.append(Bin(float(edges[number]), float(edges[number + 1]), count, mean, share))
        if mean is not None and share is not None:
            error += count / len(score) * abs(share - mean)
    return Calibration(tuple(bins), error if len(score) else None)
