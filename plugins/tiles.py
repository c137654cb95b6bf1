"""The arithmetic of tiles in NumPy: how an image is cut, and how the tiles' boxes become the image's again.

    windows = tile_windows((20_000, 20_000), (640, 640), overlap=0.2)      # (N, 4) x1 y1 x2 y2
    boxes, scores, classes = merge_tiles(windows, boxes, scores, classes, owners, size=(20_000, 20_000))

The client and the served `detector_tiled` run this same file. It imports nothing of ours but the IoU beside it.

A box is *cut* where it reaches a side of its window that is not a side of the image. The rule, for boxes of one
class from different windows:

1. Whole boxes are compared as in NMS, best score first: IoU above `iou` is the same object.
2. A cut box is the same object as a whole one if their IoU is above `iou`, or if it is the smaller of the two and
   more than half of it lies in the other: intersection over the smaller. The whole box stays.
3. Cut boxes that are left are joined where they face each other over a seam (one is cut at its right side, the
   other, further right, at its left; likewise below) and agree in what both windows saw: the IoU of their parts
   inside the windows' intersection is above `iou`. The joined box is their union.
4. What is left is compared as in 2, larger boxes first.

A box takes the best score of what it stands for. Boxes of one window are never compared: its own NMS did that.
"""

import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from .reference import FloatArray, IntArray, iou_matrix

OVERLAP = 0.2  # of a tile's side
COVERED = 0.5  # share of the smaller box that lies in the other
MARGIN = 1 / 64  # of a window's side: a box that comes so near to it is cut there
BMP = struct.Struct("<2sI4xIIiiHHI20x")  # a file's header, and that of 24 bits without compression

Windows = npt.NDArray[np.int64]
Indices = npt.NDArray[np.int64]


def tile_windows(size: tuple[int, int], tile: tuple[int, int], overlap: float = OVERLAP) -> Windows:
    """Return the windows (N, 4) x1 y1 x2 y2, row by row, that cover an image of size (h, w).

    Neighbours share at least `overlap` of a tile's side, rounded down to pixels. The last of a row or column is
    moved back to end with the image; an image that is smaller than a tile gives smaller windows.
    """
    rows, columns = (
        _starts(side, extent, extent - int(overlap * extent)) for side, extent in zip(size, tile, strict=True)
    )
    x, y = (grid.reshape(-1) for grid in np.meshgrid(columns, rows))
    return np.stack((x, y, np.minimum(x + tile[1], size[1]), np.minimum(y + tile[0], size[0])), axis=1)


def _starts(side: int, extent: int, step: int) -> Indices:
    last = max(0, side - extent)
    starts: Indices = np.append(np.arange(0, last, step), last)
    return starts


def encode_bmp(pixels: npt.NDArray[np.uint8]) -> bytes:
    """Return RGB (h, w, 3) as a BMP file: no pixel changes, and the encoding costs a copy."""
    height, width = pixels.shape[:2]
    stride = -(-3 * width // 4) * 4
    # A negative height: rows from the top.
    size = BMP.size + height * stride
    file = np.zeros(size, np.uint8)
    file[: BMP.size] = np.frombuffer(BMP.pack(b"BM", size, BMP.size, 40, width, -height, 1, 24, 0), np.uint8)
    stored = file[BMP.size :].reshape(height, stride)[:, : 3 * width].reshape(height, width, 3)
    for channel in range(3):  # all three at once take NumPy three times as long
        stored[..., 2 - channel] = pixels[..., channel]
    return file.tobytes()


def merge_tiles(
    windows: Windows,
    boxes: FloatArray,
    scores: FloatArray,
    classes: IntArray,
    owners: Indices,
    *,
    size: tuple[int, int],
    iou: float = 0.5,
) -> tuple[FloatArray, FloatArray, IntArray]:
    """Return boxes (N, 4), scores (N,) and classes (N,) of the whole image, best score first.

    boxes: (M, 4) in the image's pixels; owners: (M,) the window of each; size: (h, w) of the image.
    """
    boxes, scores = boxes.astype(np.float32), scores.astype(np.float32)
    sides = _cut_sides(windows[owners], boxes, size)  # (M, 4) left, top, right, bottom
    cut = sides.any(axis=1)
    pairs = np.concatenate([*_pairs(windows, boxes, classes, owners), np.empty((0, 2), np.int64)])
    alive = np.ones(len(boxes), np.bool_)

    whole = ~cut[pairs].any(axis=1)
    _absorb(pairs[whole], boxes, scores, alive, order=-scores, cut=cut, iou=iou)
    mixed = pairs[cut[pairs].sum(axis=1) == 1]
    _absorb(mixed, boxes, scores, alive, order=cut - scores, cut=cut, iou=iou)

    pairs = pairs[cut[pairs].all(axis=1) & alive[pairs].all(axis=1)]
    facing = pairs[_facing(windows[owners], boxes, sides, pairs, iou)]
    groups = np.arange(len(boxes))
    for one, other in facing:
        low, high = sorted((_root(groups, one), _root(groups, other)))
        groups[high] = low
    for member in np.unique(facing):
        first = _root(groups, member)
        if first != member:
            alive[member] = False
            scores[first] = max(scores[first], scores[member])
            boxes[first] = np.append(
                np.minimum(boxes[first, :2], boxes[member, :2]), np.maximum(boxes[first, 2:], boxes[member, 2:])
            )
    roots = np.array([[_root(groups, index) for index in pair] for pair in pairs], np.int64).reshape(-1, 2)
    roots = np.unique(roots[roots[:, 0] != roots[:, 1]], axis=0)
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    _absorb(roots, boxes, scores, alive, order=-area, cut=cut, iou=iou)

    kept = np.flatnonzero(alive)
    kept = kept[np.argsort(-scores[kept], kind="stable")]
    return boxes[kept], scores[kept], classes[kept].astype(np.int32)


def _cut_sides(windows: Windows, boxes: FloatArray, size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Return which sides (M, 4) of the boxes end at a side of their window that is not one of the image."""
    extent = windows[:, 2:] - windows[:, :2]
    inward = (boxes - windows) * np.array([1, 1, -1, -1])  # below 0 where a box ends in its tile's padding
    near = inward <= np.tile(np.maximum(1, MARGIN * extent), 2)
    inner: npt.NDArray[np.bool_] = near & (windows != np.array([0, 0, size[1], size[0]]))
    return inner


def _pairs(windows: Windows, boxes: FloatArray, classes: IntArray, owners: Indices) -> Iterator[Indices]:
    """Yield the pairs (P, 2), lower first, of boxes that touch, are of one class, and of different windows."""
    order = np.argsort(owners, kind="stable")
    bounds = np.searchsorted(owners[order], np.arange(len(windows) + 1))
    filled = np.flatnonzero(np.diff(bounds))
    for place, window in enumerate(filled):
        mine = order[bounds[window] : bounds[window + 1]]
        later = filled[place + 1 :]
        for other in later[_touch(windows[window], windows[later])]:
            theirs = order[bounds[other] : bounds[other + 1]]
            seen = mine[_touch(windows[other], boxes[mine])]  # what lies in the other window, even in part
            theirs = theirs[_touch(windows[window], boxes[theirs])]
            same = classes[seen][:, None] == classes[theirs][None]
            first, second = np.nonzero(same & _touch(boxes[seen][:, None], boxes[theirs][None]))
            if len(first):
                yield np.sort(np.stack((seen[first], theirs[second]), axis=1), axis=1)


def _touch(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Return whether rectangles (..., 4) have area in common."""
    inside: npt.NDArray[np.bool_] = (
        np.minimum(one[..., 2:], other[..., 2:]) > np.maximum(one[..., :2], other[..., :2])
    ).all(axis=-1)
    return inside


def _absorb(
    pairs: Indices,
    boxes: FloatArray,
    scores: FloatArray,
    alive: npt.NDArray[np.bool_],
    *,
    order: npt.NDArray[Any],
    cut: npt.NDArray[np.bool_],
    iou: float,
) -> None:
    """End what is the same object as a box that comes before it in `order`, ties to the lower index."""
    if not len(pairs):
        return
    swapped = order[pairs[:, 1]] < order[pairs[:, 0]]
    keeper, other = np.where(swapped[:, None], pairs[:, ::-1], pairs).T
    same = _same(boxes[keeper], boxes[other], cut[other], iou)
    keeper, other = keeper[same], other[same]
    for index in np.lexsort((other, keeper, order[keeper])):
        one, two = keeper[index], other[index]
        if alive[one] and alive[two]:
            alive[two] = False
            scores[one] = max(scores[one], scores[two])


def _same(keeper: FloatArray, other: FloatArray, cut: npt.NDArray[np.bool_], iou: float) -> npt.NDArray[np.bool_]:
    """Return which of the boxes (P, 4) are the same object as their keepers: rules 1 and 2."""
    shared = np.maximum(np.minimum(keeper[:, 2:], other[:, 2:]) - np.maximum(keeper[:, :2], other[:, :2]), 0)
    intersection = shared.prod(axis=1)
    areas = [(each[:, 2:] - each[:, :2]).prod(axis=1) for each in (keeper, other)]
    union = areas[0] + areas[1] - intersection
    same: npt.NDArray[np.bool_] = intersection > np.float32(iou) * union
    same |= cut & (areas[1] <= areas[0]) & (intersection > np.float32(COVERED) * areas[1])
    return same


def _facing(
    windows: Windows, boxes: FloatArray, sides: npt.NDArray[np.bool_], pairs: Indices, iou: float
) -> npt.NDArray[np.bool_]:
    """Return which pairs are two parts of one object: rule 3."""
    found = np.zeros(len(pairs), np.bool_)
    for number, (one, other) in enumerate(pairs):
        for axis in (0, 1):  # x, y
            low, high = (one, other) if windows[one, axis] < windows[other, axis] else (other, one)
            if sides[low, 2 + axis] and sides[high, axis] and windows[low, axis] < windows[high, axis]:
                shared = windows[[low, high]]
                left_top, right_bottom = shared[:, :2].max(axis=0), shared[:, 2:].min(axis=0)
                parts = np.clip(boxes[[low, high]], np.tile(left_top, 2), np.tile(right_bottom, 2))
                found[number] |= iou_matrix(parts[:1], parts[1:])[0, 0] > iou
    return found


def _root(groups: Indices, index: int) -> int:
    while groups[index] != index:
        index = int(groups[index])
    return index
