"""What an ONNX file says of the detector in it, and the same graph with its raw heads laid open.

    graph = OnnxGraph.read(Path("model.onnx"))
    graph.spec.classes, graph.precision, graph.head_names
    graph.with_heads().SerializeToString()      # the four outputs, then the heads

It runs nothing and writes no file.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto

from retinaserve.training.errors import UserError
from retinaserve.training.spec import IMAGE, LETTERBOX, METADATA_SPEC, DetectorSpec

Precision = Literal["fp32", "fp16", "bf16", "int8"]
QUANTIZED = frozenset({"QuantizeLinear", "DequantizeLinear"})
RUNNABLE = frozenset({"", "ai.onnx", "com.microsoft"})  # the last is ONNX Runtime's own


@dataclass(frozen=True, eq=False)
class OnnxGraph:
    """A grafted detector; `custom` operators are those that no ONNX runtime has, TensorRT's plugins."""

    model: onnx.ModelProto
    spec: DetectorSpec
    precision: Precision
    head_names: tuple[str, ...]  # those of spec.head_names that the graph still has, or none
    custom: tuple[str, ...]

    @classmethod
    def read(cls, path: Path) -> "OnnxGraph":
        """Read a file. Raises UserError for one that is no ONNX file or no grafted detector."""
        try:
            model = onnx.load(str(path))
        except (DecodeError, OSError) as error:
            raise UserError(f"{path} is not an ONNX file: {error}") from None
        text = next((item.value for item in model.metadata_props if item.key == METADATA_SPEC), None)
        inputs = {item.name for item in model.graph.input}
        if text is None or inputs != {IMAGE, LETTERBOX}:
            raise UserError(
                f"{path} is not a deployable detector", "make it with: retinaserve export MODEL.pth OUT.onnx"
            )
        spec = DetectorSpec.from_json(text)
        tensors = {name for node in model.graph.node for name in node.output}
        heads = tuple(name for pair in spec.head_names for name in pair)
        return cls(
            model=model,
            spec=spec,
            precision=precision_of(model),
            head_names=heads if tensors.issuperset(heads) else (),
            custom=tuple(sorted({node.op_type for node in model.graph.node if node.domain not in RUNNABLE})),
        )

    def with_heads(self) -> onnx.ModelProto:
        """Return the graph with the heads behind its own outputs."""
        opened = onnx.ModelProto()
        opened.CopyFrom(self.model)
        present = {value.name for value in opened.graph.output}
        known = {value.name: value for value in onnx.shape_inference.infer_shapes(opened).graph.value_info}
        for name in self.head_names:
            if name not in present:
                value = known.get(name) or onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
                opened.graph.output.append(value)
        return opened

    def up_to_heads(self) -> onnx.ModelProto:
        """Return the graph from the picture to the heads, without what stands behind them."""
        import onnx_graphsurgeon as gs

        graph = gs.import_onnx(self.with_heads())
        graph.outputs = [tensor for tensor in graph.outputs if tensor.name in self.head_names]
        graph.cleanup(remove_unused_graph_inputs=True).toposort()
        cut: onnx.ModelProto = gs.export_onnx(graph)
        return cut


def precision_of(model: onnx.ModelProto) -> Precision:
    """Return what a graph computes in: int8 with Q/DQ nodes, else the narrowest float among its constants."""
    if any(node.op_type in QUANTIZED for node in model.graph.node):
        return "int8"
    attributes = (item for node in model.graph.node if node.op_type == "Constant" for item in node.attribute)
    kinds = {item.data_type for item in model.graph.initializer} | {item.t.data_type for item in attributes}
    if TensorProto.FLOAT16 in kinds:
        return "fp16"
    return "bf16" if TensorProto.BFLOAT16 in kinds else "fp32"
