"""An FP16 graph in FP32 that rounds where half precision rounds: what a GPU computes, measurable on a CPU.

    emulated = emulate_half(to_float16(Path("heads.onnx"))[0])      # then build_tools/graph/graft.py

CPU runtimes take an FP16 graph and compute in float from end to end, so their accuracy says nothing of a GPU's.
Here every result that FP16 would round is rounded to 11 bits by Veltkamp's splitting, three operations that no
runtime may remove. Sums inside a convolution stay in float, as on tensor cores. Numbers below 6e-5 keep the digits
that FP16 would lose, and nothing overflows: look at `Rounding`, and at the largest activation.
"""

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from retinaserve.build_tools.graph.onnx_io import metadata_of
from retinaserve.training.errors import UserError

SPLITTER = np.float32(2**13 + 1)  # 24 bits less 11; T. J. Dekker, Numerische Mathematik 18 (1971)
# These give out values that came in, and need no rounding.
EXACT = frozenset({
    "Clip", "Concat", "Expand", "Flatten", "Gather", "Identity", "MaxPool", "Pad", "Relu", "Reshape", "Slice",
    "Split", "Squeeze", "Transpose", "Unsqueeze",
    "Resize",  # to the nearest, as our pyramid does
})  # fmt: skip
HALF, FLOAT = np.dtype(np.float16), np.dtype(np.float32)


def emulate_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with the same inputs, outputs and metadata. Raises UserError for one without FP16."""
    graph = gs.import_onnx(onnx.shape_inference.infer_shapes(model, strict_mode=True))
    tensors = [tensor for tensor in graph.tensors().values() if tensor.dtype == HALF]
    if not tensors:
        raise UserError("there is nothing to emulate in a graph without FP16", "--precision fp16 is expected")
    for node in list(graph.nodes):
        is_cast = node.op == "Cast"
        if is_cast and HALF in (node.inputs[0].dtype, node.outputs[0].dtype):
            node.op, node.attrs = "Identity", {}
        for place, tensor in enumerate(node.outputs):
            if tensor.dtype == HALF and (is_cast or node.op not in EXACT):
                _round(graph, node, place, tensor)
    for tensor in tensors:
        if isinstance(tensor, gs.Constant):
            tensor.values = tensor.values.astype(np.float32)
        else:
            tensor.dtype = FLOAT
    graph.cleanup().toposort()
    emulated: onnx.ModelProto = gs.export_onnx(graph)
    del emulated.graph.value_info[:]  # inferred for the types there were
    onnx.helper.set_model_props(emulated, metadata_of(model))
    onnx.checker.check_model(emulated, full_check=True)
    return emulated


def _round(graph: gs.Graph, node: gs.Node, place: int, tensor: gs.Variable) -> None:
    """Put big = x * (2^13 + 1), rounded = big - (big - x) between a node and its output."""
    raw, big, low = (gs.Variable(f"{tensor.name}/{name}", FLOAT) for name in ("raw", "big", "low"))
    node.outputs[place] = raw
    splitter = gs.Constant(f"{tensor.name}/splitter", np.array(SPLITTER))
    graph.nodes += [
        gs.Node("Mul", f"{tensor.name}/times", inputs=[raw, splitter], outputs=[big]),
        gs.Node("Sub", f"{tensor.name}/less", inputs=[big, raw], outputs=[low]),
        gs.Node("Sub", f"{tensor.name}/round", inputs=[big, low], outputs=[tensor]),
    ]
