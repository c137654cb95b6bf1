"""How large an image is when the network sees it: each author's rule, by name, in plain arithmetic.

    rule = RESIZES["torchvision"]
    resized = rule.resized((480, 640), (800, 1333))    # (800, 1066) of an upright (h, w)
    rule.canvas(resized, (800, 1333))                  # (800, 1088)

A rule rounds as its author does, in his arithmetic: a pixel more moves every box. The module imports nothing of
ours: `build` copies it into Triton model directories. Pixels are resized in letterbox.py, and by DALI when served.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Size = tuple[int, int]  # h, w
PixelType = Literal["uint8", "float32"]


@dataclass(frozen=True)
class Resize:
    """What becomes of an image's size; `size` is the spec's.

    sides: "fit" scales into `size` and pads to it; "short" scales until the shorter side measures size[0], or the
    longer side size[1] if that is less, and pads each side to a multiple; "stretch" fills `size`.
    """

    sides: Literal["fit", "short", "stretch"]
    rounding: Literal["half_up", "half_even", "floor"] = "half_up"
    antialias: bool = True  # bilinear over all pixels where it shrinks, or of the four nearest alone
    passes: bool = False  # rounded after the columns, before the rows, as Pillow does
    fixed_point: bool = False  # bytes as OpenCV's, which cuts off bits: a tenth are a level lower
    blur: bool = False  # before, by a Gaussian of (old / new - 1) / 2, as skimage does against aliasing
    multiple: int = 1  # of the canvas's sides
    in_turn: bool = False  # the longer side is cut by a second factor: another last bit
    by_factor: bool = False  # pixels and boxes are mapped by the factor, not by the rounded sides
    beyond: bool = False  # the next multiple even where a side is one already
    pixels: PixelType = "uint8"  # of the canvas; float32 for what is not rounded: the image, or its padding alone
    usual: Size = (800, 1333)  # `size` where nobody says one

    @property
    def fixed(self) -> bool:
        """Whether every image has the same canvas."""
        return self.sides != "short"

    @property
    def rounds(self) -> bool:
        """Whether what is resized is rounded, which a canvas of floats may hold too."""
        return self.passes or self.fixed_point or self.pixels == "uint8"

    @property
    def whole(self) -> bool:
        """Whether a JPEG is decoded in full: of a smaller one single pixels are averages, and Pillow's differ."""
        return self.passes or not self.antialias

    def resized(self, original: Size, size: Size, *, zoom: float = 1.0) -> Size:
        """Return (h, w) of an image, at least 1; `zoom` is a further factor, for augmentation."""
        if self.sides == "stretch":
            return scaled(size, zoom)
        if self.sides == "fit":  # in float32, as the preprocessing has always computed it
            ratios = np.divide(size, original, dtype=np.float32)
            return scaled(original, ratios.min() * np.float32(zoom))
        first, most = size[0] * zoom / min(original), size[1] / max(original)
        if self.in_turn and max(original) * first > size[1]:
            second = size[1] / (max(original) * first)
            return scaled((original[0] * first, original[1] * first), second, self.rounding)
        return scaled(original, min(first, most), self.rounding)

    def extent(self, original: Size, size: Size) -> tuple[float, float]:
        """Return (h, w), in the network's pixels, that the image is mapped to; what LETTERBOX holds."""
        if not self.by_factor:
            return self.resized(original, size)
        factor = min(size[0] / min(original), size[1] / max(original))
        return original[0] * factor, original[1] * factor

    def canvas(self, resized: Size, size: Size) -> Size:
        """Return (h, w) of what the network is given, with the resized image at its top left."""
        if self.fixed:
            return size
        height, width = ((side - 1 + self.beyond) // self.multiple + 1 for side in resized)
        return height * self.multiple, width * self.multiple

    def largest(self, size: Size) -> Size:
        """Return (h, w) of the largest canvas of a landscape image; a portrait has them exchanged."""
        return self.canvas(size, size)

    def typical(self, size: Size) -> Size:
        """Return (h, w) of the canvas of a landscape photo, four by three."""
        return self.canvas(self.resized((3000, 4000), size), size)


RESIZES: Mapping[str, Resize] = {
    "letterbox": Resize("fit", usual=(512, 512)),
    # GeneralizedRCNNTransform (torchvision/models/detection/transform.py)
    "torchvision": Resize("short", "floor", antialias=False, multiple=32, pixels="float32"),
    # ResizeShortestEdge, Pillow's bilinear (detectron2/data/transforms/augmentation_impl.py)
    "detectron2": Resize("short", passes=True, multiple=32, in_turn=True, pixels="float32"),
    # Resize with keep_ratio, OpenCV's bilinear of bytes (mmcv/image/geometric.py)
    "mmdetection": Resize("short", antialias=False, fixed_point=True, multiple=32, pixels="float32"),
    # Resizer of yhenon's pytorch-retinanet, by skimage
    "yhenon": Resize(
        "short", "half_even", False, blur=True, multiple=32, beyond=True, pixels="float32", usual=(608, 1024)
    ),
    # resize_image of fizyr's keras-retinanet, by OpenCV of floats and a factor, and no padding
    "fizyr": Resize("short", "half_even", antialias=False, by_factor=True, pixels="float32"),
    # NVIDIA's retinanet-examples: Pillow's bilinear, padded to the largest stride
    "odtk": Resize("short", "floor", passes=True, multiple=128),
    # MLPerf's reference: GeneralizedRCNNTransform of a fixed size
    "mlperf": Resize("stretch", antialias=False, pixels="float32", usual=(800, 800)),
}


ROUNDINGS: Mapping[str, Callable[[Any], int]] = {
    "half_up": lambda side: math.floor(side + type(side)(0.5)),
    "half_even": round,
    "floor": math.floor,
}


def scaled(sides: tuple[float, float], ratio: float | np.float32, rounding: str = "half_up") -> Size:
    """Return scaled (h, w), rounded per axis, at least 1; in float32 for a ratio of that type."""
    kind: Any = type(ratio)
    height, width = (max(1, ROUNDINGS[rounding](kind(side) * ratio)) for side in sides)
    return height, width
