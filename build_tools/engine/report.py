"""What an engine is made of: its layers and their precisions, against what the graph asked for.

    report = LayerReport.of(load_graph(path), parse_listing(text))     # or parse_inspector(json)
    report.convolutions, report.fallen                                  # {"int8": 68, "fp32": 10}, ()

The text of TensorRT's engine inspector and the listing that a builder logs name the same facts in two notations;
both are read here.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import onnx
from onnx import TensorProto

# Words of both notations ("Datatype: Half", "Channel major FP16 format"), those that contain others first.
WORDS = (
    ("bf16", r"bfloat16|bf16"), ("fp8", r"fp8|float8"), ("int8", r"\bint8"), ("fp16", r"half|fp16|float16"),
    ("fp32", r"float|fp32"),
)  # fmt: skip
WAITING = frozenset({"wait", "signal"})  # of one stream for another: nothing is computed
GENERATED = "kgen"  # a kernel made of element-wise operators: what stands around a convolution
LAYER = re.compile(
    r"^Name: (?P<name>.*?), LayerType: (?P<kind>[^,]+), Inputs: \[(?P<inputs>.*?)\]"
    r"(?:, Constants: \[(?P<constants>.*?)\])?, Outputs: \[.*?\], TacticName: "
)
DATATYPE = re.compile(r"(?:Format/)?Datatype: ([^,}]+)")
ORIGIN = re.compile(r"\[ONNX Layer: ([^\]]+)\]")
FLOAT_TYPES: dict[int, str] = {TensorProto.FLOAT16: "fp16", TensorProto.FLOAT: "fp32"}


@dataclass(frozen=True)
class Layer:
    """A layer of an engine."""

    name: str
    kind: str  # TensorRT's word: "correlation" and "CaskConvolution" are convolutions
    precision: str  # of its first input: "int8", "fp16", "fp32", "bf16", "fp8"; or nothing
    origins: tuple[str, ...]  # the ONNX nodes in it


@dataclass(frozen=True)
class LayerReport:
    """An engine's layers in numbers."""

    layers: int
    convolutions: Mapping[str, int]  # by the precision they run in
    asked: Mapping[str, int]  # by the precision the graph states
    fallen: tuple[str, ...]  # convolutions that run in a wider type than the graph states
    other: Mapping[str, int]  # the other layers, by precision
    unnamed: tuple[str, ...] = ()  # convolutions that no layer is named for: their precision is not known

    @classmethod
    def of(cls, model: onnx.ModelProto, layers: Iterable[Layer]) -> Self:
        """Find each convolution of the graph among the layers."""
        asked = stated_precisions(model)
        working = [layer for layer in layers if layer.kind not in WAITING]
        running: dict[str, Layer] = {}
        for layer in working:
            for origin in asked.keys() & set(layer.origins):
                if origin not in running or running[origin].kind == GENERATED:
                    running[origin] = layer
        convolving = {id(layer) for layer in running.values()}
        wider = {name for name, layer in running.items() if _rank(layer.precision) > _rank(asked[name])}
        return cls(
            layers=len(working),
            # dict: of a Counter, dataclasses.asdict makes another one that counts its items, before Python 3.12
            convolutions=dict(Counter(layer.precision for layer in running.values())),
            asked=dict(Counter(asked.values())),
            fallen=tuple(name for name in asked if name in wider),
            other=dict(Counter(layer.precision or "none" for layer in working if id(layer) not in convolving)),
            unnamed=tuple(name for name in asked if name not in running),
        )


def stated_precisions(model: onnx.ModelProto) -> dict[str, str]:
    """Return the precision that the graph's types state for each convolution, by the node's name."""
    typed = onnx.shape_inference.infer_shapes(model)
    kinds: dict[str, int] = {item.name: item.data_type for item in typed.graph.initializer}
    for value in (*typed.graph.input, *typed.graph.value_info, *typed.graph.output):
        kinds[value.name] = value.type.tensor_type.elem_type
    maker = {name: node.op_type for node in typed.graph.node for name in node.output}
    return {
        node.name: "int8"
        if all(maker.get(name) == "DequantizeLinear" for name in node.input[:2])
        else FLOAT_TYPES.get(kinds.get(node.input[0], 0), "fp32")
        for node in typed.graph.node
        if node.op_type == "Conv"
    }


def parse_listing(text: str) -> list[Layer]:
    """Read the listing that a builder logs at detailed verbosity."""
    layers = []
    for line in text.splitlines():
        if match := LAYER.match(line):
            kinds = DATATYPE.findall(match["inputs"]) or DATATYPE.findall(match["constants"] or "")
            precision = precision_of(kinds[0] if kinds else "")
            layers.append(Layer(match["name"], match["kind"], precision, _origins(line)))
    return layers


def parse_inspector(text: str) -> list[Layer]:
    """Read the JSON of TensorRT's engine inspector; nothing where its notation is another."""
    try:
        layers = json.loads(text, strict=False)["Layers"]  # names may hold control characters
        return [_inspected(layer) for layer in layers]
    except (ValueError, LookupError, TypeError, AttributeError):
        return []


def _inspected(layer: Mapping[str, Any]) -> Layer:
    tensors = layer.get("Inputs") or layer.get("Constants") or [{}]
    first = tensors[0]
    kind = next((first[key] for key in ("Datatype", "Format/Datatype", "Format") if first.get(key)), "")
    return Layer(layer["Name"], layer["LayerType"], precision_of(kind), _origins(layer.get("Metadata", "")))


def _origins(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(ORIGIN.findall(text)))


def precision_of(word: str) -> str:
    """Return our name of a type in TensorRT's words, or nothing for integers and the like."""
    return next((name for name, pattern in WORDS if re.search(pattern, word, re.IGNORECASE)), "")


def _rank(precision: str) -> int:
    return {"int8": 0, "fp8": 0, "fp16": 1, "bf16": 1}.get(precision, 2)
