"""Where labels and a detector disagree most: the labels that a person should look at again, with their images.

    found = disagreements(classified, truth, count=60)
    write_review(found, classified, images, Path("review.html"))

A detection weighs its score, be there no label beside it, one of another class, or one that it misses narrowly. A
label that nothing is near weighs the share of its class that was found: what is usually found counts more.
"""

import base64
import io
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from PIL import Image

from retinaserve.eval.report.error_types import (
    BACKGROUND,
    CLASS,
    FOREGROUND_IOU,
    LOCALISATION,
    NEVER,
    ClassifiedBoxes,
)
from retinaserve.plugins.reference import iou_matrix
from retinaserve.training.coco import Annotations
from retinaserve.training.detections import Detections
from retinaserve.training.files import write_text
from retinaserve.training.images.draw import draw, open_image

KINDS = {
    "unlabelled": "found, but not labelled",
    "class": "labelled as another class",
    "place": "labelled at another place",
    "not found": "labelled, but not found",
}
OF_ERROR = {BACKGROUND: "unlabelled", CLASS: "class", LOCALISATION: "place"}
SHOWN_SCORE = 0.3  # of other detections in a crop
MARGIN, LEAST = 0.75, 120  # of a crop: shares of the box around it, and pixels
WITHIN = (380, 300)

PAGE = Template("""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>Review</title><style>
:root { color-scheme: light dark; font: 16px/1.4 system-ui, sans-serif }
body { max-width: 52rem; margin: 2rem auto; padding: 0 1rem }
figure { margin: 0 0 2rem } figcaption { margin-bottom: .4rem } img { max-width: 49%; vertical-align: top }
small { opacity: .7 } b { font-weight: 600 }
</style></head><body><h1>Labels to look at again</h1>
<p>$summary. Left what is labelled, right what was found; the heaviest first.</p>
$figures</body></html>
""")


@dataclass(frozen=True)
class Disagreement:
    """One place in an image; boxes are x1, y1, x2, y2 in its pixels, None where one side has nothing."""

    kind: str  # of KINDS
    weight: float  # 0 to 1
    file_name: str
    image_id: int
    label: str | None
    label_box: tuple[float, ...] | None
    found: str | None
    found_box: tuple[float, ...] | None


def disagreements(
    classified: ClassifiedBoxes, truth: Annotations, *, count: int = 60, least: float = 0.3
) -> list[Disagreement]:
    """Return the heaviest disagreements, none below `least`; of several detections at a place the best alone."""
    names, ids = classified.class_names, classified.image_ids
    detected = np.flatnonzero(np.isin(classified.kind, list(OF_ERROR)))
    detected = detected[np.argsort(-classified.score[detected], kind="stable")]
    rows: list[tuple[float, int, int]] = []  # weight, detection, label; -1 for none
    told, claimed = defaultdict[int, list[int]](list), set[int]()  # detections by image; labels
    for row in detected.tolist():
        target, others = int(classified.target[row]), told[int(classified.image[row])]
        settled = target >= 0 and (classified.found[target] != NEVER or target in claimed)
        near = iou_matrix(classified.boxes[[row]], classified.boxes[others]) if others else np.zeros(1)
        if not settled and near.max() < FOREGROUND_IOU:
            rows.append((float(classified.score[row]), row, target))
            others.append(row)
            claimed.add(target)
    labels = np.bincount(classified.truth_category, minlength=len(names))
    found = np.bincount(classified.truth_category[classified.found != NEVER], minlength=len(names))
    missed = np.flatnonzero((classified.found == NEVER) & (classified.covered == NEVER)).tolist()
    share = found / np.maximum(labels, 1)
    rows += [(float(share[classified.truth_category[label]]), -1, label) for label in missed]
    rows = [row for row in rows if row[0] >= least]
    rows.sort(key=lambda row: -row[0])
    result = []
    for weight, row, label in rows[:count]:
        image = classified.image[row] if row >= 0 else classified.truth_image[label]
        result.append(
            Disagreement(
                kind=OF_ERROR[int(classified.kind[row])] if row >= 0 else "not found",
                weight=round(weight, 4),
                file_name=truth.images[ids[image]],
                image_id=ids[image],
                label=names[classified.truth_category[label]] if label >= 0 else None,
                label_box=_rounded(classified.truth_boxes[label]) if label >= 0 else None,
                found=names[classified.category[row]] if row >= 0 else None,
                found_box=_rounded(classified.boxes[row]) if row >= 0 else None,
            )
        )
    return result


def write_review(
    found: Iterable[Disagreement],
    classified: ClassifiedBoxes,
    images: Path,
    path: Path,
    *,
    on_figure: Callable[[], object] = lambda: None,
) -> None:
    """Write a page with a pair of images for each disagreement; it loads nothing from elsewhere."""
    shown = list(found)
    counts = [f"{sum(each.kind == kind for each in shown)} {what}" for kind, what in KINDS.items()]
    figures = []
    for each in shown:
        figures.append(_figure(each, classified, images))
        on_figure()
    write_text(path, PAGE.substitute(summary=", ".join(counts), figures="\n".join(figures)))


def _figure(each: Disagreement, classified: ClassifiedBoxes, images: Path) -> str:
    place = classified.image_ids.index(each.image_id)
    names = classified.class_names
    what = {
        "unlabelled": f"<b>{escape(each.found or '')}</b> is not labelled",
        "class": f"labelled <b>{escape(each.label or '')}</b>, found as <b>{escape(each.found or '')}</b>",
        "place": f"<b>{escape(each.label or '')}</b> was found at another place",
        "not found": f"<b>{escape(each.label or '')}</b> was not found",
    }[each.kind]
    caption = f"<figcaption>{what} <small>{each.weight:.2f}, {escape(each.file_name)}</small></figcaption>"
    try:
        image = open_image(images / each.file_name)
    except OSError as error:
        return f"<figure>{caption}<p>{escape(str(error))}</p></figure>"
    crop = _crop(each, image.size)
    mine = np.flatnonzero(classified.truth_image == place)
    theirs = np.flatnonzero((classified.image == place) & (classified.score >= min(SHOWN_SCORE, each.weight)))
    labels = classified.truth_boxes[mine], np.ones(len(mine)), classified.truth_category[mine]
    found = classified.boxes[theirs], classified.score[theirs], classified.category[theirs]
    pair = (
        draw(image.crop(crop), _within(Detections.from_slots(len(side[1]), *side), crop), names, **how)
        for side, how in ((labels, {"within": WITHIN, "scores": False}), (found, {"within": WITHIN}))
    )
    return f"<figure>{caption}{' '.join(map(_embedded, pair))}</figure>"


def _crop(each: Disagreement, size: tuple[int, int]) -> tuple[int, int, int, int]:
    boxes = np.array([box for box in (each.label_box, each.found_box) if box])
    (left, top), (right, bottom) = boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)
    margin = max(MARGIN * max(right - left, bottom - top), LEAST / 2)
    corners = left - margin, top - margin, right + margin, bottom + margin
    x1, y1, x2, y2 = (round(min(max(0, value), size[axis % 2])) for axis, value in enumerate(corners))
    return x1, y1, max(x2, x1 + 1), max(y2, y1 + 1)


def _within(side: Detections, crop: tuple[int, int, int, int]) -> Detections:
    """Return what can be seen in a crop, in its pixels."""
    x1, y1, x2, y2 = crop
    boxes = side.boxes - np.array([x1, y1, x1, y1], np.float32)
    seen = (boxes[:, 0] < x2 - x1) & (boxes[:, 1] < y2 - y1) & (boxes[:, 2] > 0) & (boxes[:, 3] > 0)
    return Detections(boxes[seen], side.scores[seen], side.classes[seen])


def _embedded(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}">'


def _rounded(box: Any) -> tuple[float, ...]:
    return tuple(round(float(value), 2) for value in box)
