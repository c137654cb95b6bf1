"""The images of a report, labels and answers side by side: those with the most errors, and those that changed.

    thumbnails = Thumbnails(report.files)
    worst(analysis, thumbnails, count=24)          # HTML

A thumbnail is embedded once as a data URI and shown as often as needed, with boxes as SVG over it. Boxes follow
the threshold the page is set to; which images are worst was decided at the suggested one.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from retinaserve.eval.report.analysis import Analysis, ImageChange
from retinaserve.eval.report.error_types import CORRECT, KINDS, ClassifiedBoxes
from retinaserve.eval.report.thresholds import steps
from retinaserve.training.images.draw import open_image

WORST, CHANGED = 24, 8
LOWEST_SHOWN = 0.1  # weaker detections are not drawn
MOST_BOXES = 60  # of an image
LONGER_SIDE = 400  # px of a thumbnail
WIDTH = 300  # px of every panel in its own coordinates, so that labels have one size on the page
QUALITY = 60  # of WebP
MOST_BYTES = 1_200_000  # of all thumbnails together, before base64: keeps the page below 2 MB
LETTER = 7.4  # px of the widest usual letter of a label
MOST_LABELS = 6  # where there are more boxes, only the wrong ones are named


@dataclass(frozen=True)
class Thumbnail:
    """An embedded image; `first` when its pixels still have to be written."""

    image_id: int
    height: int  # px of the panel, whose width is WIDTH
    scale: float  # panel / original
    uri: str
    first: bool


@dataclass(frozen=True)
class Box:
    """A box to draw, in the original's pixels."""

    corners: npt.NDArray[np.float64]  # x1 y1 x2 y2
    name: str  # the class
    note: str  # what became of it: in the tooltip, and in the label of a wrong one
    kind: str  # its CSS class: truth or detected
    wrong: bool
    step: int  # truth: the threshold's place up to which it is found; detected: up to which it is shown


class Thumbnails:
    """Makes thumbnails until MOST_BYTES are spent."""

    def __init__(self, files: Mapping[int, Path]) -> None:
        self._files = files
        self._made: dict[int, Thumbnail] = {}
        self._left = MOST_BYTES

    def get(self, image_id: int) -> Thumbnail | None:
        """Return an image's thumbnail, None for one that can't be read or has no room left."""
        if image_id in self._made:
            return replace(self._made[image_id], first=False)
        try:
            image = open_image(self._files[image_id])
        except (OSError, Image.DecompressionBombError):
            return None
        smaller = min(1.0, LONGER_SIDE / max(image.size))
        size = (max(1, round(image.width * smaller)), max(1, round(image.height * smaller)))
        buffer = io.BytesIO()
        image.resize(size, Image.Resampling.LANCZOS).save(buffer, "WEBP", quality=QUALITY, method=4)
        encoded = buffer.getvalue()
        if len(encoded) > self._left:
            return None
        self._left -= len(encoded)
        uri = f"data:image/webp;base64,{base64.b64encode(encoded).decode()}"
        scale = WIDTH / image.width
        self._made[image_id] = Thumbnail(image_id, max(1, round(image.height * scale)), scale, uri, first=True)
        return self._made[image_id]


def worst(analysis: Analysis, thumbnails: Thumbnails, count: int = WORST) -> str:
    """Return the images with the most errors: what is labelled beside what was found."""
    images = analysis.worst_images(count)
    cards = [_card(analysis, thumbnails, image_id, _errors(errors), []) for image_id, errors in images]
    return "".join(cards) or "<p>No image has an error at the suggested threshold.</p>"


def changed(
    analysis: Analysis, thumbnails: Thumbnails, changes: tuple[ImageChange, ...], count: int = CHANGED
) -> str:
    """Return the most changed images: labelled, found before, found now."""
    assert analysis.comparison
    baseline = analysis.comparison.baseline
    before = [(baseline.classified, baseline.threshold)]
    cards = []
    for change in changes[:count]:
        title = f"{_errors(change.before)} before, {change.now} now"
        cards.append(_card(analysis, thumbnails, change.image_id, title, before))
    return "".join(cards) or "<p>None.</p>"


def _card(
    analysis: Analysis,
    thumbnails: Thumbnails,
    image_id: int,
    title: str,
    before: list[tuple[ClassifiedBoxes, float]],
) -> str:
    heading = f"<h4>{escape(analysis.report.truth.images[image_id])} <small>{escape(title)}</small></h4>"
    error = analysis.report.errors.get(image_id)
    if error:
        heading += f'<p class="bad">not answered: {escape(error.message)}</p>'
    sides = [
        ("labelled", _labelled(analysis.classified, image_id)),
        *((f"before, from {low:.2f}", _detected(found, image_id, low)) for found, low in before),
        ("now" if before else "found", _detected(analysis.classified, image_id, None)),
    ]
    panels = []
    for caption, boxes in sides:
        thumbnail = thumbnails.get(image_id)
        if thumbnail is None:
            return f'<article class="card">{heading}<p>The image can\'t be shown here.</p></article>'
        panels.append(_panel(thumbnail, boxes, caption))
    return f'<article class="card">{heading}<div class="panels">{"".join(panels)}</div></article>'


def _labelled(classified: ClassifiedBoxes, image_id: int) -> list[Box]:
    places = np.flatnonzero(classified.truth_image == classified.image_ids.index(image_id))
    return [
        Box(
            classified.truth_boxes[place],
            classified.class_names[classified.truth_category[place]],
            f"found at {classified.found[place]:.2f}" if classified.found[place] >= 0 else "never found",
            "truth",
            wrong=False,
            step=int(steps(classified.found[place : place + 1])[0]),
        )
        for place in places
    ]


def _detected(classified: ClassifiedBoxes, image_id: int, fixed: float | None) -> list[Box]:
    """Return the detections; those of a `fixed` threshold stay whatever the page is set to."""
    lowest = LOWEST_SHOWN if fixed is None else fixed
    of_image = classified.image == classified.image_ids.index(image_id)
    rows = np.flatnonzero(of_image & (classified.score >= lowest) & (classified.kind >= 0))
    rows = rows[np.argsort(-classified.score[rows], kind="stable")][:MOST_BOXES]
    return [
        Box(
            classified.boxes[row],
            classified.class_names[classified.category[row]],
            f"{KINDS[classified.kind[row]]} {classified.score[row]:.2f}",
            "detected",
            wrong=bool(classified.kind[row] != CORRECT),
            step=int(steps(classified.score[row : row + 1])[0]) if fixed is None else 100,
        )
        for row in rows
    ]


def _panel(thumbnail: Thumbnail, boxes: Sequence[Box], caption: str) -> str:
    height, name = thumbnail.height, f"image-{thumbnail.image_id}"
    shown = f'<use href="#{name}"/>'
    if thumbnail.first:
        shown = f'<image id="{name}" width="{WIDTH}" height="{height}" href="{thumbnail.uri}"/>'
    # What is small is drawn last, or a larger box would take its tooltip.
    ordered = sorted(boxes, key=lambda box: float(np.prod(box.corners[2:] - box.corners[:2])), reverse=True)
    drawn = "".join(_drawn(box, thumbnail, named=len(boxes) <= MOST_LABELS) for box in ordered)
    return (
        f'<figure><svg class="image" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(caption)}">'
        f"{shown}{drawn}</svg><figcaption>{escape(caption)}</figcaption></figure>"
    )


def _drawn(box: Box, thumbnail: Thumbnail, *, named: bool) -> str:
    x1, y1, x2, y2 = (round(float(value) * thumbnail.scale, 1) for value in box.corners)
    full = f"{box.name}: {box.note}"
    label = full if box.wrong and box.kind == "detected" else box.name
    above = y1 - 3 if y1 > 14 else y1 + 12
    x = max(2.0, min(x1, WIDTH - LETTER * len(label)))
    look = f"box {box.kind}{' wrong' if box.wrong else ''}{' named' if named else ''}"
    return (
        f'<g class="{look}" data-step="{box.step}"><title>{escape(full)}</title>'
        f'<rect x="{x1}" y="{y1}" width="{max(0.5, x2 - x1):.1f}" height="{max(0.5, y2 - y1):.1f}"/>'
        f'<text x="{x:.1f}" y="{above:.1f}">{escape(label)}</text></g>'
    )


def _errors(count: int) -> str:
    return f"{count} error{'' if count == 1 else 's'}"
