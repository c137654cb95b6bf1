"""Raw heads in float become raw heads in INT8: Q/DQ nodes where TensorRT and OpenVINO fuse them.

    layers = layers_of(model, spec)       # backbone.layer1.0.conv1, backbone.layer1.0.conv2+add, ...
    model = quantize(model, spec, thresholds, layers)      # then graft(model)

A convolution is called as in the checkpoint; in the heads, which are the same for all levels, the level follows:
cls_head.convs.0/p3. A sum is called after the convolution it is computed with.

Symmetric with zero point 0, signed bytes, one scale per tensor for activations and one per channel for weights.
Quantized are the inputs of convolutions and one input of each sum; a pool or an upsampling in front passes INT8
through. In float stay: the class and box output convolutions, unless the spec's network has them in INT8, what
follows them, biases, and whatever is excluded. The largest values of tensors
are found by build_tools/quantize/ranges.py.
"""

import difflib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import onnx
import onnx_graphsurgeon as gs

from retinaserve.build_tools.graph.onnx_io import DEQUANTIZE, QUANTIZE, metadata_of, precision_of
from retinaserve.training.errors import Exit, UserError
from retinaserve.training.spec import FIRST_LEVEL, DetectorSpec

LARGEST = 127  # of a signed byte, so that -x is a byte too
SMALLEST_SCALE = 2.0**-23  # positive in half precision too; TensorRT takes no scale of zero
Array = npt.NDArray[np.float32]
PASSING = ("MaxPool", "Resize")  # give out values that came in: what is INT8 before them is INT8 behind them
SHOWN = 3


@dataclass(frozen=True)
class Layer:
    """A convolution or a sum; `data` is the tensor that it takes as INT8."""

    name: str
    kind: Literal["conv", "add"]
    node: str  # its name in the graph
    data: str
    slot: int  # of `data` among the node's inputs


def layers_of(model: onnx.ModelProto, spec: DetectorSpec, excluded: Sequence[str] = ()) -> list[Layer]:
    """Return the layers that would be quantized. Raises UserError where an excluded name means none."""
    return without(find_layers(gs.import_onnx(model), spec), excluded)


def tensors_of(model: onnx.ModelProto, layers: Sequence[Layer]) -> list[str]:
    """Return the tensors whose range has to be known, each once."""
    graph = gs.import_onnx(model)
    tensors = graph.tensors()
    return list(dict.fromkeys(_source(tensors[layer.data]).name for layer in layers))


def find_layers(graph: gs.Graph, spec: DetectorSpec) -> list[Layer]:
    """Return the layers in the graph's order; the heads' outputs are among them where the network says so.

    Of a sum's two inputs one is the output of a convolution, with which TensorRT and OpenVINO compute the sum in
    one go; that one stays as it is, and the other, the shortcut or the coarser level, is `data`.
    """
    level_of = {name: f"p{FIRST_LEVEL + level}" for level, pair in enumerate(spec.head_names) for name in pair}
    convolutions = [node for node in graph.nodes if node.op == "Conv"]
    users = Counter(_weight(node) for node in convolutions)
    levels = _levels(graph, level_of)
    names: dict[str, str] = {}
    layers: list[Layer] = []
    for node in graph.nodes:
        if node.op == "Conv":
            name = _weight(node).removesuffix(".weight")
            if users[_weight(node)] > 1:
                name += "/" + "".join(sorted(levels[node.name]))
            names[node.name] = name
            if spec.network.int8_outputs or node.outputs[0].name not in level_of:
                layers.append(Layer(name, "conv", node.name, node.inputs[0].name, 0))
        elif node.op == "Add" and all(isinstance(tensor, gs.Variable) for tensor in node.inputs):
            for slot, tensor in enumerate(node.inputs):
                producer = _computed_with(tensor)
                if producer is not None:
                    data = node.inputs[1 - slot].name
                    layers.append(Layer(f"{names[producer.name]}+add", "add", node.name, data, 1 - slot))
                    break
    return layers


def without(layers: Sequence[Layer], excluded: Sequence[str]) -> list[Layer]:
    """Return the layers that no name of `excluded` means: a whole name, or its beginning up to a `.` or `/`.

    Raises UserError for a name that means none.
    """
    for name in excluded:
        if not any(_means(name, layer.name) for layer in layers):
            known = [layer.name for layer in layers]
            near = difflib.get_close_matches(name, known, SHOWN, cutoff=0.3) or known[:SHOWN]
            raise UserError(
                f"--exclude {name}: there is no such layer",
                f"similar are: {', '.join(near)}; `retinaserve sensitivity` lists all of them",
                code=Exit.USAGE,
            )
    return [layer for layer in layers if not any(_means(name, layer.name) for name in excluded)]


def _means(name: str, layer: str) -> bool:
    rest = layer.removeprefix(name)
    return layer == name or (rest != layer and rest[0] in "./")


def _weight(node: gs.Node) -> str:
    return str(node.inputs[1].name)


def _computed_with(tensor: gs.Variable) -> gs.Node | None:
    """Return the convolution that makes a tensor for one consumer alone, with its norm in between or not."""
    while len(tensor.outputs) == 1 and tensor.inputs:
        producer = tensor.inputs[0]
        if producer.op == "Conv":
            return producer
        if producer.op != "BatchNormalization":
            return None
        tensor = producer.inputs[0]
    return None


def _levels(graph: gs.Graph, level_of: dict[str, str]) -> dict[str, set[str]]:
    """Return the levels that each node serves, by the node's name."""
    served: dict[str, set[str]] = {}
    for node in reversed(graph.nodes):
        served[node.name] = set()
        for tensor in node.outputs:
            served[node.name] |= {level_of[tensor.name]} if tensor.name in level_of else set()
            for consumer in tensor.outputs:
                served[node.name] |= served[consumer.name]
    return served


def quantize(
    model: onnx.ModelProto, spec: DetectorSpec, thresholds: Mapping[str, float], layers: Sequence[Layer]
) -> onnx.ModelProto:
    """Return the model with `layers` in INT8; `thresholds` has the largest value of each of `tensors_of`.

    Batch norms behind quantized convolutions are folded into them. Raises UserError for a model that is quantized.
    """
    if precision_of(model) == "int8":
        raise UserError("the graph is quantized already", "quantization starts from a float checkpoint")
    graph = gs.import_onnx(model)
    nodes = {node.name: node for node in graph.nodes}
    factors = {layer.node: _fold(nodes[layer.node]) for layer in layers if layer.kind == "conv"}
    activations = _Activations(graph, thresholds)
    weights = _Weights(graph)
    for layer in layers:
        node = nodes[layer.node]
        node.inputs[layer.slot] = activations.quantized(node.inputs[layer.slot])
        if layer.kind == "conv":
            node.inputs[1] = weights.quantized(node, factors[layer.node])
    for node in graph.nodes:
        if node.op == "Conv" and isinstance(node.inputs[1], gs.Constant) and node.outputs[0] in graph.outputs:
            node.inputs[1] = weights.halved(node)
    graph.cleanup().toposort()
    exported: onnx.ModelProto = gs.export_onnx(graph)
    onnx.helper.set_model_props(exported, metadata_of(model))
    onnx.checker.check_model(exported)
    return exported


def _source(tensor: gs.Variable) -> gs.Variable:
    """Return the tensor whose values a tensor has, before the pools and upsamplings in front of it."""
    while tensor.inputs and tensor.inputs[0].op in PASSING:
        tensor = tensor.inputs[0].inputs[0]
    return tensor


class _Activations:
    """One Q/DQ pair a tensor, shared by those that read it as INT8."""

    def __init__(self, graph: gs.Graph, thresholds: Mapping[str, float]) -> None:
        self._graph, self._thresholds = graph, thresholds
        self._pairs: dict[str, gs.Variable] = {}

    def quantized(self, tensor: gs.Variable) -> gs.Variable:
        """Return the tensor as it is after quantization, with a pair on both sides of a pool or an upsampling."""
        name = tensor.name
        if name not in self._pairs:
            source = _source(tensor)
            if source is not tensor:
                passing = tensor.inputs[0]
                passing.inputs[0] = self.quantized(passing.inputs[0])
            scale = np.float32(max(self._thresholds[source.name] / LARGEST, SMALLEST_SCALE))
            shared = [
                gs.Constant(f"{name}/scale", np.asarray(scale)),
                gs.Constant(f"{name}/zero", np.zeros((), np.int8)),
            ]
            quantized = gs.Variable(f"{name}/int8", np.int8, tensor.shape)
            self._pairs[name] = gs.Variable(f"{name}/restored", np.float32, tensor.shape)
            self._graph.nodes.append(gs.Node(QUANTIZE, f"{name}/q", {}, [tensor, *shared], [quantized]))
            self._graph.nodes.append(
                gs.Node(DEQUANTIZE, f"{name}/dq", {}, [quantized, *shared], [self._pairs[name]])
            )
        return self._pairs[name]


def _fold(node: gs.Node) -> Array:
    """Take the batch norm behind a convolution, if there is one, into its bias; return its factor per channel."""
    channels = node.inputs[1].values.shape[0]
    consumers = node.outputs[0].outputs
    if len(consumers) != 1 or consumers[0].op != "BatchNormalization":
        return np.ones(channels, np.float32)
    norm = consumers[0]
    gamma, beta, mean, variance = (tensor.values.astype(np.float64) for tensor in norm.inputs[1:5])
    factor = gamma / np.sqrt(variance + norm.attrs.get("epsilon", 1e-5))
    bias = node.inputs[2].values.astype(np.float64) if len(node.inputs) > 2 else 0.0
    folded = gs.Constant(f"{node.name}/bias", (beta + (bias - mean) * factor).astype(np.float32))
    node.inputs = [*node.inputs[:2], folded]
    output = norm.outputs[0]
    norm.outputs.clear()
    node.outputs = [output]
    multiplier: Array = factor.astype(np.float32)
    return multiplier


class _Weights:
    """Weights as bytes. The heads share theirs over the levels, which have norms of their own: the norm's factor
    goes into the scale of each level, so that the bytes are stored once.
    """

    def __init__(self, graph: gs.Graph) -> None:
        self._graph = graph
        self._stored: dict[tuple[str, bytes], tuple[gs.Constant, Array]] = {}
        self._halves: dict[str, gs.Variable] = {}

    def quantized(self, node: gs.Node, factor: Array) -> gs.Variable:
        """Return the convolution's weights as they are after quantization."""
        name = node.inputs[1].name
        signs = np.where(factor < 0, -1, 1).astype(np.int8)  # a scale is positive
        key = name, signs.tobytes()
        if key not in self._stored:
            values = node.inputs[1].values
            scale = np.abs(values).reshape(len(values), -1).max(axis=1) / LARGEST  # (O, I, h, w) -> (O,)
            steps = np.maximum(scale, np.finfo(np.float32).tiny).reshape(-1, 1, 1, 1)
            rounded = np.clip(np.round(values / steps), -LARGEST, LARGEST).astype(np.int8)
            stored = gs.Constant(f"{name}/int8_{len(self._stored)}", rounded * signs.reshape(-1, 1, 1, 1))
            self._stored[key] = stored, scale.astype(np.float32)
        stored, scale = self._stored[key]
        scales = np.maximum(scale * np.abs(factor), SMALLEST_SCALE).astype(np.float32)
        prefix = f"{name}/{node.name}"
        restored = gs.Variable(f"{prefix}/restored", np.float32, stored.shape)
        inputs = [
            stored,
            gs.Constant(f"{prefix}/scale", scales),
            gs.Constant(f"{prefix}/zero", np.zeros(len(scales), np.int8)),
        ]
        self._graph.nodes.append(gs.Node(DEQUANTIZE, f"{prefix}/dq", {"axis": 0}, inputs, [restored]))
        return restored

    def halved(self, node: gs.Node) -> gs.Variable:
        """Return an output convolution's weights, stored in half precision and computed with in float.

        At 80 classes they are a twelfth of ResNet18's file; rounding them moves a logit by less than 0.001.
        """
        weight = node.inputs[1]
        if weight.name not in self._halves:
            half = gs.Constant(f"{weight.name}/half", weight.values.astype(np.float16))
            self._halves[weight.name] = gs.Variable(f"{weight.name}/restored", np.float32, weight.shape)
            cast = {"to": onnx.TensorProto.FLOAT}
            name = f"{weight.name}/cast"
            self._graph.nodes.append(gs.Node("Cast", name, cast, [half], [self._halves[weight.name]]))
        return self._halves[weight.name]
