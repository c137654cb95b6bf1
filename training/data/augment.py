"""Which images training looks at, and how: a seeded stream of batches, and flips, zooms, crops, changes of colour.

    for keys in Stream(len(dataset), settings, first=iteration): ...     # [(epoch, index), ...] a batch
    view = random_view("photometric", rng, boxes=boxes)         # View() does nothing: exactly what is served
    placement = place(view, (480, 640), Frame(size=(512, 512)))
    target = place_labels(labels, placement)

A view is drawn first; its placement, in whole pixels, is the same for every loader.
The presets are a ladder: each does what those before it do, and one thing more. "basic" stands beside it: zooms
without crops and changes of brightness and contrast, for small sets of images that are all alike.

The stream is endless, and can be entered at any iteration. It is one shuffled epoch after the other, cut into
batches without regard to where an epoch ends, so a batch may be larger than the set. Everything random is a
function of (seed, epoch, image): a resumed run, one with other workers, another loader or more processes sees what
an uninterrupted one would have seen.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from retinaserve.training.data.dataset import FloatArray, Labels
from retinaserve.training.images.resize import RESIZES, Resize, scaled
from retinaserve.training.pixels import Decoding
from retinaserve.training.spec import DetectorSpec

if TYPE_CHECKING:  # the command's options name MODES, and need not wait for torch
    from torch import Tensor

    from retinaserve.training.model.losses import Target

LADDER = ("none", "flip", "multiscale", "crop", "photometric")
MODES = (*LADDER, "basic")
CROPPING = ("crop", "photometric")
ZOOM = (0.7, 1.35)
BRIGHTNESS, CONTRAST, SATURATION, HUE = 0.2, 0.2, 0.4, 10.0  # hue in degrees
Loader = Literal["torch", "dali"]
WHOLE = (0.0, 0.0, 1.0, 1.0)
CROP_AREA, CROP_ASPECT, CROP_TRIES = (0.3, 1.0), 1.5, 20
# Luma and two colour axes of NTSC: what hue turns and saturation stretches leaves the luma as it was.
YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])

SMALLEST = 1.0  # pixels of a box's side after augmentation
KEPT_AREA = 0.25  # of a box: what is cut off more than that is not learnt
MULTIPLE = 32  # of a free canvas's sides, as the backbone halves five times

Matrix = npt.NDArray[np.float64]
Boxes = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class View:
    """How to look at an image: all values relative, so that one view fits any size."""

    flip: bool = False
    zoom: float = 1.0  # of the scale without augmentation
    # Where the image lies in the canvas: 0 at the top left as served, 1 at the bottom right; an image larger
    # than the canvas is cut accordingly.
    across: float = 0.0
    down: float = 0.0
    gain: float = 1.0
    offset: float = 0.0  # added after the gain, of 255
    window: tuple[float, float, float, float] = WHOLE  # x1, y1, x2, y2: the part of the image that is looked at
    saturation: float = 1.0
    hue: float = 0.0  # degrees

    @property
    def recolours(self) -> bool:
        """Whether the colours of a pixel mix; a gain and an offset don't."""
        return self.saturation != 1 or self.hue != 0

    def colours(self) -> tuple[Matrix, Matrix]:
        """Return the (3, 3) matrix and the (3,) offset that make a view's RGB of a image's, in 0..255."""
        angle = math.radians(self.hue)
        cos, sin = self.saturation * math.cos(angle), self.saturation * math.sin(angle)
        turn = np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])
        mix = np.linalg.inv(YIQ) @ turn @ YIQ if self.recolours else np.eye(3)
        return self.gain * mix, np.full(3, 255 * self.offset)


def random_view(
    mode: str, rng: np.random.Generator, *, boxes: Boxes | None = None, zoom: tuple[float, float] = ZOOM
) -> View:
    """Draw a view of an image; `boxes` (M, 4), relative to its size, are what a crop may not lose altogether."""
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
    """Draw a part of the image that has the middle of a box in it, if there is a box; else the whole."""
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


@dataclass(frozen=True)
class Frame:
    """How large images are trained on: as served, by `rule` and `size`, or by their shorter side.

    With `shorter`, an image is scaled until its shorter side measures that, or its longer side `longest`. A batch
    is as large as its largest canvas.
    """

    size: tuple[int, int]
    shorter: int | None = None
    longest: int = 1333
    rule: Resize = RESIZES["letterbox"]

    @property
    def base(self) -> int:
        """The shorter side that a zoom of 1 stands for, in pixels."""
        return self.shorter or min(self.size)


@dataclass(frozen=True)
class Placement:
    """A part of an image, resized and put into a canvas: whole pixels."""

    window: tuple[int, int, int, int]  # x1, y1, x2, y2 in the upright image
    size: tuple[int, int]  # (h, w) the window is resized to
    corner: tuple[int, int]  # (top, left) in the canvas; negative where the image is cut
    canvas: tuple[int, int]  # (h, w)
    flip: bool  # the resized window, before it is put into the canvas
    extent: tuple[float, float] | None = None  # (h, w) that pixels and boxes are mapped to, if it is not `size`


def place(view: View, original: tuple[int, int], frame: Frame) -> Placement:
    """Return where a view puts an image of an upright (h, w)."""
    height, width = original
    x1, y1 = math.floor(view.window[0] * width), math.floor(view.window[1] * height)
    x2, y2 = max(x1 + 1, math.ceil(view.window[2] * width)), max(y1 + 1, math.ceil(view.window[3] * height))
    window = (x1, y1, min(x2, width), min(y2, height))
    part = (window[3] - window[1], window[2] - window[0])
    if frame.shorter is None:
        size = frame.rule.resized(part, frame.size, zoom=view.zoom)
        if not frame.rule.fixed:
            as_served = part == original and view.zoom == 1
            extent = frame.rule.extent(original, frame.size) if as_served and frame.rule.by_factor else None
            return Placement(window, size, (0, 0), frame.rule.canvas(size, frame.size), view.flip, extent)
        top, left = (
            round(share * (room - side))
            for share, room, side in zip((view.down, view.across), frame.size, size, strict=True)
        )
        return Placement(window, size, (top, left), frame.size, view.flip)
    scale = min(frame.shorter * view.zoom / min(part), frame.longest / max(part))
    size = scaled(part, np.float32(scale))
    canvas = (-(-size[0] // MULTIPLE) * MULTIPLE, -(-size[1] // MULTIPLE) * MULTIPLE)
    return Placement(window, size, (0, 0), canvas, view.flip)


def place_labels(labels: Labels, placement: Placement) -> "Target":
    """Return an image's boxes in the canvas, without those that are mostly cut off."""
    import torch

    from retinaserve.training.model.losses import Target

    height, width = placement.size
    (x1, y1, x2, y2), (top, left), (canvas_h, canvas_w) = placement.window, placement.corner, placement.canvas
    high, wide = placement.extent or placement.size
    scale = np.array((wide / (x2 - x1), high / (y2 - y1)) * 2, np.float32)
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


class Batch(NamedTuple):
    """Images and what is in them."""

    images: "Tensor"  # (B, 3, H, W) of the spec's `pixels`, channels last in memory
    targets: "list[Target]"
    image_ids: list[int]


@dataclass(frozen=True)
class StreamSettings:
    """What the stream depends on. `batch` is all processes' together; each takes its own part of every batch."""

    batch: int
    seed: int = 0
    augment: str = "basic"
    workers: int = 0
    loader: Loader = "torch"
    shorter: int | None = None  # see augment.Frame
    longest: int = 1333
    jitter: tuple[int, int] | None = None  # the range of the shorter side, in pixels
    full_decode: bool = False  # all pixels of a JPEG
    rank: int = 0
    world: int = 1

    def decoding(self, spec: DetectorSpec) -> Decoding:
        """Return how images are decoded."""
        return Decoding(full=self.full_decode, value_range=spec.value_range)

    def frame(self, spec: DetectorSpec) -> Frame:
        """Return how large images are trained on."""
        return Frame(spec.size, self.shorter, self.longest, spec.resizing)

    def view(self, key: tuple[int, int], labels: Labels, original: tuple[int, int], spec: DetectorSpec) -> View:
        """Draw how the image at (epoch, index) is looked at."""
        rng = np.random.default_rng((self.seed, *key))
        base = self.frame(spec).base
        zoom = ZOOM if self.jitter is None else (self.jitter[0] / base, self.jitter[1] / base)
        height, width = original
        return random_view(self.augment, rng, boxes=labels.boxes / ((width, height) * 2), zoom=zoom)


class Stream:
    """The endless sampler: lists of (epoch, index), a process's part of a batch each, from batch `first` on."""

    def __init__(self, count: int, settings: StreamSettings, first: int = 0) -> None:
        self.count, self.settings, self.first = count, settings, first

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        share = self.settings.batch // self.settings.world
        own = slice(self.settings.rank * share, (self.settings.rank + 1) * share)
        position = self.first * self.settings.batch
        batch: list[tuple[int, int]] = []
        while True:
            epoch, start = divmod(position, self.count)
            order = np.random.default_rng((self.settings.seed, epoch)).permutation(self.count)
            for index in order[start:]:
                batch.append((epoch, int(index)))
                if len(batch) == self.settings.batch:
                    yield batch[own]
                    batch = []
            position = (epoch + 1) * self.count
