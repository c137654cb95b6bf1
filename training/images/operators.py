"""An image at another size in DALI's operators: what letterbox.py does in numpy's, served and in training.

    resized(image, shape, (rows, columns), RESIZES["detectron2"], types.UINT8)

It imports nothing of ours: `build` copies it into Triton model directories.
"""

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import nvidia.dali.math as dmath
from nvidia.dali import fn, types

if TYPE_CHECKING:
    from .resize import Resize


def resized(image: Any, shape: Any, size: Any, rule: "Resize", kind: Any, area: Any = None) -> Any:
    """Return an image at `size` by a rule, as `kind`, or as bytes by rules that always round.

    shape: the image's own, as `size` (h, w) in float32 on the CPU.
    area: what is resized of it, y1, x1, y2, x2, all without one; whole pixels where the rule has no antialiasing.
    """
    height, width, rows, columns = shape[0], shape[1], size[0], size[1]
    resize = partial(fn.resize, interp_type=types.INTERP_LINEAR, antialias=rule.antialias)
    y1, x1, y2, x2 = (0.0, 0.0, height, width) if area is None else (area[each] for each in range(4))
    across = {"roi_start": fn.stack(0.0, x1), "roi_end": fn.stack(height, x2)}
    down = {"roi_start": fn.stack(y1, 0.0), "roi_end": fn.stack(y2, columns)}
    if rule.fixed_point:
        image = resize(image, resize_y=height, resize_x=columns, dtype=types.FLOAT, **across)
        return _between_rows(dmath.floor(128.0 * image), (y1, y2), (rows, columns))
    if rule.passes:
        image = resize(image, resize_y=height, resize_x=columns, dtype=types.UINT8, **across)
        return resize(image, resize_y=rows, resize_x=columns, dtype=types.UINT8, **down)
    part = {} if area is None else {"roi_start": fn.stack(y1, x1), "roi_end": fn.stack(y2, x2)}
    return resize(image, resize_y=rows, resize_x=columns, dtype=kind, **part)


def _between_rows(image: Any, span: tuple[Any, Any], size: tuple[Any, Any]) -> Any:
    """Return bytes of 128ths of a level, at other rows: OpenCV's second pass, of products in whole quarters."""
    (y1, y2), (rows, columns) = span, size
    old = y2 - y1
    # Half a step aside of the border between two rows, where float32 would decide.
    starts = [offset + 0.25 / rows for offset in (-0.5, 0.5)]
    nearest = partial(fn.resize, resize_y=rows, interp_type=types.INTERP_NN)
    count: Any = partial(nearest, _numbers(old), resize_x=1.0)
    first, second = (count(roi_start=fn.stack(start, 0.0), roi_end=fn.stack(old + start, 1.0)) for start in starts)
    high, new = (fn.cast(each, dtype=types.FLOAT64) for each in (old, rows))
    at = fn.cast((_numbers(rows) + 0.5) * (high / new) - 0.5, dtype=types.FLOAT)
    nearer = dmath.clamp((at - first) / dmath.max(second - first, 1.0), 0.0, 1.0)
    weight = dmath.floor(2048.0 * nearer + 0.5)
    odd = weight - 2.0 * dmath.floor(0.5 * weight)
    weight = weight - odd * fn.cast(weight - 2048.0 * nearer == 0.5, dtype=types.FLOAT)  # a half to even
    total: Any = 0.0
    for start, part in zip(starts, (2048.0 - weight, weight), strict=True):
        part = part.gpu() if image.device == "gpu" else part
        corners = {"roi_start": fn.stack(y1 + start, 0.0), "roi_end": fn.stack(y2 + start, columns)}
        total += dmath.floor(nearest(image, resize_x=columns, **corners) * (part / 65536.0))
    return fn.cast(total / 4.0 + 0.01, dtype=types.UINT8)  # a half is rounded up


def _numbers(count: Any) -> Any:
    """Return 0, 1, ... as a (count, 1, 1) image; `count` is known at run time alone."""
    ends = types.Constant(np.array([[[0]], [[1]]], np.float32), layout="HWC")
    ramp = fn.resize(
        ends,
        resize_y=count,
        resize_x=1.0,
        roi_start=[0.5, 0.0],
        roi_end=[1.5, 1.0],
        interp_type=types.INTERP_LINEAR,
        antialias=False,
    )
    return dmath.floor(ramp * count)
