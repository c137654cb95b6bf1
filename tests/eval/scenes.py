"""A labelled scene small enough to judge by hand, and a detector's answers to it, with every kind of error."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from retinaserve.eval.report.error_types import ClassifiedBoxes, classify_boxes
from retinaserve.eval.report.report import Report
from retinaserve.training.coco import Annotations
from retinaserve.training.detections import Detections
from retinaserve.training.scoring.scores import evaluate
from tests.coco import write_coco

Row = tuple[float, float, float, float, float, int]
CATEGORIES = {7: "cat", 3: "dog"}  # classes 0 and 1
LABELS = [  # image, category, xyxy
    (10, 7, (0, 0, 100, 100)),
    (10, 7, (200, 200, 300, 300)),
    (11, 3, (5, 5, 25, 25)),
    (11, 3, (100, 100, 200, 200)),
]
ANSWERS: dict[int, list[Row]] = {
    10: [
        (0, 0, 100, 100, 0.9, 0),  # correct
        (0, 0, 100, 90, 0.8, 0),  # IoU 0.9 with the same cat: duplicate
        (200, 200, 300, 240, 0.7, 0),  # IoU 0.4 with the other cat: localisation
        (200, 200, 300, 300, 0.6, 1),  # a dog where that cat is: class
        (200, 200, 300, 230, 0.5, 1),  # IoU 0.3 with that cat: both
        (600, 600, 700, 700, 0.4, 0),  # background
    ],
    11: [(5, 5, 25, 25, 0.3, 1)],  # correct; the other dog is missed
}


def label(
    folder: Path,
    labels: Sequence[tuple[int, int, Sequence[float]]] = LABELS,
    *,
    images: Mapping[int, str] | None = None,
    categories: Mapping[int, str] = CATEGORIES,
    **more: Any,
) -> Annotations:
    """Write an annotation file and load it; boxes are given as corners."""
    names = images if images is not None else {10: "a.png", 11: "b.png", 12: "empty.png"}
    boxes = [(image, kind, [x1, y1, x2 - x1, y2 - y1], more) for image, kind, (x1, y1, x2, y2) in labels]
    return Annotations.load(write_coco(folder / "labels.json", names, boxes, categories))


def detect(rows: Sequence[Row]) -> Detections:
    """Return detections of x1, y1, x2, y2, score, class."""
    table = np.array(rows, np.float64).reshape(-1, 6)
    return Detections(
        table[:, :4].astype(np.float32), table[:, 4].astype(np.float32), table[:, 5].astype(np.int32)
    )


def report_on(
    truth: Annotations, answers: Mapping[int, Sequence[Row]] = ANSWERS, *, folder: Path | None = None
) -> Report:
    """Return the report on answers; the pictures are those of `folder`, where some are needed."""
    results = {image_id: detect(rows) for image_id, rows in answers.items()}
    ids = tuple(truth.categories)
    return Report(
        truth=truth,
        files={image_id: (folder or truth.path.parent) / name for image_id, name in truth.images.items()},
        results={image_id: results.get(image_id, Detections.none()) for image_id in truth.images},
        errors={},
        class_names=tuple(truth.categories.values()),
        category_ids=ids,
        warning="",
        scores=evaluate(truth, results, ids),
        seconds=1.0,
    )


def classified_boxes(truth: Annotations, answers: Mapping[int, Sequence[Row]] = ANSWERS) -> ClassifiedBoxes:
    """Return what became of the answers."""
    report = report_on(truth, answers)
    return classify_boxes(truth, report.scores)
