"""A report taken apart, and compared with an earlier one: made once for the JSON file and the page.

    baseline = read_baseline(Path("last_week.json"), truth)
    analysis = Analysis.of(report, baseline, resamples=1000, seed=0)
    write_json(path, analysis.to_dict())
    analysis.comparison.difference, analysis.comparison.worse

The baseline is the JSON file of an earlier report. It holds its detections, which are scored again on the same
labels; a file of other labels is refused, because its numbers would mean something else. Images are compared by
their errors at each detector's own suggested threshold: scores of two detectors have no common scale.
"""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from retinaserve.eval.report.error_types import ClassifiedBoxes, ap50_gains, classify_boxes
from retinaserve.eval.report.report import Report
from retinaserve.eval.report.thresholds import ThresholdTable, calibrate, image_errors, steps
from retinaserve.training.coco import Annotations
from retinaserve.training.detections import Detections
from retinaserve.training.errors import UserError
from retinaserve.training.scoring.bootstrap import Floats, Interval, draw, interval, resampled_ap
from retinaserve.training.scoring.judge import JudgeName
from retinaserve.training.scoring.scores import IOU_50, IOU_75, CocoScores, evaluate

FORMAT = 1  # of the JSON file
RESAMPLES, SEED = 1000, 0


@dataclass(frozen=True, eq=False)
class Baseline:
    """An earlier report, scored again."""

    path: Path
    model: dict[str, Any]
    scores: CocoScores
    classified: ClassifiedBoxes
    threshold: float


@dataclass(frozen=True)
class ImageChange:
    """One image's errors, before and now."""

    image_id: int
    before: int
    now: int


@dataclass(frozen=True, eq=False)
class Comparison:
    """What changed; `interval` is of the AP difference, None where no draw gave one."""

    baseline: Baseline
    numbers: dict[str, tuple[float | None, float | None]]  # COCO's twelve: before, now
    classes: tuple[tuple[str, float | None, float | None], ...]  # name, AP before, AP now
    difference: float | None  # of AP, now - before
    interval: Interval | None
    seconds: float  # that the resampling took
    worse: tuple[ImageChange, ...]  # the most changed first
    better: tuple[ImageChange, ...]

    def drop(self) -> float:
        """Return by how much AP fell, 0 if it did not."""
        return max(0.0, -(self.difference or 0.0))

    def to_dict(self) -> dict[str, Any]:
        """Return everything for JSON."""
        return {
            "baseline": str(self.baseline.path),
            "baseline_model": self.baseline.model,
            "baseline_threshold": self.baseline.threshold,
            "numbers": {name: {"before": old, "now": new} for name, (old, new) in self.numbers.items()},
            "classes": [{"name": name, "before": old, "now": new} for name, old, new in self.classes],
            "ap_difference": self.difference,
            "interval": self.interval and self.interval.to_dict(),
            "bootstrap_seconds": round(self.seconds, 3),
            "worse": [asdict(change) for change in self.worse],
            "better": [asdict(change) for change in self.better],
        }


@dataclass(frozen=True, eq=False)
class Analysis:
    """Everything a report tells."""

    report: Report
    classified: ClassifiedBoxes
    table: ThresholdTable
    threshold: float  # the suggested one
    calibration: dict[str, Any]
    gains: dict[str, float | None]
    interval: Interval | None  # of AP
    comparison: Comparison | None

    @classmethod
    def of(
        cls, report: Report, baseline: Baseline | None = None, *, resamples: int = RESAMPLES, seed: int = SEED
    ) -> Self:
        """Analyse a report, and compare it with a baseline."""
        classified = classify_boxes(report.truth, report.scores)
        table = ThresholdTable.of(classified)
        threshold = table.best()
        start = time.perf_counter()
        weights = draw(len(classified.image_ids), resamples=resamples, seed=seed)
        drawn = resampled_ap(report.scores.matches, weights)
        comparison = None
        if baseline:
            # Paired: both sides see the same draws.
            paired = interval(drawn - resampled_ap(baseline.scores.matches, weights), seed=seed)
            seconds = time.perf_counter() - start
            comparison = _compare(baseline, report.scores, classified, threshold, found=paired, seconds=seconds)
        return cls(
            report=report,
            classified=classified,
            table=table,
            threshold=threshold,
            calibration=calibrate(classified),
            gains=ap50_gains(classified),
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
                point[name] = _known(float(curve[place, step]))
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
        names = ("precision", "recall", "f1")
        curves = ([[_known(value) for value in row] for row in curve.tolist()] for curve in self.table.curves())
        *of_class, pooled = self.operating_points()
        return {
            "format": FORMAT,
            **self.report.to_dict(),
            "ap_interval": self.interval and self.interval.to_dict(),
            "operating_point": pooled,
            "operating_points": of_class,
            "thresholds": dict(zip(names, curves, strict=True)),
            "errors": self.table.errors(self.threshold),
            "ap50_gains": self.gains,
            "confusion": {
                "labels": [*self.classified.class_names, None],
                "counts": self.table.confusion(self.threshold).tolist(),
            },
            "calibration": self.calibration,
            "pr_curves": self.pr_curves(),
            "comparison": self.comparison and self.comparison.to_dict(),
            "detections": _packed(self.classified),
        }


def read_baseline(path: Path, truth: Annotations, *, judge: JudgeName | None = None) -> Baseline:
    """Read the JSON file of an earlier report. Raises UserError for any other file, or one of other labels."""
    made_by = "a file written by `retinaserve eval --json` is expected"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}", made_by) from None
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}", made_by) from None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        found = data.get("format") if isinstance(data, dict) else None
        raise UserError(f"{path}: no report to compare with (format {found!r})", f"{made_by}, format {FORMAT}")
    if data.get("annotations_sha256") != truth.sha256:
        raise UserError(
            f"{path} was scored on other labels ({data.get('annotations')})",
            f"score both on {truth.path}: average precisions of different sets can't be compared",
        )
    try:
        results = _unpacked(data["detections"], truth)
        model = dict(data["model"])
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        raise UserError(f"{path}: its detections can't be read: {type(error).__name__} {error}", made_by) from None
    scores = evaluate(truth, results, tuple(truth.categories), judge=judge)
    classified = classify_boxes(truth, scores)
    return Baseline(path, model, scores, classified, ThresholdTable.of(classified).best())


def _compare(
    baseline: Baseline,
    scores: CocoScores,
    classified: ClassifiedBoxes,
    threshold: float,
    *,
    found: Interval | None,
    seconds: float,
) -> Comparison:
    old, new = baseline.scores.to_dict(), scores.to_dict()
    per_class = zip(baseline.scores.per_class, scores.per_class, strict=True)
    before, now = image_errors(baseline.classified, baseline.threshold), image_errors(classified, threshold)
    counts = zip(classified.image_ids, before.tolist(), now.tolist(), strict=True)
    changes, more = [ImageChange(*values) for values in counts], now - before
    return Comparison(
        baseline=baseline,
        numbers={name: (old[name], value) for name, value in new.items() if name[:2] in ("ap", "ar")},
        classes=tuple((score.name, earlier.ap, score.ap) for earlier, score in per_class),
        difference=None if scores.ap is None or baseline.scores.ap is None else scores.ap - baseline.scores.ap,
        interval=found,
        seconds=seconds,
        worse=tuple(changes[place] for place in np.argsort(-more, kind="stable") if more[place] > 0),
        better=tuple(changes[place] for place in np.argsort(more, kind="stable") if more[place] < 0),
    )


def _known(value: float) -> float | None:
    return round(value, 4) if np.isfinite(value) else None


def _packed(classified: ClassifiedBoxes) -> dict[str, list[list[float]]]:
    """Return the detections by image id for the JSON file: category id, score, x1, y1, x2, y2, losslessly."""
    packed: dict[str, list[list[float]]] = {}
    image_ids, category_ids = classified.judge.image_ids, classified.judge.category_ids
    values = shortest(np.column_stack([classified.score, classified.boxes]).astype(np.float32))
    rows = zip(classified.image.tolist(), classified.category.tolist(), values.tolist(), strict=True)
    for image, category, row in rows:
        packed.setdefault(str(image_ids[image]), []).append([category_ids[category], *row])
    return packed


def shortest(values: npt.NDArray[np.float32]) -> Floats:
    """Return for each float32 the float64 whose digits are the fewest that give it again, as its str has them."""
    exact = values.astype(np.float64)
    found, left = exact.copy(), np.abs(values) < 1e7
    large = ~left
    for decimals in range(10):
        # A quotient of two exact floats is the float64 nearest to the decimal, which is what float() makes of it.
        rounded = np.round(exact[left] * 10.0**decimals) / 10.0**decimals
        fits = rounded.astype(np.float32) == values[left]
        found[left] = np.where(fits, rounded, exact[left])
        left[left] = ~fits
    for place in np.flatnonzero(left | large):  # very small numbers, and those without decimals
        found.ravel()[place] = float(str(values.ravel()[place]))
    return found


def _unpacked(packed: dict[str, list[list[float]]], truth: Annotations) -> dict[int, Detections]:
    place = {category_id: index for index, category_id in enumerate(truth.categories)}
    results = {}
    for image_id, rows in packed.items():
        table = np.array([row[1:] for row in rows], np.float32).reshape(len(rows), 5)
        if int(image_id) not in truth.images or not np.isfinite(table).all():
            raise ValueError(f"image {image_id}")
        classes = np.array([place[int(row[0])] for row in rows], np.int32)
        results[int(image_id)] = Detections(table[:, 1:], table[:, 0], classes)
    return results
