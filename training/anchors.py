"""Anchor tables and grids, in NumPy: what the model, the graft and the plugins all start from.

    table = base_anchors((8, 16, 32, 64, 128))     # (5, 9, 4)
    boxes = grid_anchors(table[0], 8, 64, 64)      # (64*64*9, 4)

A table is all that tells one anchor convention from another, so it is stored in the spec and nothing here is
consulted again once a spec exists.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]


def base_anchors(
    strides: Sequence[int],
    *,
    base_size: float = 4.0,
    scales: Sequence[float] = (1.0, 2 ** (1 / 3), 2 ** (2 / 3)),
    ratios: Sequence[float] = (0.5, 1.0, 2.0),
) -> FloatArray:
    """Return the (levels, A, 4) xyxy offsets from a cell's top left corner, in pixels.

    An anchor at ratio 1 and scale 1 measures `base_size * stride` on a side (4 in the RetinaNet paper,
    https://arxiv.org/abs/1708.02002, section 4); `ratios` are height / width and keep the area. Anchors are
    centred half a stride into the cell and not rounded. Order: scale-major, ratio-minor.
    """
    table = np.empty((len(strides), len(scales) * len(ratios), 4), np.float64)
    for level, stride in enumerate(strides):
        for index, (scale, ratio) in enumerate((s, r) for s in scales for r in ratios):
            side = base_size * stride * scale
            half_w, half_h = side / ratio**0.5 / 2, side * ratio**0.5 / 2
            centre = stride / 2
            table[level, index] = (centre - half_w, centre - half_h, centre + half_w, centre + half_h)
    return table.astype(np.float32)


def grid_anchors(table: FloatArray, stride: int, height: int, width: int) -> FloatArray:
    """Return one level's anchors as (A*height*width, 4), ordered like a flattened (A, height, width) map."""
    x = np.arange(width, dtype=np.float32) * stride
    y = np.arange(height, dtype=np.float32) * stride
    shift_y, shift_x = np.meshgrid(y, x, indexing="ij")
    shift = np.stack((shift_x, shift_y, shift_x, shift_y), axis=-1)  # (H, W, 4)
    anchors: FloatArray = (table[:, None, None, :] + shift[None]).reshape(-1, 4).astype(np.float32)
    return anchors
