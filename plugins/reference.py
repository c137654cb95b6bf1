"""The arithmetic from raw heads to boxes in NumPy float32: what the graft, the torch path and the kernels equal.

    best, boxes, classes = decode(logits, deltas, letterbox, anchors=table, strides=(8, 16), ...)
    count, boxes, scores, classes = nms(best, boxes, classes, letterbox, iou=0.5, max_detections=100)

It is written to be read beside the kernels and to be right, not to be fast, and it imports nothing of ours:
the anchor table, strides and thresholds are arguments. NaN is not looked after.

Candidates carry logits, and only the survivors' become scores: two logits can round to one score, and every
library's sigmoid rounds a little differently, so the logit is the one order that all of them share.
"""

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
Floats = npt.NDArray[np.floating[Any]]  # of any width: the arithmetic is float32
IntArray = npt.NDArray[np.int32]
Float = TypeVar("Float", bound=np.floating[Any])


def decode(
    logits: Sequence[Floats],
    deltas: Sequence[Floats],
    letterbox: Floats,
    *,
    anchors: Floats,
    strides: Sequence[int],
    threshold_logit: float,
    topk: int,
    delta_clamp: float,
    clip_margin: float = 0.0,
) -> tuple[FloatArray, FloatArray, IntArray]:
    """Return the candidates of every level as logits (B, N), boxes (B, N, 4) and classes (B, N).

    logits: a level (B, A*C, h, w), channel a*C + c; deltas: (B, A*4, h, w), channel a*4 + i, i of
    (dx, dy, dw, dh); letterbox: (B, 4) original h, w, resized h, w; anchors: (levels, A, 4) xyxy from the
    cell's origin. N is the sum of min(topk, A*C*h*w) over the levels: each level has its own run of slots,
    best logit first, ties to the lower flat index. The slots behind the last logit above the threshold are
    empty: logit -inf, the rest zero. Boxes are pixels of the letterboxed image, clipped to the resized area less
    `clip_margin` pixels at the right and at the bottom; a negative margin widens it on all four sides.
    """
    limits = letterbox.astype(np.float32) - np.array((0, 0, clip_margin, clip_margin), np.float32)
    levels = [
        _decode_level(
            level_logits.astype(np.float32),
            level_deltas.astype(np.float32),
            limits,
            table=table.astype(np.float32),
            stride=stride,
            threshold=np.float32(threshold_logit),
            topk=topk,
            clamp=np.float32(delta_clamp),
            lowest=np.float32(min(0.0, clip_margin)),
        )
        for level_logits, level_deltas, table, stride in zip(logits, deltas, anchors, strides, strict=True)
    ]
    best, boxes, labels = (np.concatenate(parts, axis=1) for parts in zip(*levels, strict=True))
    return best, boxes, labels


def _decode_level(
    logits: FloatArray,
    deltas: FloatArray,
    letterbox: FloatArray,
    *,
    table: FloatArray,
    stride: int,
    threshold: np.float32,
    topk: int,
    clamp: np.float32,
    lowest: np.float32,
) -> tuple[FloatArray, FloatArray, IntArray]:
    batch, channels, height, width = logits.shape
    class_count = channels // len(table)
    cells = height * width
    slots = min(topk, channels * cells)
    best = np.full((batch, slots), -np.inf, np.float32)
    boxes = np.zeros((batch, slots, 4), np.float32)
    labels = np.zeros((batch, slots), np.int32)
    size = table[:, 2:] - table[:, :2]  # (A, 2) of w, h
    centre = (table[:, :2] + table[:, 2:]) * np.float32(0.5)  # (A, 2) of x, y

    for image in range(batch):
        flat = logits[image].reshape(-1)  # (A*C, h, w) -> (A*C*h*w)
        above = np.flatnonzero(flat > threshold)
        index = above[np.argsort(-flat[above], kind="stable")][:topk]
        count = len(index)
        channel, cell = np.divmod(index, cells)
        anchor, label = np.divmod(channel, class_count)
        y, x = np.divmod(cell, width)

        delta = deltas[image].reshape(-1, 4, cells)[anchor, :, cell]  # (count, 4)
        origin = (np.stack((x, y), axis=1) * stride).astype(np.float32)
        middle = delta[:, :2] * size[anchor] + (centre[anchor] + origin)
        half = np.exp(np.minimum(delta[:, 2:], clamp)) * size[anchor] * np.float32(0.5)
        limit = np.tile(letterbox[image, [3, 2]], 2)  # resized w, h, w, h
        corners = np.concatenate((middle - half, middle + half), axis=1)

        best[image, :count] = flat[index]
        boxes[image, :count] = np.clip(corners, lowest, limit)
        labels[image, :count] = label
    return best, boxes, labels


def nms(
    logits: FloatArray,
    boxes: FloatArray,
    classes: IntArray,
    letterbox: Floats,
    *,
    iou: float,
    max_detections: int,
) -> tuple[IntArray, FloatArray, FloatArray, IntArray]:
    """Return num_detections (B, 1), boxes (B, K, 4), scores (B, K) and classes (B, K), zeros behind the last.

    Candidates with a logit of -inf are empty slots. Best logit first, ties to the earlier candidate; one
    suppresses the later ones of its class whose IoU with it is above `iou`. The survivors' boxes are scaled
    from the letterboxed image to the original and clipped to it.
    """
    batch = len(logits)
    counts = np.zeros((batch, 1), np.int32)
    out_boxes = np.zeros((batch, max_detections, 4), np.float32)
    out_scores = np.zeros((batch, max_detections), np.float32)
    out_classes = np.zeros((batch, max_detections), np.int32)
    for image in range(batch):
        order = np.argsort(-logits[image], kind="stable")
        waiting = order[logits[image, order] > -np.inf]
        kept: list[int] = []
        while len(waiting) and len(kept) < max_detections:
            best, rest = waiting[0], waiting[1:]
            kept.append(int(best))
            suppressed = classes[image, rest] == classes[image, best]
            overlap = iou_matrix(boxes[image, [best]], boxes[image, rest[suppressed]])[0]
            suppressed[suppressed] = overlap > np.float32(iou)
            waiting = rest[~suppressed]

        original_h, original_w, resized_h, resized_w = letterbox[image].astype(np.float32)
        scale = np.array([original_w / resized_w, original_h / resized_h] * 2, np.float32)
        limit = np.array([original_w, original_h] * 2, np.float32)
        counts[image] = len(kept)
        out_boxes[image, : len(kept)] = np.clip(boxes[image, kept] * scale, np.float32(0), limit)
        out_scores[image, : len(kept)] = sigmoid(logits[image, kept])
        out_classes[image, : len(kept)] = classes[image, kept]
    return counts, out_boxes, out_scores, out_classes


def iou_matrix(boxes: npt.NDArray[Float], others: npt.NDArray[Float]) -> npt.NDArray[Float]:
    """Return the IoU (N, M) of boxes (N, 4) with others (M, 4), in their own float type.

    0 where the union is empty, so a box without area overlaps nothing, not even itself.
    """
    one, other = boxes[:, None], others[None]
    overlap = np.minimum(one[..., 2:], other[..., 2:]) - np.maximum(one[..., :2], other[..., :2])
    overlap = np.maximum(overlap, 0)
    intersection = overlap[..., 0] * overlap[..., 1]
    area = (one[..., 2] - one[..., 0]) * (one[..., 3] - one[..., 1])
    areas = (other[..., 2] - other[..., 0]) * (other[..., 3] - other[..., 1])
    union = area + areas - intersection
    ratio: npt.NDArray[Float] = np.divide(intersection, union, out=np.zeros_like(union), where=union > 0)
    return ratio


def sigmoid(logit: FloatArray) -> FloatArray:
    """Return 1 / (1 + exp(-logit)) in float32."""
    value: FloatArray = np.float32(1) / (np.float32(1) + np.exp(-logit))
    return value
