"""Decode and NMS as the two TensorRT plugins of plugins/: the same part of a graft as detection_nodes.py makes.

    nodes = NodeBuilder(graph)
    candidates = add_decode_plugin(nodes, spec, heads, letterbox)
    outputs = add_nms_plugin(nodes, spec, candidates, letterbox)

Such a graph runs in TensorRT with libretinaserve_plugins.so loaded, and nowhere else.
"""

from collections.abc import Sequence

import onnx_graphsurgeon as gs

from retinaserve.build_tools.graph.detection_nodes import Candidates
from retinaserve.build_tools.graph.nodes import NodeBuilder
from retinaserve.training.errors import UserError
from retinaserve.training.spec import BOXES, CLASSES, DELTA_CLAMP, NUM_DETECTIONS, SCORES, DetectorSpec

DECODE, NMS = "RetinaNetDecode", "RetinaNetNMS"
DOMAIN = "trt.plugins"  # TensorRT's parser goes by the operator's name; tools go by this domain
VERSION = "1"
MOST_CANDIDATES = MOST_DETECTIONS = 4096  # kMAX_TOPK and kMAX_DETECTIONS of plugins/include
MOST_ANCHORS = 128


def add_decode_plugin(
    nodes: NodeBuilder,
    spec: DetectorSpec,
    heads: Sequence[tuple[gs.Variable, gs.Variable]],
    letterbox: gs.Variable,
) -> Candidates:
    """Append the decode of all levels; empty slots are -inf and zeros. Raises UserError beyond its limits."""
    for name, value, most in (
        ("topk_candidates", spec.topk_candidates, MOST_CANDIDATES),
        ("max_detections", spec.max_detections, MOST_DETECTIONS),
        ("anchors a cell", spec.anchors_per_cell, MOST_ANCHORS),
    ):
        if value > most:
            raise UserError(f"detector spec: {name} is {value}", f"the TensorRT plugins take {most} at most")
    logits, boxes, classes = nodes(
        DECODE,
        *(tensor for pair in heads for tensor in pair),
        letterbox,
        outputs=3,
        domain=DOMAIN,
        plugin_version=VERSION,
        plugin_namespace="",
        anchors=spec.anchor_table.ravel().tolist(),
        strides=list(spec.strides),
        threshold_logit=spec.score_threshold_logit,
        delta_clamp=DELTA_CLAMP,
        topk=spec.topk_candidates,
    )
    sizes = [spec.feature_size(level) for level in range(len(spec.strides))]
    channels = spec.anchors_per_cell * len(spec.classes)
    count = sum(min(spec.topk_candidates, channels * height * width) for height, width in sizes)
    return Candidates(logits, boxes, classes, count)


def add_nms_plugin(
    nodes: NodeBuilder, spec: DetectorSpec, candidates: Candidates, letterbox: gs.Variable
) -> dict[str, gs.Variable]:
    """Append NMS, the undo of the letterbox and the clip; return the tensors of spec.OUTPUTS."""
    found, boxes, scores, labels = nodes(
        NMS,
        candidates.logits,
        candidates.boxes,
        candidates.classes,
        letterbox,
        outputs=4,
        domain=DOMAIN,
        plugin_version=VERSION,
        plugin_namespace="",
        iou=spec.nms_iou,
        max_detections=spec.max_detections,
    )
    return {NUM_DETECTIONS: found, BOXES: boxes, SCORES: scores, CLASSES: labels}
