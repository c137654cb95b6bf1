"""Decode, NMS and letterbox undo behind the heads, as standard ONNX operators or as the plugins of plugins/.

    nodes = NodeBuilder(graph)
    candidates = add_decode(nodes, spec, heads, letterbox)    # or add_decode_plugin
    outputs = add_nms(nodes, spec, candidates, letterbox)    # or add_nms_plugin

The arithmetic is that of `plugins/reference.py`, operator by operator, for any batch size. A graph with the two
TensorRT plugins runs in TensorRT with libretinaserve_plugins.so loaded, and nowhere else.

Three things keep OpenVINO's CPU plugin equal to the reference, for about half a millisecond an image:

- Its TopK orders equal values arbitrarily, so whatever must be in order is sorted by integers without ties.
  (Which of equal logits make a level's cut stays its choice: only a level with more than `topk_candidates`
  logits above the threshold can tell.)
- It divides integers in float32, which is wrong by one from 2^24 on: a P3 of 1280 x 1280 pixels and 80 classes
  has more logits than that.
- Its NonMaxSuppression suppresses from the IoU threshold on, ONNX and the reference above it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_graphsurgeon as gs

from retinaserve.build_tools.graph.nodes import NodeBuilder, divide, open_top_k, stable_top_k, top_k
from retinaserve.training.errors import UserError
from retinaserve.training.spec import BOXES, CLASSES, NUM_DETECTIONS, SCORES, DetectorSpec

DECODE, NMS = "RetinaNetDecode", "RetinaNetNMS"
DOMAIN = "trt.plugins"  # TensorRT's parser goes by the operator's name; tools go by this domain
VERSION = "1"
MOST_CANDIDATES = MOST_DETECTIONS = 4096  # kMAX_TOPK and kMAX_DETECTIONS of plugins/include
MOST_ANCHORS = 128


@dataclass(frozen=True)
class Candidates:
    """Tensors of N slots per image: logits (B, N), boxes (B, N, 4) letterboxed pixels, classes (B, N) int64.

    A slot is filled if its logit is above the threshold; what the other slots hold means nothing.
    """

    logits: gs.Variable
    boxes: gs.Variable
    classes: gs.Variable
    count: int  # N


@dataclass(frozen=True)
class _Slots:
    """What is known of each of the N slots beforehand: the level it belongs to, in numbers.

    The arrays are constants where every image has the same canvas, and tensors of the graph where not.
    """

    taken: tuple[int, ...]  # slots per level
    sizes: tuple[int, ...]  # logits per level, at most
    cells: Any  # h * w of the slot's level; the rest (N,) as well
    width: Any
    four_cells: Any
    delta_steps: Any  # (N, 4): from one of an anchor's deltas to the next
    deltas_before: Any  # deltas of the levels before this one
    stride: npt.NDArray[np.int64]
    level: npt.NDArray[np.int64]

    @property
    def count(self) -> int:
        """N."""
        return len(self.level)

    @classmethod
    def of(cls, spec: DetectorSpec, canvas: tuple[int, int] | None = None) -> "_Slots":
        """Return constants, for a canvas of the spec's size if not of another."""
        shapes = np.array([spec.feature_size(level, canvas) for level in range(len(spec.strides))], np.int64)
        cells = shapes.prod(axis=1)
        logits = cells * spec.anchors_per_cell * len(spec.classes)
        deltas = cells * spec.anchors_per_cell * 4
        taken = np.minimum(logits, spec.topk_candidates)
        return cls(
            taken=tuple(map(int, taken)),
            sizes=tuple(map(int, logits)),
            cells=cells.repeat(taken),
            width=shapes[:, 1].repeat(taken),
            four_cells=4 * cells.repeat(taken),
            delta_steps=np.arange(4) * cells.repeat(taken)[:, None],
            deltas_before=(deltas.cumsum() - deltas).repeat(taken),
            stride=np.array(spec.strides, np.int64).repeat(taken),
            level=np.arange(len(spec.strides)).repeat(taken),
        )

    @classmethod
    def measured(cls, nodes: NodeBuilder, spec: DetectorSpec, levels: Sequence[gs.Variable]) -> "_Slots":
        """Return tensors, measured in the graph: `topk_candidates` slots a level, on any canvas."""
        shapes = [nodes("Shape", level, start=2) for level in levels]  # (2,) of h, w
        cells = nodes("Concat", *(nodes("ReduceProd", each, keepdims=1) for each in shapes), axis=0)  # (levels,)
        widths = nodes("Concat", *(nodes("Gather", each, [1], axis=0) for each in shapes), axis=0)
        deltas = nodes("Mul", cells, 4 * spec.anchors_per_cell)
        before = nodes("CumSum", deltas, np.int64(0), exclusive=1)
        number = np.arange(len(levels)).repeat(spec.topk_candidates)
        own = nodes("Gather", cells, number, axis=0)
        most = cls.of(spec, spec.resizing.largest(spec.size))
        return cls(
            taken=(spec.topk_candidates,) * len(levels),
            sizes=most.sizes,
            cells=own,
            width=nodes("Gather", widths, number, axis=0),
            four_cells=nodes("Mul", own, 4),
            delta_steps=nodes("Mul", nodes("Unsqueeze", own, [1]), np.arange(4)),
            deltas_before=nodes("Gather", before, number, axis=0),
            stride=np.array(spec.strides, np.int64).repeat(spec.topk_candidates),
            level=number,
        )


def add_decode(
    nodes: NodeBuilder,
    spec: DetectorSpec,
    heads: Sequence[tuple[gs.Variable, gs.Variable]],
    letterbox: gs.Variable,
    *,
    by_index: bool = True,
) -> Candidates:
    """Append top-k and box decoding of all levels; heads: (logits, deltas) per level.

    A level's candidates stand in the order of their flat index, so that a consumer that prefers the earlier of
    equal logits decides ties as the reference does; best first, as TopK returns them, unless `by_index`.
    """
    fixed = spec.resizing.fixed
    slots = _Slots.of(spec) if fixed else _Slots.measured(nodes, spec, [logits for logits, _ in heads])
    steps = [1] * len(heads) if fixed else _steps(spec)
    threshold = spec.score_threshold_logit
    floor = threshold - (1 + abs(threshold)) / 64  # under the threshold in bf16 too, in which OpenVINO may hold it
    tops = []
    for (level, _), total, count, step in zip(heads, slots.sizes, slots.taken, steps, strict=True):
        if fixed:
            values, indices = top_k(nodes, level, total=total, count=count, floor=floor)
        else:
            values, indices = open_top_k(nodes, level, step=step, typical=total, count=count, floor=floor)
        if by_index:
            indices, order = nodes("TopK", indices, [count], axis=1, largest=0, outputs=2)
            values = nodes("GatherElements", values, order, axis=1)
        tops.append((values, indices))
    best = nodes("Concat", *(values for values, _ in tops), axis=1)  # (B, N)
    index = nodes("Concat", *(indices for _, indices in tops), axis=1)

    channel, cell = divide(nodes, index, slots.cells, below=max(slots.sizes))
    anchor, label = divide(nodes, channel, len(spec.classes))
    y, x = divide(nodes, cell, slots.width)
    delta = _gather_deltas(nodes, slots, [deltas for _, deltas in heads], anchor, cell)
    shift, growth = nodes("Split", delta, [2, 2], axis=2, outputs=2)

    table = spec.anchor_table.reshape(-1, 4)  # (levels, A, 4) -> (levels*A, 4)
    row = nodes("Add", anchor, slots.level * spec.anchors_per_cell)
    size = nodes("Gather", table[:, 2:] - table[:, :2], row, axis=0)  # (B, N, 2) of w, h
    centre = nodes("Gather", (table[:, :2] + table[:, 2:]) * np.float32(0.5), row, axis=0)
    grid = nodes("Concat", nodes("Unsqueeze", x, [2]), nodes("Unsqueeze", y, [2]), axis=2)
    origin = nodes("Cast", nodes("Mul", grid, slots.stride[:, None]), to=onnx.TensorProto.FLOAT)

    middle = nodes("Add", nodes("Mul", shift, size), nodes("Add", centre, origin))
    grown = nodes("Mul", nodes("Exp", nodes("Min", growth, spec.delta_clamp)), size)
    half = nodes("Mul", grown, 0.5)
    corners = nodes("Concat", nodes("Sub", middle, half), nodes("Add", middle, half), axis=2)
    limit = nodes("Unsqueeze", nodes("Gather", letterbox, [3, 2, 3, 2], axis=1), [1])  # resized w, h, w, h
    boxes = nodes("Min", nodes("Max", corners, min(0.0, spec.clip_margin)), limit)
    return Candidates(best, boxes, label, slots.count)


def _steps(spec: DetectorSpec) -> list[int]:
    """Return what the number of a level's logits is a multiple of on every canvas."""
    multiple, each = spec.resizing.multiple, spec.anchors_per_cell * len(spec.classes)
    return [each * max(1, multiple // stride if multiple % stride == 0 else 1) ** 2 for stride in spec.strides]


def _gather_deltas(
    nodes: NodeBuilder, slots: _Slots, deltas: Sequence[gs.Variable], anchor: Any, cell: Any
) -> Any:
    """Return the (B, N, 4) deltas of the candidates: channel anchor*4 + i at a cell, without a transpose."""
    flat = nodes("Concat", *(nodes("Reshape", level, [0, -1]) for level in deltas), axis=1)
    first = nodes("Add", nodes("Mul", anchor, slots.four_cells), nodes("Add", cell, slots.deltas_before))
    places = nodes("Add", nodes("Unsqueeze", first, [2]), slots.delta_steps)
    picked = nodes("GatherElements", flat, nodes("Reshape", places, [0, -1]), axis=1)
    return nodes("Reshape", picked, [0, slots.count, 4])


def add_nms(
    nodes: NodeBuilder, spec: DetectorSpec, candidates: Candidates, letterbox: gs.Variable
) -> dict[str, gs.Variable]:
    """Append class-aware NMS, the undo of the letterbox and the clip; return the tensors of spec.OUTPUTS.

    Every class has its row of logits. Moving the classes' boxes apart instead would let one row do, but 80
    classes of 1280 pixels reach coordinates where float32 has steps of 1/128 pixel: of a million overlapping
    pairs of 16 pixel boxes, the IoU of 78 came out on the other side of 0.5. The rows cost 0.1 ms.
    """
    threshold = np.float32(spec.score_threshold_logit)
    logits, count = candidates.logits, candidates.count
    iou = np.float32(spec.nms_iou)
    if iou < 1:
        kept = _suppressed(nodes, spec, candidates, threshold, iou)
    else:  # nothing overlaps by more, and ONNX Runtime refuses thresholds above one
        kept = nodes("Max", logits, threshold)

    slots = min(spec.max_detections, count)
    best, order = stable_top_k(nodes, kept, total=count, count=slots)
    filled = nodes("Greater", best, threshold)
    scores = nodes("Where", filled, nodes("Sigmoid", best), 0.0)
    labels = nodes("Where", filled, nodes("GatherElements", candidates.classes, order, axis=1), 0)
    boxes = nodes("GatherND", candidates.boxes, nodes("Unsqueeze", order, [2]), batch_dims=1)
    original = nodes("Gather", letterbox, [1, 0, 1, 0], axis=1)  # w, h, w, h
    scale = nodes("Div", original, nodes("Gather", letterbox, [3, 2, 3, 2], axis=1))
    boxes = nodes("Mul", boxes, nodes("Unsqueeze", scale, [1]))
    boxes = nodes("Min", boxes, nodes("Unsqueeze", original, [1]))
    boxes = _inside(nodes, spec, boxes)
    boxes = nodes("Where", nodes("Unsqueeze", filled, [2]), boxes, 0.0)
    labels = nodes("Cast", labels, to=onnx.TensorProto.INT32)
    found = nodes("ReduceSum", nodes("Cast", filled, to=onnx.TensorProto.INT32), [1], keepdims=1)

    if slots < spec.max_detections:
        missing = spec.max_detections - slots
        boxes = nodes("Pad", boxes, [0, 0, 0, 0, missing, 0])
        scores = nodes("Pad", scores, [0, 0, 0, missing])
        labels = nodes("Pad", labels, [0, 0, 0, missing])
    return {NUM_DETECTIONS: found, BOXES: boxes, SCORES: scores, CLASSES: labels}


def _suppressed(
    nodes: NodeBuilder, spec: DetectorSpec, candidates: Candidates, threshold: np.float32, iou: np.float32
) -> gs.Variable:
    """Return the logits (B, N) of what NMS keeps of each class, and the threshold elsewhere."""
    logits = candidates.logits
    rows = nodes("Unsqueeze", logits, [1])  # (B, 1, N)
    if len(spec.classes) > 1:
        numbers = np.arange(len(spec.classes)).reshape(1, -1, 1)
        own = nodes("Equal", nodes("Unsqueeze", candidates.classes, [1]), numbers)
        rows = nodes("Where", own, rows, threshold)  # (B, C, N)
    # ONNX and ONNX Runtime suppress above the threshold, OpenVINO from it on: one step up, OpenVINO is exact
    # and ONNX Runtime differs at the one float32 value just above it, where no pair of whole sizes lies.
    above = np.nextafter(iou, np.float32(2))
    selected = nodes("NonMaxSuppression", candidates.boxes, rows, [spec.max_detections], [above], [threshold])
    places = nodes("Gather", selected, [0, 2], axis=1)  # (S, 3) image, class, slot -> (S, 2)
    nothing = nodes("ConstantOfShape", nodes("Shape", logits), value=gs.Constant("", threshold.reshape(1)))
    return nodes("ScatterND", nothing, places, nodes("GatherND", logits, places))  # (B, N)


def _inside(nodes: NodeBuilder, spec: DetectorSpec, boxes: gs.Variable) -> gs.Variable:
    """Clip boxes at 0, where the decode has not done so."""
    return nodes("Max", boxes, 0.0) if spec.clip_margin < 0 else boxes


def add_decode_plugin(
    nodes: NodeBuilder,
    spec: DetectorSpec,
    heads: Sequence[tuple[gs.Variable, gs.Variable]],
    letterbox: gs.Variable,
) -> Candidates:
    """Append the decode of all levels; empty slots have the logit -inf. Raises UserError beyond its limits.

    The plugin clips at 0; where boxes may leave the image they are decoded `clip_margin` to the right and below.
    """
    beyond = max(0.0, -spec.clip_margin)
    if beyond:
        letterbox = nodes("Add", letterbox, np.array((0, 0, beyond, beyond), np.float32))
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
        anchors=(spec.anchor_table + np.float32(beyond)).ravel().tolist(),
        strides=list(spec.strides),
        threshold_logit=spec.score_threshold_logit,
        delta_clamp=spec.delta_clamp,
        topk=spec.topk_candidates,
        classes=len(spec.classes),
    )
    if beyond:
        boxes = nodes("Sub", boxes, beyond)
    return Candidates(logits, boxes, classes, sum(_Slots.of(spec).taken))


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
    return {NUM_DETECTIONS: found, BOXES: _inside(nodes, spec, boxes), SCORES: scores, CLASSES: labels}
