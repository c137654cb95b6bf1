#!/usr/bin/env bash
# onnx's shape inference with data_prop refuses a valid graph, because it forgets the axis that an Unsqueeze made.
#
# Expected: data_prop=True finds out more than data_prop=False, and fails where a graph is wrong only.
# Seen:     Mul of an unsqueezed shape (2, 1) with a constant (3,): "Invalid rank for Mul broadcasting: (2) vs (3)" in
#           strict mode. Without data_prop the shape is inferred, (2, 3), and ONNX Runtime computes it.
# Matters:  graphs that take any image size compute strides, offsets and grids from Shape just so; tools that export or
#           optimise them with data_prop=True call them invalid.
# Source:   seen while a decode for images of any size was written; no issue of onnx tells of it.
. "$(dirname "$0")/_venv.sh"
pip 'onnx==1.22.0' 'onnxruntime==1.32.0' 'numpy==2.2.6'
cat > "$folder/look.py" <<'PYTHON'
import sys

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

nodes = [
    helper.make_node("Shape", ["x"], ["sizes"]),
    helper.make_node("Unsqueeze", ["sizes", "axes"], ["column"]),
    helper.make_node("Mul", ["column", "row"], ["y"]),
]
graph = helper.make_graph(
    nodes,
    "table",
    [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["a", "b"])],
    [helper.make_tensor_value_info("y", TensorProto.INT64, ["rows", "columns"])],
    [numpy_helper.from_array(np.array([1]), "axes"), numpy_helper.from_array(np.arange(3), "row")],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
onnx.checker.check_model(model)
(y,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": np.zeros((4, 5), np.float32)})
plain = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph.output[0].type.tensor_type.shape
print(f"onnx {onnx.__version__}: inferred {[each.dim_value for each in plain.dim]}, computed {y.tolist()}")
try:
    onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
except onnx.shape_inference.InferenceError as error:
    print(f"with data_prop: {error}")
    sys.exit("Invalid rank" not in str(error) or y.tolist() != [[0, 4, 8], [0, 5, 10]])
sys.exit("data_prop infers it too")
PYTHON
python look.py
