"""Everything a report tells, made once for the JSON file and the page.

analysis = Analysis.of(report, resamples=1000, seed=0)
write_json(path, analysis.to_dict())
"""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from retinaserve.eval.report.bootstrap import Interval, draw, interval, resampled_ap
from retinaserve.eval.report.comparison import FORMAT, Baseline, Comparison, compare, pack_detections
from retinaserve.eval.report.error_types import ClassifiedBoxes, ap50_gains, classify_boxes
from retinaserve.eval.report.report import Report
from retinaserve.eval.report.thresholds import Calibration, ThresholdTable, calibrate, image_errors, steps
from retinaserve.training.scores import IOU_50, IOU_75

RESAMPLES, SEED = 1000, 0


@dataclass(frozen=True, eq=False)
class Analysis:
    """A report, taken apart."""

    report: Report
    classified: ClassifiedBoxes
    table: ThresholdTable
    threshold: float  # the suggested one
    calibration: Calibration
    gains: dict[str, float | None]
    interval: Interval | None  # of AP
    comparison: Comparison | None

    @classmethod
    def of(
        cls, report: Report, baseline: Baseline | None = None, *, resamples: int = RESAMPLES, seed: int = SEED
    ) -> Self:
        """Analyse a report, and compare it with a baseline."""
        matches = report.scores.matches
        classified = classify_boxes(report.truth, report.results, report.category_ids, matches)
        table = ThresholdTable.of(classified)
        threshold = table.best()
        comparison = None
        if baseline:
            comparison = compare(baseline, report.scores, classified, threshold, resamples=resamples, seed=seed)
        drawn = resampled_ap(matches, draw(len(classified.image_ids), resamples=resamples, seed=seed))
        return cls(
            report=report,
            classified=classified,
            table=table,
            threshold=threshold,
            calibration=calibrate(classified),
            gains=ap50_gains(report.truth, classified),
            interval=interval(drawn, seed=seed),
            comparison=comparison,
        )

    def worst_images(self, count: int) -> list[tuple[int, int]]:
        """Return ids and errors of the images with the most errors at the suggested threshold."""
        errors = image_errors(self.classified, self.threshold)
        order = np.argsort(-errors, kind="stable")[:count]
        return [(self.classified.image_ids[place], int(errors[place])) for place in order if errors[place]]

    def operating_points(self) -> list[dict[str, Any]]:
        """Return each class's own best threshold with its precision, recall and F1; the last is all classes'."""
        names, curves = self.classified.class_names, self.table.curves()
        points = []
        for place in range(len(names) + 1):
            pooled = place == len(names)
            best = self.table.best(None if pooled else place)
            step = int(steps(np.array([best]))[0])
            point: dict[str, Any] = {"class": None if pooled else names[place], "threshold": best}
            for name, curve in zip(("precision", "recall", "f1"), curves, strict=True):
                value = float(curve[place, step])
                point[name] = round(value, 4) if np.isfinite(value) else None
            points.append(point)
        return points

    def pr_curves(self) -> dict[str, list[list[float] | None]]:
        """Return precision at the 101 recalls, by class (None without labelled boxes); the last is their mean."""
        curves = {}
        for name, place in (("0.50", IOU_50), ("0.75", IOU_75)):
            of_class = self.report.scores.precision[place].T  # (K, 101)
            known = of_class[(of_class > -1).all(axis=1)]
            mean = known.mean(axis=0, keepdims=True) if len(known) else np.full((1, of_class.shape[1]), -1.0)
            curves[name] = [
                None if (row < 0).any() else np.round(row, 4).tolist() for row in np.vstack([of_class, mean])
            ]
        return curves

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON file: numbers first, the detections that a later comparison needs last."""
        precision, recall, f1 = (np.round(curve, 4) for curve in self.table.curves())
        *of_class, pooled = self.operating_points()
        return {
            "format": FORMAT,
            **self.report.to_dict(),
            "ap_interval": self.interval and self.interval.to_dict(),
            "operating_point": pooled,
            "operating_points": of_class,
            "thresholds": {"precision": _list(precision), "recall": _list(recall), "f1": _list(f1)},
            "errors": self.table.errors(self.threshold),
            "ap50_gains": self.gains,
            "confusion": {
                "labels": [*self.classified.class_names, None],
                "counts": self.table.confusion(self.threshold).tolist(),
            },
            "calibration": self.calibration.to_dict(),
            "pr_curves": self.pr_curves(),
            "comparison": self.comparison and self.comparison.to_dict(),
            "detections": pack_detections(self.classified),
        }


def _list(curves: Any) -> list[list[float | None]]:
    return [[value if np.isfinite(value) else None for value in row] for row in curves.tolist()]
