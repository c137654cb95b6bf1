"""Anchor tables (levels, A, 4) as each family makes them: offsets from a cell's top left corner, in pixels.

    torchvision_anchors()[0]        # P3's nine
    plain_anchors(sizes, ratios, order="scale", centre=0.0)

A table is what the spec keeps; ratios are height / width everywhere. How far a cell is from the next is not here.
"""

from collections.abc import Sequence

import numpy as np
import torch

from retinaserve.training.anchors import FloatArray
from retinaserve.training.errors import UserError
from retinaserve.training.spec import STRIDES

Sizes = Sequence[Sequence[float]]

RATIOS = (0.5, 1.0, 2.0)
OCTAVES = tuple(2 ** (third / 3) for third in range(3))
TORCHVISION_SIZES = tuple(
    (side, int(side * OCTAVES[1]), int(side * OCTAVES[2])) for side in (32, 64, 128, 256, 512)
)
SIZES = tuple(tuple(4 * stride * scale for scale in OCTAVES) for stride in STRIDES)  # 32 to 512, three an octave
ODTK_CONVENTIONS = ("current", "legacy")


def torchvision_anchors(sizes: Sizes = TORCHVISION_SIZES, ratios: Sequence[float] = RATIOS) -> FloatArray:
    """Return torchvision's anchors: centred on the cell's corner, rounded, ratio-major."""
    levels = []
    for level in sizes:
        sides = torch.tensor(level, dtype=torch.float32)
        heights = torch.tensor(ratios, dtype=torch.float32).sqrt()
        w = ((1 / heights)[:, None] * sides[None, :]).flatten()
        h = (heights[:, None] * sides[None, :]).flatten()
        levels.append((torch.stack((-w, -h, w, h), dim=1) / 2).round())
    table: FloatArray = torch.stack(levels).numpy()
    return table


def plain_anchors(
    sizes: Sizes, ratios: Sequence[float], *, order: str, centre: float, strides: Sequence[int] = STRIDES
) -> FloatArray:
    """Return anchors that are not rounded.

    sizes: the square roots of the areas, a level each; order: what changes slower, "scale" or "ratio"; centre: of
    the anchors in the cell, in strides.
    """
    levels = []
    for stride, level in zip(strides, sizes, strict=True):
        pairs = (
            [(s, r) for s in level for r in ratios]
            if order == "scale"
            else [(s, r) for r in ratios for s in level]
        )
        side, ratio = np.array(pairs, np.float64).T
        half = np.stack((side / np.sqrt(ratio), side * np.sqrt(ratio)), axis=1) / 2
        levels.append(np.concatenate((centre * stride - half, centre * stride + half), axis=1))
    table: FloatArray = np.stack(levels).astype(np.float32)
    return table


def odtk_anchors(convention: str, *, ratios: Sequence[float], scales: Sequence[float]) -> FloatArray:
    """Return the predecessor's anchors, scale-major, as half-open boxes.

    It counts a box's last pixel as inside: its x2 is one less, its widths are x2 - x1 + 1. So the
    current anchors measure a pixel more than their nominal size, and the legacy ones, rounded, exactly it.
    """
    if convention not in ODTK_CONVENTIONS:
        raise UserError(f"anchors {convention!r} are not known", f"one of: {', '.join(ODTK_CONVENTIONS)}")
    legacy = convention == "legacy"
    scale = torch.tensor(list(scales)).repeat_interleave(len(ratios))
    ratio = torch.tensor(list(ratios)).repeat(len(scales))
    levels = []
    for stride in STRIDES:
        w = (stride * stride / ratio).sqrt()
        w = w.round() if legacy else w
        h = (w * ratio).round() if legacy else w * ratio
        size = torch.stack((w, h), dim=1) * scale[:, None]
        last = (stride + size) / 2 - (1 if legacy else 0)  # the last pixel
        levels.append(torch.cat(((stride - size) / 2, last + 1), dim=1))
    table: FloatArray = torch.stack(levels).numpy()
    return table


def described(sizes: Sizes, ratios: Sequence[float], source: str) -> str:
    """Return the line that tells of a table."""
    shown = " ".join(",".join(f"{size:.4g}" for size in level) for level in sizes)
    return f"anchors: sizes {shown}, ratios {','.join(f'{ratio:g}' for ratio in ratios)} ({source})"
