"""From raw heads to boxes in torch: the arithmetic of `plugins/reference.py`, batched, on any device.

    num_detections, boxes, scores, classes = detect(spec, model(images), letterbox)

For validation and offline inference. The served graph does the same with ONNX operators (build_tools/graph),
and the tests hold both to the reference. Nothing here is differentiable or meant to be exported.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from retinaserve.training.spec import DELTA_CLAMP, DetectorSpec

# Candidates are offered to NMS in runs of this length, best first: most pictures have their K survivors after
# one run, and the worst case never holds an N x N matrix.
CHUNK = 256

Heads = Sequence[tuple[Tensor, Tensor]]


@torch.no_grad()
def detect(spec: DetectorSpec, heads: Heads, letterbox: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return num_detections (B, 1), boxes (B, K, 4), scores (B, K) and classes (B, K), zeros behind the last.

    heads: (logits, deltas) a level, as spec.head_names describes them; letterbox: (B, 4) original h, w,
    resized h, w. Boxes are float32 pixels of the original picture; counts and classes are int32.
    """
    device = heads[0][0].device
    letterbox = letterbox.to(device, torch.float32)
    levels = [
        _decode_level(spec, level, logits, deltas, letterbox) for level, (logits, deltas) in enumerate(heads)
    ]
    logits, boxes, classes = (torch.cat(parts, dim=1) for parts in zip(*levels, strict=True))
    order = torch.argsort(logits, dim=1, descending=True, stable=True)
    logits, classes = logits.gather(1, order), classes.gather(1, order)
    boxes = boxes.gather(1, order[..., None].expand(-1, -1, 4))
    kept = _nms(logits, boxes, classes, iou=spec.nms_iou, limit=spec.max_detections)

    original, resized = letterbox[:, [1, 0, 1, 0]], letterbox[:, [3, 2, 3, 2]]
    boxes = torch.minimum(boxes * (original / resized)[:, None], original[:, None])
    counts = torch.zeros((len(kept), 1), dtype=torch.int32, device=device)
    out_boxes = torch.zeros((len(kept), spec.max_detections, 4), device=device)
    out_scores = torch.zeros((len(kept), spec.max_detections), device=device)
    out_classes = torch.zeros((len(kept), spec.max_detections), dtype=torch.int32, device=device)
    for image, mask in enumerate(kept):
        slots = mask.nonzero()[: spec.max_detections, 0]
        count = len(slots)
        counts[image] = count
        out_boxes[image, :count] = boxes[image, slots]
        out_scores[image, :count] = torch.sigmoid(logits[image, slots])
        out_classes[image, :count] = classes[image, slots].int()
    return counts, out_boxes, out_scores, out_classes


def _decode_level(
    spec: DetectorSpec, level: int, logits: Tensor, deltas: Tensor, letterbox: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return one level's candidates, best first: logits (B, n) with -inf for empty, boxes, classes."""
    batch, _, height, width = logits.shape
    cells, device = height * width, logits.device
    flat = logits.float().reshape(batch, -1)
    picks = [_best(row, spec.score_threshold_logit, spec.topk_candidates) for row in flat]
    slots = max(len(pick) for pick in picks)
    filled = torch.zeros((batch, slots), dtype=torch.bool, device=device)
    index = torch.zeros((batch, slots), dtype=torch.int64, device=device)
    for image, pick in enumerate(picks):
        filled[image, : len(pick)] = True
        index[image, : len(pick)] = pick

    channel, cell = index // cells, index % cells
    anchor, label = channel // len(spec.classes), channel % len(spec.classes)
    table = torch.from_numpy(spec.anchor_table[level]).to(device)
    size = (table[:, 2:] - table[:, :2])[anchor]  # (B, n, 2)
    centre = ((table[:, :2] + table[:, 2:]) * 0.5)[anchor]
    origin = torch.stack((cell % width, cell // width), dim=-1).float() * spec.strides[level]
    first = anchor * (4 * cells) + cell
    places = first[..., None] + torch.arange(4, device=device) * cells  # (B, n, 4)
    delta = deltas.float().reshape(batch, -1).gather(1, places.flatten(1)).reshape(batch, slots, 4)

    middle = delta[..., :2] * size + (centre + origin)
    half = torch.exp(delta[..., 2:].clamp(max=float(np.float32(DELTA_CLAMP)))) * size * 0.5
    limit = letterbox[:, None, [3, 2, 3, 2]]  # resized w, h, w, h
    boxes = torch.minimum(torch.cat((middle - half, middle + half), dim=-1).clamp(min=0), limit)
    return flat.gather(1, index).masked_fill(~filled, -torch.inf), boxes, label


def _best(row: Tensor, threshold: float, limit: int) -> Tensor:
    """Return the flat indices of at most `limit` logits above the threshold, best first, ties by index.

    torch.topk does not say which of equal values it takes, so it is asked for the last value only.
    """
    index = (row > float(np.float32(threshold))).nonzero()[:, 0]
    values = row[index]
    if len(index) > limit:
        last = values.topk(limit).values[-1]
        chosen = values > last
        equal = (values == last).nonzero()[:, 0]
        chosen[equal[: limit - int(chosen.sum())]] = True
        index, values = index[chosen], values[chosen]
    return index[torch.argsort(values, descending=True, stable=True)]


def _nms(logits: Tensor, boxes: Tensor, classes: Tensor, *, iou: float, limit: int) -> Tensor:
    """Return which of the candidates (B, N), sorted best first, survive; rows may hold a few beyond `limit`.

    Within a run, greedy suppression is the fixed point of "stay unless a staying better one overlaps", which
    is reached after as many rounds as the longest chain of suppressions: a few, whatever the run's length.
    """
    batch, total = logits.shape
    kept = logits > -torch.inf
    for start in range(0, total, CHUNK):
        stop = min(start + CHUNK, total)
        done = kept[:, :start].sum(1) >= limit
        run = kept[:, start:stop] & ~done[:, None]
        if not bool(run.any()):
            kept[:, start:] = False
            break
        for image in range(batch):
            earlier = kept[image, :start].nonzero()[:, 0]
            box, label = boxes[image, start:stop], classes[image, start:stop]
            rivals = _overlaps(boxes[image, earlier], classes[image, earlier], box, label, iou)
            run[image] &= ~rivals.any(0)
        box, label = boxes[:, start:stop], classes[:, start:stop]
        better = _overlaps(box, label, box, label, iou).triu(1)  # (B, n, n): the row suppresses the column
        stay = run
        while True:
            following = run & ~(better & stay[:, :, None]).any(1)
            if torch.equal(following, stay):
                break
            stay = following
        kept[:, start:stop] = stay
    return kept


def _overlaps(a: Tensor, a_class: Tensor, b: Tensor, b_class: Tensor, iou: float) -> Tensor:
    """Return (..., n, m): do boxes a (..., n, 4) and b (..., m, 4) of one class overlap by more than `iou`."""
    a, b = a[..., :, None, :], b[..., None, :, :]
    overlap = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0)
    intersection = overlap[..., 0] * overlap[..., 1]
    union = _area(a) + _area(b) - intersection
    # 0 / 0 of two boxes without area is NaN, which is above nothing
    above = intersection / union > float(np.float32(iou))
    return above & (a_class[..., :, None] == b_class[..., None, :])


def _area(box: Tensor) -> Tensor:
    return (box[..., 2] - box[..., 0]) * (box[..., 3] - box[..., 1])
