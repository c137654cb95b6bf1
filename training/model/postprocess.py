"""From raw heads in torch, on any device, to boxes, by the arithmetic of plugins/reference.py.

num_detections, boxes, scores, classes = detect(spec, model(images), letterbox)
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from torch import Tensor

from retinaserve.plugins import reference
from retinaserve.training.spec import DetectorSpec

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int32]


def detect(
    spec: DetectorSpec, heads: Sequence[tuple[Tensor, Tensor]], letterbox: FloatArray
) -> tuple[IntArray, FloatArray, FloatArray, IntArray]:
    """Return num_detections (B, 1), boxes (B, K, 4), scores (B, K) and classes (B, K), zeros behind the last.

    heads: (logits, deltas) per level, as spec.head_names describes them; letterbox: (B, 4) original h, w, resized
    h, w. Boxes are in pixels of the original image.
    """
    threshold, topk = spec.score_threshold_logit, spec.topk_candidates
    best = [_best(logits.detach().float(), threshold, topk) for logits, _ in heads]
    candidates = reference.decode(
        best,
        [deltas.detach().float().cpu().numpy() for _, deltas in heads],
        letterbox,
        **spec.decoding,
    )
    return reference.nms(*candidates, letterbox, iou=spec.nms_iou, max_detections=spec.max_detections)


def _best(logits: Tensor, threshold: float, topk: int) -> FloatArray:
    """Return a level's logits on the host, with -inf for what can't be a candidate: few are copied and sorted."""
    host = np.full(tuple(logits.shape), -np.inf, np.float32)
    for row, flat in zip(logits.flatten(1), host.reshape(len(host), -1), strict=True):
        index = (row >= threshold).nonzero()[:, 0]
        values = row[index]
        if len(values) > topk:  # equal ones all stay: the reference decides which are taken
            kept = values >= values.topk(topk).values[-1]
            index, values = index[kept], values[kept]
        flat[index.cpu().numpy()] = values.cpu().numpy()
    return host
