"""Reads the ONNX files of detectors: the spec they carry, their tensors, their precision, their raw heads.

graph = OnnxGraph.read(Path("model.onnx"))
graph.spec.classes, graph.precision, graph.outputs["boxes"]      # Tensor("float32", (100, 4))
graph.with_heads().SerializeToString()      # the detections, then the heads
"""

import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import onnx
from onnx import TensorProto

from retinaserve.training.errors import UserError
from retinaserve.training.files import sha256
from retinaserve.training.spec import (
    METADATA_CALIBRATION,
    METADATA_CHECKPOINT,
    METADATA_PRECISION,
    METADATA_SPEC,
    DetectorSpec,
    Tensor,
)

Precision = Literal["fp32", "fp16", "int8"]
QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
STANDARD = frozenset({"", "ai.onnx"})  # the operator sets that every runtime has


@dataclass(frozen=True, eq=False)
class OnnxGraph:
    """A grafted detector: its inputs have the names of its spec's, its outputs may be others."""

    path: Path
    model: onnx.ModelProto
    spec: DetectorSpec
    precision: Precision | Literal["bf16"]
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]

    @classmethod
    def read(cls, path: Path) -> "OnnxGraph":
        """Read a file. Raises UserError for one that is no ONNX file or no grafted detector."""
        model = load_graph(path)
        spec = read_spec(model, str(path))
        graph = cls(
            path, model, spec, precision_of(model), _tensors(model.graph.input), _tensors(model.graph.output)
        )
        if graph.inputs.keys() != spec.inputs.keys():
            graph._expect("input", graph.inputs, spec.inputs)
        return graph

    def check_served(self) -> None:
        """Raise UserError unless the tensors are the spec's and the batch is of any size, as a server needs it."""
        self._expect("input", self.inputs, self.spec.inputs)
        self._expect("output", self.outputs, self.spec.outputs)
        for value in (*self.model.graph.input, *self.model.graph.output):
            batch = value.type.tensor_type.shape.dim[0]
            if batch.HasField("dim_value"):
                raise UserError(
                    f"{self.path}: {value.name} has a fixed batch of {batch.dim_value}, "
                    "a batch of any size is expected",
                    "the server batches requests: retinaserve export MODEL.pth MODEL.onnx",
                )

    def _expect(self, kind: str, found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
        if found != wanted:
            raise UserError(
                f"{self.path}: the graph's {kind}s are {_text(found)}, but its spec calls for {_text(wanted)}",
                "a graph of raw heads has to be grafted first: retinaserve export MODEL.pth MODEL.onnx",
            )

    @property
    def head_names(self) -> tuple[str, ...]:
        """The raw heads by the names of the spec, or none where the graph lacks one of them."""
        tensors = {name for node in self.model.graph.node for name in node.output}
        heads = tuple(name for pair in self.spec.head_names for name in pair)
        return heads if tensors.issuperset(heads) else ()

    def custom_operators(self, known: Collection[str] = STANDARD) -> tuple[str, ...]:
        """Return the operators of other sets than the known ones, such as TensorRT's plugins."""
        return tuple(sorted({node.op_type for node in self.model.graph.node if node.domain not in known}))

    def identity(self) -> dict[str, str]:
        """Return the SHA-256 of the file, and of the checkpoint it was made from where that is known."""
        checkpoint = metadata_of(self.model).get(METADATA_CHECKPOINT)
        return {"graph_sha256": sha256(self.path)} | ({"checkpoint_sha256": checkpoint} if checkpoint else {})

    def with_heads(self) -> onnx.ModelProto:
        """Return the graph with the heads behind its own outputs."""
        opened = onnx.ModelProto()
        opened.CopyFrom(self.model)
        known = {value.name: value for value in onnx.shape_inference.infer_shapes(opened).graph.value_info}
        for name in self.head_names:
            if name not in self.outputs:
                value = known.get(name) or onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
                opened.graph.output.append(value)
        return opened

    def up_to_heads(self) -> onnx.ModelProto:
        """Return the graph from the image to the heads, without what stands behind them."""
        import onnx_graphsurgeon as gs

        graph = gs.import_onnx(self.with_heads())
        graph.outputs = [tensor for tensor in graph.outputs if tensor.name in self.head_names]
        graph.cleanup(remove_unused_graph_inputs=True).toposort()
        cut: onnx.ModelProto = gs.export_onnx(graph)
        return cut


def load_graph(path: Path) -> onnx.ModelProto:
    """Read an ONNX file. Raises UserError where there is none."""
    if not path.is_file():
        raise UserError(f"{path}: no such file", "an ONNX model is expected")
    try:
        model = onnx.load(path, format="protobuf")  # by its suffix onnx would read .json and .txt as text
    except Exception as error:  # protobuf's DecodeError, whose module differs between its versions
        raise UserError(
            f"{path} is not an ONNX model ({error})", "an .onnx from `retinaserve export` is expected"
        ) from None
    if not model.ir_version:  # protobuf reads an empty file as an empty message
        raise UserError(f"{path} is not an ONNX model (it is empty)")
    return model


def metadata_of(model: onnx.ModelProto) -> dict[str, str]:
    """Return a model's metadata_props."""
    return {entry.key: entry.value for entry in model.metadata_props}


def read_spec(model: onnx.ModelProto, source: str = "the ONNX model") -> DetectorSpec:
    """Return the spec a model carries. Raises UserError, which begins with `source`, where it carries none."""
    text = metadata_of(model).get(METADATA_SPEC)
    if text is None:
        raise UserError(
            f"{source} has no {METADATA_SPEC!r} in its metadata",
            "a model written by `retinaserve export` is expected",
        )
    return DetectorSpec.from_json(text)


def precision_of(model: onnx.ModelProto) -> Precision | Literal["bf16"]:
    """Return what a network computes in: by its metadata, else int8 with Q/DQ nodes, else its narrowest float."""
    stated = metadata_of(model).get(METADATA_PRECISION)
    if stated == "int8" or any(node.op_type in (QUANTIZE, DEQUANTIZE) for node in model.graph.node):
        return "int8"
    attributes = (item for node in model.graph.node if node.op_type == "Constant" for item in node.attribute)
    kinds = {item.data_type for item in model.graph.initializer} | {item.t.data_type for item in attributes}
    if stated == "fp16" or TensorProto.FLOAT16 in kinds:
        return "fp16"
    return "bf16" if TensorProto.BFLOAT16 in kinds else "fp32"


def calibration_sha256(model: onnx.ModelProto) -> str:
    """Return the hash of the images that a graph was calibrated with, or nothing."""
    found: str = json.loads(metadata_of(model).get(METADATA_CALIBRATION, "{}")).get("pictures_sha256", "")
    return found


def _tensors(values: Iterable[onnx.ValueInfoProto]) -> dict[str, Tensor]:
    return {value.name: _tensor(value) for value in values}


def _tensor(value: onnx.ValueInfoProto) -> Tensor:
    kind = value.type.tensor_type
    dims = tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in kind.shape.dim)
    name = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name if kind.elem_type else "untyped"
    return Tensor(name, dims[1:])


def _text(tensors: dict[str, Tensor]) -> str:
    return ", ".join(f"{name} {tensor.dtype} {list(tensor.shape)}" for name, tensor in tensors.items()) or "none"
