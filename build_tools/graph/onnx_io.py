"""What a grafted ONNX file says of itself: its spec, and the tensors that a Triton config must agree with.

graph = read_signature(Path("model.onnx"))
graph.spec.classes, graph.inputs["image"]      # Tensor("TYPE_UINT8", (3, 512, 512))
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import onnx
from onnx import TensorProto

from retinaserve.training import spec as contract
from retinaserve.training.errors import UserError
from retinaserve.training.spec import DetectorSpec

TRITON_TYPES: dict[int, str] = {
    TensorProto.UINT8: "TYPE_UINT8",
    TensorProto.FLOAT: "TYPE_FP32",
    TensorProto.FLOAT16: "TYPE_FP16",
    TensorProto.INT32: "TYPE_INT32",
    TensorProto.INT64: "TYPE_INT64",
}


@dataclass(frozen=True)
class Tensor:
    """A tensor as Triton's configs state it: its type and its dimensions without the batch."""

    data_type: str
    dims: tuple[int, ...]


@dataclass(frozen=True)
class Signature:
    """The spec and the tensors of a grafted graph."""

    spec: DetectorSpec
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    custom_operators: tuple[str, ...] = ()  # those of no ONNX operator set: TensorRT plugins
    precision: str = "fp32"  # of the network: fp32, fp16, or int8 with Q/DQ nodes
    identity: dict[str, str] = field(default_factory=dict)  # SHA-256 of the file and of what it was made from


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


def read_spec(model: onnx.ModelProto, source: str = "the ONNX model") -> DetectorSpec:
    """Return the spec a model carries. Raises UserError, which begins with `source`, where it carries none."""
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    if contract.METADATA_SPEC not in metadata:
        raise UserError(
            f"{source} has no {contract.METADATA_SPEC!r} in its metadata",
            "a model written by `retinaserve export` is expected",
        )
    return DetectorSpec.from_json(metadata[contract.METADATA_SPEC])


def read_signature(path: Path) -> Signature:
    """Read a grafted ONNX file. Raises UserError for a file that is not one, or that lacks decode and NMS."""
    model = load_graph(path)
    spec = read_spec(model, str(path))
    custom = sorted({node.op_type for node in model.graph.node if node.domain not in ("", "ai.onnx")})
    precision = {entry.key: entry.value for entry in model.metadata_props}.get(contract.METADATA_PRECISION, "fp32")
    identity = {"graph_sha256": hashlib.sha256(path.read_bytes()).hexdigest(), **_made_from(model)}
    signature = Signature(
        spec, _tensors(model.graph.input), _tensors(model.graph.output), tuple(custom), precision, identity
    )
    expected = expected_signature(spec)
    for kind, found, wanted in (
        ("input", signature.inputs, expected.inputs),
        ("output", signature.outputs, expected.outputs),
    ):
        if found != wanted:
            raise UserError(
                f"{path}: the graph's {kind}s are {_text(found)}, but its spec calls for {_text(wanted)}",
                "a graph of raw heads has to be grafted first: retinaserve export MODEL.pth MODEL.onnx",
            )
    for value in (*model.graph.input, *model.graph.output):
        batch = value.type.tensor_type.shape.dim[0]
        if batch.HasField("dim_value"):
            raise UserError(
                f"{path}: {value.name} has a fixed batch of {batch.dim_value}, a batch of any size is expected",
                "the server batches requests: retinaserve export MODEL.pth MODEL.onnx",
            )
    return signature


def _made_from(model: onnx.ModelProto) -> dict[str, str]:
    known = {contract.METADATA_CHECKPOINT: "checkpoint_sha256"}
    return {known[entry.key]: entry.value for entry in model.metadata_props if entry.key in known}


def expected_signature(spec: DetectorSpec) -> Signature:
    """Return the tensors of the `retinanet` model of a detector."""
    height, width = spec.size
    slots = spec.max_detections
    return Signature(
        spec,
        {
            contract.IMAGE: Tensor("TYPE_UINT8", (3, height, width)),
            contract.LETTERBOX: Tensor("TYPE_FP32", (4,)),
        },
        {
            contract.NUM_DETECTIONS: Tensor("TYPE_INT32", (1,)),
            contract.BOXES: Tensor("TYPE_FP32", (slots, 4)),
            contract.SCORES: Tensor("TYPE_FP32", (slots,)),
            contract.CLASSES: Tensor("TYPE_INT32", (slots,)),
        },
    )


def _tensors(values: Iterable[onnx.ValueInfoProto]) -> dict[str, Tensor]:
    return {value.name: _tensor(value) for value in values}


def _tensor(value: onnx.ValueInfoProto) -> Tensor:
    kind = value.type.tensor_type
    dims = tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in kind.shape.dim)
    return Tensor(TRITON_TYPES.get(kind.elem_type, TensorProto.DataType.Name(kind.elem_type)), dims[1:])


def _text(tensors: dict[str, Tensor]) -> str:
    return ", ".join(f"{name} {t.data_type} {list(t.dims)}" for name, t in tensors.items()) or "none"
