"""A strongly typed FP16 network: the raw heads of a detector with weights and activations in half precision.

    model, rounding = to_float16(Path("heads.onnx"))      # then build_tools/graph/graft.py
    rounding.zeroed, rounding.denormal, rounding.values

Precision lies in the graph's types, as TensorRT 11 requires and TensorRT 10 offers. The image arrives in float
and the heads leave in float. So normalisation stays outside, as all box arithmetic does: 8 bits a pixel are exact
in half, but (x/255 - mean)/std would be rounded at each step, and a builder makes it one kernel with the cast.
Inside, operators that sum over a whole map (normalisation layers) stay in float. A quantized network stays
quantized, and what it has in float goes to half: on a GPU that is what INT8 should stand in.

Not onnxruntime.transformers.float16: it moves weights above 10 000 and below 1e-7 without a word, and leaves nodes
in an order that ONNX's own checker refuses.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_graphsurgeon as gs

from retinaserve.build_tools.graph.onnx_io import DEQUANTIZE, QUANTIZE, load_graph, metadata_of
from retinaserve.training.errors import UserError
from retinaserve.training.spec import METADATA_PRECISION

# Operators that compute in half; any other that takes floats gets and gives float.
HALF = frozenset({
    "Add", "AveragePool", "Clip", "Concat", "Conv", "DequantizeLinear", "Expand", "Flatten", "Gather",
    "GlobalAveragePool", "Identity", "LeakyRelu", "MaxPool", "Mul", "Pad", "QuantizeLinear", "Relu", "Reshape",
    "Resize", "Sigmoid", "Slice", "Split", "Squeeze", "Sub", "Transpose", "Unsqueeze",
})  # fmt: skip
ANY = frozenset({"Shape", "Size"})  # operators that read no values
FIXED = {"Resize": (1, 2)}  # inputs (region, scales) that ONNX wants in float whatever the others are
METADATA_ROUNDING = "retinaserve.rounding"  # ONNX metadata_props: a Rounding as JSON
QUANTIZED_OPSET = 19  # the first that quantizes from half
LARGEST = float(np.finfo(np.float16).max)
SMALLEST_NORMAL = float(np.finfo(np.float16).tiny)
SUFFIX = {np.dtype(np.float16): "half", np.dtype(np.float32): "float"}


@dataclass(frozen=True)
class Rounding:
    """What half precision did to the weights."""

    values: int = 0
    denormal: int = 0  # below 6.1e-5, where half has fewer than its 11 bits
    zeroed: int = 0  # below 3e-8: nothing is left
    largest: float = 0.0

    @classmethod
    def read(cls, model: onnx.ModelProto) -> "Rounding":
        """Return what a graph's metadata says; nothing for one that is not in half."""
        return cls(**json.loads(metadata_of(model).get(METADATA_ROUNDING, "{}")))

    def of(self, array: npt.NDArray[np.float32]) -> "Rounding":
        """Return this with the values of an array added."""
        size = np.abs(array)
        small = (size > 0) & (size < SMALLEST_NORMAL)
        return Rounding(
            self.values + array.size,
            self.denormal + int(small.sum()),
            self.zeroed + int((small & (array.astype(np.float16) == 0)).sum()),
            max(self.largest, float(size.max(initial=0))),
        )


def to_float16(raw: onnx.ModelProto | Path, *, source: str = "") -> tuple[onnx.ModelProto, Rounding]:
    """Return the model with the same inputs and outputs, computing in half, and what that did to its weights.

    The second is in its metadata too. `source` is what errors begin with, the path if not given.
    Raises UserError for a weight beyond half's range, a scale below it, or a graph that is in half already.
    """
    source = source or (str(raw) if isinstance(raw, Path) else "the ONNX model")
    model = load_graph(raw) if isinstance(raw, Path) else raw
    typed = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    graph = gs.import_onnx(typed)
    graph.toposort()
    quantized = any(node.op == QUANTIZE for node in graph.nodes)
    _unfold_weights(graph)
    if any(tensor.dtype == np.float16 for tensor in graph.tensors().values()):
        raise UserError(f"{source} computes in FP16 already", "an FP32 network is expected")
    _restate_small_scales(graph)
    rounding = _Converter(graph, source).run()
    graph.cleanup().toposort()
    converted = gs.export_onnx(graph)
    del converted.graph.value_info[:]  # inferred for the types there were
    for domain in converted.opset_import:
        if quantized and domain.domain in ("", "ai.onnx"):
            domain.version = max(domain.version, QUANTIZED_OPSET)
    metadata = {METADATA_PRECISION: "fp16"} | metadata_of(model)
    onnx.helper.set_model_props(converted, metadata | {METADATA_ROUNDING: json.dumps(asdict(rounding))})
    onnx.checker.check_model(converted, full_check=True)
    return converted, rounding


def _unfold_weights(graph: gs.Graph) -> None:
    """Make floats of weights that are stored as something else and converted in the graph.

    A quantized graph stores what it has in float as half, to be small. Biases of 32-bit integers come from other
    quantizers: their scale, the product of two, would be nothing in half.
    """
    for node in graph.nodes:
        stored = node.inputs[0] if node.inputs else None
        if not isinstance(stored, gs.Constant):
            continue
        if node.op == DEQUANTIZE and stored.dtype == np.int32:
            values = stored.values * node.inputs[1].values
        elif node.op == "Cast" and stored.dtype == np.float16:
            values = stored.values
        else:
            continue
        (made,) = node.outputs
        constant = gs.Constant(f"{made.name}_constant", values.astype(np.float32))
        for consumer in list(made.outputs):
            consumer.inputs = [constant if tensor is made else tensor for tensor in consumer.inputs]
        node.outputs.clear()
    graph.cleanup()


def _restate_small_scales(graph: gs.Graph) -> None:
    """Give weights of a scale that is denormal in half the next scale that half has, and integers that go with it.

    Half would round such a scale alone, by 3% at 1e-6, and all of a channel's weights with it.
    """
    for node in graph.nodes:
        if node.op != DEQUANTIZE or not isinstance(node.inputs[0], gs.Constant):
            continue
        (ints, scales), name = node.inputs[:2], node.name or node.outputs[0].name
        stored, scale = ints.values, np.asarray(scales.values, np.float32)
        if stored.dtype != np.int8 or not np.any((scale > 0) & (scale < SMALLEST_NORMAL)):
            continue
        half = scale.astype(np.float16)
        above = np.where(half < scale, np.nextafter(half, np.float16(np.inf)), half).astype(np.float32)
        stated = np.where((scale > 0) & (scale < SMALLEST_NORMAL), above, scale)
        ratio = np.divide(scale, stated, out=np.ones_like(scale), where=stated > 0)
        if scale.size > 1:
            along = [1] * stored.ndim
            along[node.attrs.get("axis", 1)] = -1
            ratio = ratio.reshape(along)
        values = np.rint(stored * ratio).astype(np.int8)
        node.inputs[0] = gs.Constant(f"{ints.name}/restated/{name}", values)
        node.inputs[1] = gs.Constant(f"{scales.name}/restated/{name}", stated)


class _Converter:
    """Gives every node's inputs the type it computes in, with one Cast a tensor where they have the other."""

    def __init__(self, graph: gs.Graph, source: str) -> None:
        self.graph = graph
        self.source = source
        self.rounding = Rounding()
        self._constants: dict[str, gs.Constant] = {}
        self._casts: dict[tuple[str, np.dtype[Any]], gs.Variable] = {}

    def run(self) -> Rounding:
        for node in [each for each in self.graph.nodes if each.op not in ANY]:
            wanted = np.dtype(np.float16 if node.op in HALF else np.float32)
            for place, tensor in enumerate(node.inputs):
                if place not in FIXED.get(node.op, ()):
                    node.inputs[place] = self._as(tensor, wanted)
            if node.op in (QUANTIZE, DEQUANTIZE) and not np.all(node.inputs[1].values):
                raise UserError(
                    f"{self.source}: the scale {node.inputs[1].name!r} is nothing in FP16",
                    "the tensor is all zeros, or nearly; leave it out of quantization: --exclude",
                )
            for tensor in node.outputs:
                if tensor.dtype == np.float32:
                    tensor.dtype = wanted
        self.graph.outputs = [self._output(tensor) for tensor in self.graph.outputs]
        return self.rounding

    def _as(self, tensor: Any, wanted: "np.dtype[Any]") -> Any:
        if tensor.dtype not in SUFFIX or tensor.dtype == wanted or tensor.is_empty():
            return tensor  # integers, or in the right type
        if isinstance(tensor, gs.Constant):
            return self._constant(tensor)
        key = tensor.name, wanted
        if key not in self._casts:
            made = gs.Variable(f"{tensor.name}_{SUFFIX[wanted]}", wanted, tensor.shape)
            self._cast(tensor, made)
            self._casts[key] = made
        return self._casts[key]

    def _output(self, tensor: gs.Variable) -> gs.Variable:
        """Return a float tensor of the output's name; inside, the half one goes by another."""
        if tensor.dtype != np.float16:
            return tensor
        made = gs.Variable(tensor.name, np.dtype(np.float32), tensor.shape)
        tensor.name = f"{tensor.name}_{SUFFIX[np.dtype(np.float16)]}"
        self._cast(tensor, made)
        return made

    def _cast(self, tensor: gs.Variable, made: gs.Variable) -> None:
        kind = onnx.helper.np_dtype_to_tensor_dtype(made.dtype)
        self.graph.nodes.append(
            gs.Node("Cast", f"{made.name}_cast", {"to": kind}, inputs=[tensor], outputs=[made])
        )

    def _constant(self, tensor: gs.Constant) -> gs.Constant:
        if tensor.name not in self._constants:
            values = np.asarray(tensor.values, np.float32)
            largest = float(np.abs(values).max(initial=0))
            if not largest <= LARGEST:  # also where it is not a number
                raise UserError(
                    f"{self.source}: the weight {tensor.name!r} reaches {largest:g}, FP16 ends at {LARGEST:g}",
                    "export it with --precision fp32",
                )
            self.rounding = self.rounding.of(values)
            self._constants[tensor.name] = gs.Constant(f"{tensor.name}_half", values.astype(np.float16))
        return self._constants[tensor.name]
