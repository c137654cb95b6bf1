"""Where a view puts a picture: in whole pixels, the same for every loader, and its boxes with it.

    placement = place(view, (480, 640), Frame(size=(512, 512)))
    target = place_labels(labels, placement)

Pixels are the loaders' own; nothing here touches them.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from retinaserve.training.data.augment import View
from retinaserve.training.data.dataset import FloatArray, Labels, resized_size
from retinaserve.training.model.losses import Target

SMALLEST = 1.0  # pixels of a box's side after augmentation
KEPT_AREA = 0.25  # of a box: what is cut off more than that is not learnt
MULTIPLE = 32  # of a free canvas's sides, as the backbone halves five times


@dataclass(frozen=True)
class Frame:
    """How large pictures are trained on: letterboxed into `size` as served, or by their shorter side.

    With `shorter`, a picture is scaled until its shorter side measures that, or its longer side `longest`, and a
    batch is as large as its largest picture.
    """

    size: tuple[int, int]
    shorter: int | None = None
    longest: int = 1333

    @property
    def base(self) -> int:
        """The shorter side that a zoom of 1 stands for, in pixels."""
        return self.shorter or min(self.size)


@dataclass(frozen=True)
class Placement:
    """A part of a picture, resized and put into a canvas: whole pixels."""

    window: tuple[int, int, int, int]  # x1, y1, x2, y2 in the upright picture
    size: tuple[int, int]  # (h, w) the window is resized to
    corner: tuple[int, int]  # (top, left) in the canvas; negative where the picture is cut
    canvas: tuple[int, int]  # (h, w)
    flip: bool  # the resized window, before it is put into the canvas


def place(view: View, original: tuple[int, int], frame: Frame) -> Placement:
    """Return where a view puts a picture of an upright (h, w)."""
    height, width = original
    x1, y1 = math.floor(view.window[0] * width), math.floor(view.window[1] * height)
    x2, y2 = max(x1 + 1, math.ceil(view.window[2] * width)), max(y1 + 1, math.ceil(view.window[3] * height))
    window = (x1, y1, min(x2, width), min(y2, height))
    part = (window[3] - window[1], window[2] - window[0])
    if frame.shorter is None:
        size = resized_size(part, frame.size, zoom=view.zoom)
        top, left = (
            round(share * (room - side))
            for share, room, side in zip((view.down, view.across), frame.size, size, strict=True)
        )
        return Placement(window, size, (top, left), frame.size, view.flip)
    scale = min(frame.shorter * view.zoom / min(part), frame.longest / max(part))
    free = (max(1, math.floor(part[0] * scale + 0.5)), max(1, math.floor(part[1] * scale + 0.5)))
    canvas = (-(-free[0] // MULTIPLE) * MULTIPLE, -(-free[1] // MULTIPLE) * MULTIPLE)
    return Placement(window, free, (0, 0), canvas, view.flip)


def place_labels(labels: Labels, placement: Placement) -> Target:
    """Return a picture's boxes in the canvas, without those that are mostly cut off."""
    height, width = placement.size
    (x1, y1, x2, y2), (top, left), (canvas_h, canvas_w) = placement.window, placement.corner, placement.canvas
    scale = np.array((width / (x2 - x1), height / (y2 - y1)) * 2, np.float32)
    whole = (labels.boxes - np.array((x1, y1) * 2, np.float32)) * scale
    boxes = np.clip(whole, 0, (width, height) * 2)
    if placement.flip:
        boxes[:, [0, 2]] = width - boxes[:, [2, 0]]
    boxes = np.clip(boxes + (left, top) * 2, 0, (canvas_w, canvas_h) * 2).astype(np.float32)
    kept = _worth_learning(boxes, whole)
    return Target(
        torch.from_numpy(boxes[kept]),
        torch.from_numpy(labels.classes[kept]),
        torch.from_numpy(labels.crowd[kept]),
    )


def _worth_learning(boxes: FloatArray, whole: FloatArray) -> npt.NDArray[np.bool_]:
    """Return which boxes have enough of their area left in the canvas, and a pixel a side."""
    sizes, before = boxes[:, 2:] - boxes[:, :2], whole[:, 2:] - whole[:, :2]
    kept: npt.NDArray[np.bool_] = (sizes.min(axis=1, initial=np.inf) >= SMALLEST) & (
        sizes.prod(axis=1) >= KEPT_AREA * before.prod(axis=1)
    )
    return kept
