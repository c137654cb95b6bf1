"""From raw heads in torch, on any device, to boxes, by the arithmetic of plugins/reference.py.

num_detections, boxes, scores, classes = detect(spec, model(images), letterbox)
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from retinaserve.plugins import reference
from retinaserve.training.spec import DELTA_CLAMP, DetectorSpec

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int32]


def detect(
    spec: DetectorSpec, heads: Sequence[tuple[Tensor, Tensor]], letterbox: FloatArray
) -> tuple[IntArray, FloatArray, FloatArray, IntArray]:
    """Return num_detections (B, 1), boxes (B, K, 4), scores (B, K) and classes (B, K), zeros behind the last.

    heads: (logits, deltas) per level, as spec.head_names describes them; letterbox: (B, 4) original h, w, resized
    h, w. Boxes are in pixels of the original image.
    """
    candidates = reference.decode(
        [_above(logits.detach().float(), spec.score_threshold_logit) for logits, _ in heads],
        [deltas.detach().float().cpu().numpy() for _, deltas in heads],
        letterbox,
        anchors=spec.anchor_table,
        strides=spec.strides,
        threshold_logit=spec.score_threshold_logit,
        topk=spec.topk_candidates,
        delta_clamp=DELTA_CLAMP,
    )
    return reference.nms(*candidates, letterbox, iou=spec.nms_iou, max_detections=spec.max_detections)


def _above(logits: Tensor, threshold: float) -> FloatArray:
    """Return logits on the host, with -inf below the threshold: only the few above it are copied from a device."""
    if logits.device.type == "cpu":
        values: FloatArray = logits.numpy()
        return values
    flat = logits.flatten()
    index = (flat >= torch.tensor(threshold, dtype=torch.float32)).nonzero().flatten()
    values = np.full(flat.shape, -np.inf, np.float32)
    values[index.cpu().numpy()] = flat[index].cpu().numpy()
    return values.reshape(logits.shape)
