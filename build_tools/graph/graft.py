"""Raw heads become a whole detector: bytes in front, boxes in original pixels behind.

    save(graft(Path("heads.onnx")), Path("detector.onnx"))    # standard operators: any runtime
    save(graft(Path("heads.onnx"), flavour="tensorrt"), Path("detector.onnx"))    # the two plugins of plugins/

The input becomes `image`, of the spec's pixels, with a second input `letterbox`; the outputs become spec.OUTPUTS.
The spec is read from the model's metadata and stays there.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from retinaserve.build_tools.graph.detection import (
    Candidates,
    add_decode,
    add_decode_plugin,
    add_nms,
    add_nms_plugin,
)
from retinaserve.build_tools.graph.nodes import NodeBuilder
from retinaserve.build_tools.graph.onnx_io import load_graph, metadata_of, read_spec
from retinaserve.training.errors import UserError
from retinaserve.training.files import whole
from retinaserve.training.spec import (
    IMAGE,
    LETTERBOX,
    METADATA_CLASSES,
    METADATA_SPEC,
    NETWORK_INPUT,
    DetectorSpec,
    Tensor,
)

BATCH = "batch"
Flavour = Literal["standard", "tensorrt"]
Head = tuple[gs.Variable, gs.Variable]  # logits and deltas of a level
# Outputs of a graft that ends at the candidates; an empty slot has the logit -inf and is zero otherwise.
CANDIDATE_LOGITS, CANDIDATE_BOXES, CANDIDATE_CLASSES = "candidate_logits", "candidate_boxes", "candidate_classes"
OPSETS = range(17, 21)
VECTOR = 8  # channels that stand together in TensorRT's layout of half tensors, kHWC8
NEVER = float(np.finfo(np.float16).min)  # a logit of nothing


def graft(
    raw: onnx.ModelProto | Path,
    spec: DetectorSpec | None = None,
    *,
    keep_heads: bool = False,
    until: Literal["candidates", "detections"] = "detections",
    flavour: Flavour = "standard",
) -> onnx.ModelProto:
    """Return the detector of a raw-heads model, checked, with every output's shape stated.

    `flavour` says what decode and NMS are made of; inputs, outputs and metadata are the same. `spec` overrides
    the model's own. `keep_heads` leaves the raw heads among the outputs. Candidates are what there is before
    NMS: logits (B, N), boxes (B, N, 4) in letterboxed pixels and int32 classes (B, N), best first per level.
    Raises UserError where inputs or outputs are not what the spec says.
    """
    source = str(raw) if isinstance(raw, Path) else "the ONNX model"
    model = load_graph(raw) if isinstance(raw, Path) else raw
    spec = spec or read_spec(model, source)
    _check(model, spec, source)
    graph = gs.import_onnx(onnx.shape_inference.infer_shapes(model) if flavour == "tensorrt" else model)
    tensors = graph.tensors()
    heads = [(tensors[logits], tensors[deltas]) for logits, deltas in spec.head_names]
    letterbox = gs.Variable(LETTERBOX, np.float32, [BATCH, 4])
    _unshare_biases(graph)
    nodes = NodeBuilder(graph)
    graph.inputs = [_add_front(nodes, spec, tensors[NETWORK_INPUT]), letterbox]

    ends = letterbox if spec.clip == "image" else _canvas(nodes, spec, letterbox)
    clipped = ends  # before NMS
    if spec.clip_margin:
        clipped = nodes("Sub", ends, np.array((0, 0, spec.clip_margin, spec.clip_margin), np.float32))
    if flavour == "tensorrt":
        candidates = add_decode_plugin(nodes, spec, heads if keep_heads else _in_half(heads), clipped)
    else:
        candidates = add_decode(nodes, spec, heads, clipped, by_index=until == "detections")
    if until == "candidates":
        count = candidates.count
        outputs = _candidate_outputs(nodes, spec, candidates, flavour)
        stated = {
            CANDIDATE_LOGITS: Tensor("float32", (count,)),
            CANDIDATE_BOXES: Tensor("float32", (count, 4)),
            CANDIDATE_CLASSES: Tensor("int32", (count,)),
        }
    else:
        outputs = (add_nms_plugin if flavour == "tensorrt" else add_nms)(nodes, spec, candidates, ends)
        stated = spec.outputs
    if set(outputs) != set(stated):
        raise UserError(f"the {flavour} graph gives {', '.join(outputs)}", f"{', '.join(stated)} are stated")
    for name, tensor in outputs.items():
        tensor.name, tensor.shape = name, [BATCH, *stated[name].shape]
        tensor.dtype = np.dtype(stated[name].dtype)
    graph.outputs = [*outputs.values(), *(tensor for pair in heads for tensor in pair if keep_heads)]
    graph.cleanup().toposort()
    return _finish(gs.export_onnx(graph), model, spec)


def save(model: onnx.ModelProto, path: Path) -> None:
    """Write a model, whole or not at all. Raises UserError where the disk is full."""
    with whole(path) as (partial,):
        onnx.save(model, partial)


def _check(model: onnx.ModelProto, spec: DetectorSpec, source: str) -> None:
    opset = max((item.version for item in model.opset_import if item.domain in ("", "ai.onnx")), default=0)
    if opset not in OPSETS:
        raise UserError(f"{source} has opset {opset}", f"{OPSETS[0]} to {OPSETS[-1]} are expected")
    if [value.name for value in model.graph.input] != [NETWORK_INPUT]:
        names = ", ".join(value.name for value in model.graph.input)
        raise UserError(
            f"{source} has the inputs: {names}", f"raw heads with the one input {NETWORK_INPUT!r} are expected"
        )
    fixed = spec.resizing.fixed
    _check_shape(f"{source}: input", model.graph.input[0], spec.inputs[IMAGE].shape)
    outputs = {value.name: value for value in model.graph.output}
    for level, pair in enumerate(spec.head_names):
        for name, channels in zip(pair, (len(spec.classes), 4), strict=True):
            if name not in outputs:
                raise UserError(f"{source} has no output {name!r}", f"its outputs are: {', '.join(outputs)}")
            size = spec.feature_size(level) if fixed else (-1, -1)
            expected = (spec.anchors_per_cell * channels, *size)
            _check_shape(f"{source}: output", outputs[name], expected)


def _check_shape(what: str, value: onnx.ValueInfoProto, expected: tuple[int, ...]) -> None:
    kind = value.type.tensor_type
    dims = [item.dim_value if item.HasField("dim_value") else item.dim_param or "?" for item in kind.shape.dim]
    matches = len(dims) == 1 + len(expected) and all(
        isinstance(found, str) if side == -1 else found == side
        for found, side in zip(dims, (-1, *expected), strict=False)
    )
    if kind.elem_type != onnx.TensorProto.FLOAT or not matches:
        found = f"{onnx.TensorProto.DataType.Name(kind.elem_type)} {_shape(dims)}"
        raise UserError(
            f"{what} {value.name!r} is {found}",
            f"FLOAT {_shape([BATCH, *expected])} is expected by the detector's spec",
        )


def _shape(dims: Sequence[int | str]) -> str:
    return f"[{', '.join(map(str, dims))}]"


def _unshare_biases(graph: gs.Graph) -> None:
    """Give each convolution a bias of its own: the levels share those of the heads.

    OpenVINO adds a bias that somebody else uses too in a pass over the whole output, not in the convolution.
    """
    seen = set()
    for node in graph.nodes:
        if node.op == "Conv" and len(node.inputs) > 2 and isinstance(node.inputs[2], gs.Constant):
            bias = node.inputs[2]
            if bias.name in seen:
                node.inputs[2] = gs.Constant(f"{bias.name}/{node.name}", bias.values)
            seen.add(bias.name)


def _in_half(heads: Sequence[Head]) -> Sequence[Head]:
    """Return the heads as the network computes them, where they are half and cast to float only to leave it.

    The plugin reads half, in the layout that convolutions write. A builder would make a kernel of each cast, and
    one of each head whose channels are no vectors of eight: ten bytes of traffic a logit instead of two.
    """
    makers = [tensor.inputs[0] if tensor.inputs else None for pair in heads for tensor in pair]
    if any(node is None or node.op != "Cast" or node.inputs[0].dtype != np.float16 for node in makers):
        return heads  # the plugin takes all of them in one type
    halves = [(logits.inputs[0].inputs[0], deltas.inputs[0].inputs[0]) for logits, deltas in heads]
    filled: dict[str, gs.Constant] = {}
    for logits, deltas in halves:
        _fill_channels(logits, filled, NEVER)
        _fill_channels(deltas, filled, 0.0)
    return halves


def _fill_channels(head: gs.Variable, filled: dict[str, gs.Constant], bias: float) -> None:
    """Make a head's channels a multiple of VECTOR, by channels of this bias that the plugin does not look at."""
    convolution = head.inputs[0]
    missing = -head.shape[1] % VECTOR
    constants = convolution.inputs[1:]
    if convolution.op != "Conv" or not missing or not all(isinstance(each, gs.Constant) for each in constants):
        return
    for place, (constant, value) in enumerate(zip(constants, (0.0, bias), strict=False), 1):
        if constant.name not in filled:
            more = np.full((missing, *constant.shape[1:]), value, constant.values.dtype)
            filled[constant.name] = gs.Constant(f"{constant.name}_filled", np.concatenate((constant.values, more)))
        convolution.inputs[place] = filled[constant.name]
    head.shape = [head.shape[0], head.shape[1] + missing, *head.shape[2:]]


def _add_front(nodes: NodeBuilder, spec: DetectorSpec, network_input: gs.Variable) -> gs.Variable:
    """Feed the network's input from pixels: (x/255 - mean) / std as one Mul and one Add per channel."""
    sides = spec.size if spec.resizing.fixed else ("rows", "columns")
    image = gs.Variable(IMAGE, np.dtype(spec.pixels), [BATCH, 3, *sides])
    floats = image if spec.pixels == "float32" else nodes("Cast", image, to=onnx.TensorProto.FLOAT)
    mean, std = (np.array(values, np.float64).reshape(1, 3, 1, 1) for values in (spec.mean, spec.std))
    scaled = nodes("Mul", floats, 1 / (255 * std))
    normalised = nodes("Add", scaled, -mean / std)
    for consumer in list(network_input.outputs):
        consumer.inputs = [normalised if tensor is network_input else tensor for tensor in consumer.inputs]
    return image


def _canvas(nodes: NodeBuilder, spec: DetectorSpec, letterbox: gs.Variable) -> gs.Variable:
    """Return what LETTERBOX would be of an image that fills the canvas, at the same scale: DetectorSpec.ends."""
    original, resized = nodes("Split", letterbox, [2, 2], axis=1, outputs=2)
    rule = spec.resizing
    if rule.fixed:
        canvas = nodes("Add", nodes("Mul", resized, 0.0), np.array(spec.size, np.float32))
    else:
        sides = nodes("Round", resized) if rule.by_factor else resized  # half to even, as such a rule's
        steps = nodes("Floor", nodes("Div", nodes("Add", sides, rule.beyond - 1.0), float(rule.multiple)))
        canvas = nodes("Mul", nodes("Add", steps, 1.0), float(rule.multiple))
    return nodes("Concat", nodes("Mul", original, nodes("Div", canvas, resized)), canvas, axis=1)


def _candidate_outputs(
    nodes: NodeBuilder, spec: DetectorSpec, candidates: Candidates, flavour: Flavour
) -> dict[str, gs.Variable]:
    """Empty the slots that are not above the threshold, as the reference's `decode` does, and the plugin."""
    if flavour == "tensorrt":
        return {
            CANDIDATE_LOGITS: candidates.logits,
            CANDIDATE_BOXES: candidates.boxes,
            CANDIDATE_CLASSES: candidates.classes,
        }
    filled = nodes("Greater", candidates.logits, np.float32(spec.score_threshold_logit))
    return {
        CANDIDATE_LOGITS: nodes("Where", filled, candidates.logits, -np.inf),
        CANDIDATE_BOXES: nodes("Where", nodes("Unsqueeze", filled, [2]), candidates.boxes, 0.0),
        CANDIDATE_CLASSES: nodes("Cast", nodes("Where", filled, candidates.classes, 0), to=onnx.TensorProto.INT32),
    }


def _finish(model: onnx.ModelProto, raw: onnx.ModelProto, spec: DetectorSpec) -> onnx.ModelProto:
    metadata = metadata_of(raw) | {METADATA_SPEC: spec.to_json(), METADATA_CLASSES: json.dumps(spec.classes)}
    onnx.helper.set_model_props(model, metadata)
    onnx.checker.check_model(model)
    # Following the values of shapes, onnx (1.22) loses the rank of one that was unsqueezed.
    follow = spec.resizing.fixed
    return onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=follow)
