"""Two detectors on the same labelled images: what changed overall, by class and by image.

    baseline = read_baseline(Path("last_week.json"), truth)
    change = compare(baseline, scores, classified, threshold, resamples=1000, seed=0)
    change.difference, change.interval, change.worse

The baseline is the JSON file of an earlier report. It holds its detections, which are scored again on the same
labels; a file of other labels is refused, because its numbers would mean something else. Images are compared by
their errors at each detector's own suggested threshold: scores of two detectors have no common scale.
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from retinaserve.eval.report.bootstrap import Interval, draw, interval, resampled_ap
from retinaserve.eval.report.error_types import ClassifiedBoxes, classify_boxes
from retinaserve.eval.report.thresholds import ThresholdTable, image_errors
from retinaserve.training.coco import Annotations
from retinaserve.training.detections import Detections
from retinaserve.training.errors import UserError
from retinaserve.training.scores import CocoScores, evaluate

FORMAT = 1  # of the JSON file


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
            "worse": [vars(change) for change in self.worse],
            "better": [vars(change) for change in self.better],
        }


def read_baseline(path: Path, truth: Annotations) -> Baseline:
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
        results = _detections(data["detections"], truth)
        model = dict(data["model"])
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        raise UserError(f"{path}: its detections can't be read: {type(error).__name__} {error}", made_by) from None
    category_ids = tuple(truth.categories)
    scores = evaluate(truth, results, category_ids)
    classified = classify_boxes(truth, results, category_ids, scores.matches)
    return Baseline(path, model, scores, classified, ThresholdTable.of(classified).best())


def compare(
    baseline: Baseline,
    scores: CocoScores,
    classified: ClassifiedBoxes,
    threshold: float,
    *,
    resamples: int,
    seed: int,
) -> Comparison:
    """Compare `scores` and `classified` (at `threshold`) with a baseline; `resamples` draws give the interval."""
    old, new = baseline.scores.to_dict(), scores.to_dict()
    numbers = {name: (old[name], value) for name, value in new.items() if name[:2] in ("ap", "ar")}
    per_class = zip(baseline.scores.per_class, scores.per_class, strict=True)
    start = time.perf_counter()
    weights = draw(len(classified.image_ids), resamples=resamples, seed=seed)
    drawn = resampled_ap(scores.matches, weights) - resampled_ap(baseline.scores.matches, weights)
    ap_interval = interval(drawn, seed=seed)
    seconds = time.perf_counter() - start

    before, now = image_errors(baseline.classified, baseline.threshold), image_errors(classified, threshold)
    more = now - before
    counts = zip(classified.image_ids, before.tolist(), now.tolist(), strict=True)
    changes = [ImageChange(*values) for values in counts]
    return Comparison(
        baseline=baseline,
        numbers=numbers,
        classes=tuple((now_score.name, old_score.ap, now_score.ap) for old_score, now_score in per_class),
        difference=None if scores.ap is None or baseline.scores.ap is None else scores.ap - baseline.scores.ap,
        interval=ap_interval,
        seconds=seconds,
        worse=tuple(changes[place] for place in np.argsort(-more, kind="stable") if more[place] > 0),
        better=tuple(changes[place] for place in np.argsort(more, kind="stable") if more[place] < 0),
    )


def pack_detections(classified: ClassifiedBoxes) -> dict[str, list[list[float]]]:
    """Return the detections by image id for the JSON file: category id, score, x1, y1, x2, y2, losslessly."""
    packed: dict[str, list[list[float]]] = {}
    for row, corners in zip(classified.rows, classified.boxes.astype(np.float32), strict=True):
        values = [float(str(value)) for value in (np.float32(row["score"]), *corners)]  # float32's shortest digits
        packed.setdefault(str(row["image_id"]), []).append([row["category_id"], *values])
    return packed


def _detections(packed: dict[str, list[list[float]]], truth: Annotations) -> dict[int, Detections]:
    place = {category_id: index for index, category_id in enumerate(truth.categories)}
    results = {}
    for image_id, rows in packed.items():
        table = np.array([row[1:] for row in rows], np.float32).reshape(len(rows), 5)
        if int(image_id) not in truth.images or not np.isfinite(table).all():
            raise ValueError(f"image {image_id}")
        classes = np.array([place[int(row[0])] for row in rows], np.int32)
        results[int(image_id)] = Detections(table[:, 1:], table[:, 0], classes)
    return results
