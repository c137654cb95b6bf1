"""Pictures of a report: small copies as data URIs, with boxes as SVG over them.

    album = Album(report.files)
    panel(album.use(image_id), boxes, caption="found")       # an <svg>

A picture is embedded once and shown as often as needed. It is read from its file only when it is asked for, so the
memory this takes is that of the few pictures that are shown.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from retinaserve.training.draw import open_picture

LONGER_SIDE = 400  # px of an embedded copy
QUALITY = 60  # of WebP
MOST_BYTES = 1_200_000  # of all copies together, before base64: keeps the page below 2 MB
LETTER = 7.4  # px of the widest usual letter of a label
MOST_LABELS = 6  # a panel with more boxes only names the wrong ones


@dataclass(frozen=True)
class Copy:
    """An embedded picture; `first` when its pixels still have to be written."""

    image_id: int
    size: tuple[int, int]  # width, height of the copy
    scale: float  # copy / original
    uri: str
    first: bool


@dataclass(frozen=True)
class Box:
    """A box to draw, in the original's pixels."""

    corners: npt.NDArray[np.float64]  # x1 y1 x2 y2
    name: str  # the class
    note: str  # what became of it, told by a tooltip and the label of a wrong one
    kind: str  # its CSS class: truth or said
    wrong: bool
    step: int  # truth: the threshold's place up to which it is found; said: up to which it is shown


class Album:
    """Hands out embedded copies until MOST_BYTES are spent."""

    def __init__(self, files: Mapping[int, Path]) -> None:
        self._files = files
        self._copies: dict[int, Copy] = {}
        self._left = MOST_BYTES

    def use(self, image_id: int) -> Copy | None:
        """Return a picture's copy, None for one that can't be read or has no room left."""
        known = self._copies.get(image_id)
        if known:
            return Copy(known.image_id, known.size, known.scale, known.uri, first=False)
        try:
            picture = open_picture(self._files[image_id])
        except (OSError, Image.DecompressionBombError):
            return None
        scale = min(1.0, LONGER_SIDE / max(picture.size))
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        buffer = io.BytesIO()
        picture.resize(size, Image.Resampling.LANCZOS).save(buffer, "WEBP", quality=QUALITY, method=4)
        if len(buffer.getvalue()) > self._left:
            return None
        self._left -= len(buffer.getvalue())
        uri = f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
        self._copies[image_id] = copy = Copy(image_id, size, scale, uri, first=True)
        return copy


def panel(copy: Copy, boxes: Sequence[Box], *, caption: str) -> str:
    """Return a figure with the picture and its boxes; the caption is plain text."""
    width, height = copy.size
    shown = f'<use href="#picture-{copy.image_id}"/>'
    if copy.first:
        shown = f'<image id="picture-{copy.image_id}" width="{width}" height="{height}" href="{copy.uri}"/>'
    # What is small is drawn last, or a larger box would take its tooltip.
    ordered = sorted(boxes, key=lambda box: -_area(box))
    drawn = "".join(_drawn(box, copy, named=len(boxes) <= MOST_LABELS) for box in ordered)
    return (
        f'<figure><svg class="picture" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(caption)}">'
        f"{shown}{drawn}</svg><figcaption>{escape(caption)}</figcaption></figure>"
    )


def _drawn(box: Box, copy: Copy, *, named: bool) -> str:
    x1, y1, x2, y2 = (round(float(value) * copy.scale, 1) for value in box.corners)
    note = escape(f"{box.name}: {box.note}")
    label = f"{box.name}: {box.note}" if box.wrong and box.kind == "said" else box.name
    above = y1 - 3 if y1 > 14 else y1 + 12
    x = max(2.0, min(x1, copy.size[0] - LETTER * len(label)))
    always = " named" if named else ""
    return (
        f'<g class="box {box.kind}{" wrong" if box.wrong else ""}{always}" data-step="{box.step}">'
        f"<title>{note}</title>"
        f'<rect x="{x1}" y="{y1}" width="{max(0.5, x2 - x1):.1f}" height="{max(0.5, y2 - y1):.1f}"/>'
        f'<text x="{x:.1f}" y="{above:.1f}">{escape(label)}</text></g>'
    )


def _area(box: Box) -> float:
    x1, y1, x2, y2 = box.corners
    return float((x2 - x1) * (y2 - y1))
