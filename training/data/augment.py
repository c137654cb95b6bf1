"""What training does to a picture on its way into the network: flips, zooms, crops, and changes of colour.

    view = random_view("photometric", rng, boxes=boxes)
    view = View()            # nothing at all: exactly what is served

A view is drawn first and applied later, to the pixels and to the boxes, by whichever loader reads the picture.
The presets are a ladder: each does what those before it do, and one thing more. "basic" stands beside it: zooms
without crops and changes of brightness and contrast, for small sets of pictures that are all alike.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

LADDER = ("none", "flip", "multiscale", "crop", "photometric")
MODES = (*LADDER, "basic")
CROPPING = ("crop", "photometric")
ZOOM = (0.7, 1.35)
BRIGHTNESS, CONTRAST, SATURATION, HUE = 0.2, 0.2, 0.4, 10.0  # hue in degrees
WHOLE = (0.0, 0.0, 1.0, 1.0)
CROP_AREA, CROP_ASPECT, CROP_TRIES = (0.3, 1.0), 1.5, 20
# Luma and two colour axes of NTSC: what hue turns and saturation stretches leaves the luma as it was.
YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])

Matrix = npt.NDArray[np.float64]
Boxes = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class View:
    """How to look at a picture: all values relative, so that one view fits any size."""

    flip: bool = False
    zoom: float = 1.0  # of the scale without augmentation
    # Where the picture lies in the canvas: 0 at the top left as served, 1 at the bottom right; a picture larger
    # than the canvas is cut accordingly.
    across: float = 0.0
    down: float = 0.0
    gain: float = 1.0
    offset: float = 0.0  # added after the gain, of 255
    window: tuple[float, float, float, float] = WHOLE  # x1, y1, x2, y2: the part of the picture that is looked at
    saturation: float = 1.0
    hue: float = 0.0  # degrees

    @property
    def recolours(self) -> bool:
        """Whether the colours of a pixel mix; a gain and an offset don't."""
        return self.saturation != 1 or self.hue != 0

    def colours(self) -> tuple[Matrix, Matrix]:
        """Return the (3, 3) matrix and the (3,) offset that make a view's RGB of a picture's, in 0..255."""
        angle = math.radians(self.hue)
        cos, sin = self.saturation * math.cos(angle), self.saturation * math.sin(angle)
        turn = np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])
        mix = np.linalg.inv(YIQ) @ turn @ YIQ if self.recolours else np.eye(3)
        return self.gain * mix, np.full(3, 255 * self.offset)


def random_view(
    mode: str, rng: np.random.Generator, *, boxes: Boxes | None = None, zoom: tuple[float, float] = ZOOM
) -> View:
    """Draw a view of a picture; `boxes` (M, 4), relative to its size, are what a crop may not lose altogether."""
    if mode == "none":
        return View()
    flip = bool(rng.random() < 0.5)
    if mode == "flip":
        return View(flip)
    gain = rng.uniform(1 - CONTRAST, 1 + CONTRAST) if mode in ("basic", "photometric") else 1.0
    factor, across, down = float(np.exp(rng.uniform(*np.log(zoom)))), float(rng.random()), float(rng.random())
    # Around middle grey, so that contrast and brightness are independent.
    offset = (1 - gain) / 2 + rng.uniform(-BRIGHTNESS, BRIGHTNESS) if gain != 1 else 0.0
    window = _window(rng, boxes) if mode in CROPPING and rng.random() < 0.5 else WHOLE
    if mode != "photometric":
        return View(flip, factor, across, down, gain, offset, window)
    saturation, hue = rng.uniform(1 - SATURATION, 1 + SATURATION), rng.uniform(-HUE, HUE)
    return View(flip, factor, across, down, gain, offset, window, saturation, hue)


def _window(rng: np.random.Generator, boxes: Boxes | None) -> tuple[float, float, float, float]:
    """Draw a part of the picture that has the middle of a box in it, if there is a box; else the whole."""
    for _ in range(CROP_TRIES):
        area = rng.uniform(*CROP_AREA)
        aspect = np.exp(rng.uniform(-np.log(CROP_ASPECT), np.log(CROP_ASPECT)))
        width, height = min(1.0, float(np.sqrt(area * aspect))), min(1.0, float(np.sqrt(area / aspect)))
        x, y = float(rng.random()) * (1 - width), float(rng.random()) * (1 - height)
        if boxes is None or not len(boxes):
            return x, y, x + width, y + height
        middles = (boxes[:, :2] + boxes[:, 2:]) / 2
        if ((middles >= (x, y)) & (middles < (x + width, y + height))).all(axis=1).any():
            return x, y, x + width, y + height
    return WHOLE
