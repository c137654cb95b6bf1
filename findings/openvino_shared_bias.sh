#!/usr/bin/env bash
# OpenVINO adds a bias that several convolutions share in a pass of its own over each output.
#
# Expected: Conv with a constant bias is one primitive, whoever else uses the constant.
# Seen:     three convolutions with one bias: three more nodes ("Subgraph"); with equal biases of their own: none.
# Matters:  RetinaNet's, FCOS's and EfficientDet's heads run the same convolutions over five levels; exported as they are
#           shared, the largest tensors of the network are read and written once more. Give each level its own copy.
. "$(dirname "$0")/_venv.sh"
pip 'openvino==2026.4.1' 'onnx==1.22.0' 'numpy==2.2.6'
cat > "$folder/look.py" <<'PYTHON'
import collections
import sys

import numpy as np
import openvino as ov
from onnx import TensorProto, helper, numpy_helper

FLOAT = TensorProto.FLOAT


def kinds(*, shared: bool) -> collections.Counter[str]:
    """How many nodes of each kind the compiled network has."""
    bias = np.arange(64, dtype=np.float32)
    weights = [numpy_helper.from_array(np.ones((64, 32, 3, 3), np.float32), "w")]
    weights += [numpy_helper.from_array(bias, f"b{level}") for level in range(1 if shared else 3)]
    nodes = [
        helper.make_node("Conv", [f"x{level}", "w", "b0" if shared else f"b{level}"], [f"y{level}"], pads=[1] * 4)
        for level in range(3)
    ]
    inputs = [helper.make_tensor_value_info(f"x{level}", FLOAT, [1, 32, 32 >> level, 32 >> level]) for level in range(3)]
    outputs = [helper.make_tensor_value_info(f"y{level}", FLOAT, [1, 64, 32 >> level, 32 >> level]) for level in range(3)]
    graph = helper.make_graph(nodes, "g", inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 9
    core = ov.Core()
    compiled = core.compile_model(core.read_model(model.SerializeToString()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    ops = compiled.get_runtime_model().get_ordered_ops()
    return collections.Counter(str(op.get_rt_info()["layerType"].astype(str)) for op in ops)


extra = {name: kinds(shared=shared)["Subgraph"] for name, shared in (("shared", True), ("own", False))}
print(f"openvino {ov.__version__.split('-')[0]}: passes beside the three convolutions: {extra}")
sys.exit(extra != {"shared": 3, "own": 0})
PYTHON
python look.py
