#!/usr/bin/env bash
# OpenVINO's Model.reshape turns quantized convolutions that share their weights into float ones.
#
# Expected: a graph of fixed sizes is computed as the same graph with open ones, and rather faster.
# Seen:     three convolutions of Q/DQ with one INT8 weight, and zero points of their own, all 0: three in INT8 as the
#           file is read, none after `model.reshape`; with weights of their own, or one zero point, they stay in INT8.
# Matters:  RetinaNet's, FCOS's and EfficientDet's heads share their weights over five levels and are half of the work: a
#           RetinaNet with a ResNet50 took 0.52 CPU seconds for 0.36. Write the sizes into the ONNX file instead.
. "$(dirname "$0")/_venv.sh"
pip 'openvino==2026.4.1' 'onnx==1.22.0' 'numpy==2.2.6'
cat > "$folder/look.py" <<'PYTHON'
import sys

import numpy as np
import openvino as ov
from onnx import TensorProto, helper, numpy_helper

LEVELS = 3


def in_int8(*, shared: bool, reshaped: bool) -> int:
    """How many of the convolutions are computed in INT8."""
    chance = np.random.default_rng(0)
    constants = {"s": np.float32(0.02), "z": np.int8(0), "ws": np.full(64, 0.01, np.float32)}
    nodes = []
    for level in range(LEVELS):
        weight = "w0" if shared else f"w{level}"
        zero = f"z{level}"
        constants[zero] = np.zeros(64, np.int8)
        constants[weight] = chance.integers(-127, 128, (64, 64, 3, 3)).astype(np.int8)
        for op, given, made, axis in (
            ("QuantizeLinear", [f"x{level}", "s", "z"], f"q{level}", {}),
            ("DequantizeLinear", [f"q{level}", "s", "z"], f"d{level}", {}),
            ("DequantizeLinear", [weight, "ws", zero], f"f{level}", {"axis": 0}),
        ):
            nodes.append(helper.make_node(op, given, [made], **axis))
        nodes.append(helper.make_node("Conv", [f"d{level}", f"f{level}"], [f"y{level}"], pads=[1] * 4))
    sides = ["n", 64, "h", "w"]
    inputs, outputs = (
        [helper.make_tensor_value_info(f"{name}{level}", TensorProto.FLOAT, sides) for level in range(LEVELS)]
        for name in "xy"
    )
    weights = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 9
    core = ov.Core()
    read = core.read_model(model.SerializeToString())
    if reshaped:
        read.reshape({f"x{level}": [1, 64, 32, 32] for level in range(LEVELS)})
    compiled = core.compile_model(read, "CPU", {"PERF_COUNT": True, "INFERENCE_PRECISION_HINT": "f32"})
    request = compiled.create_infer_request()
    request.infer({f"x{level}": np.ones((1, 64, 32, 32), np.float32) for level in range(LEVELS)})
    return sum(each.node_type == "Convolution" and "I8" in each.exec_type for each in request.profiling_info)


cases = [(shared, reshaped) for shared in (False, True) for reshaped in (False, True)]
seen = {case: in_int8(shared=case[0], reshaped=case[1]) for case in cases}
print(f"openvino {ov.__version__.split('-')[0]}: in INT8, of {LEVELS}, by (weights shared, reshaped): {seen}")
sys.exit(seen != {(False, False): 3, (False, True): 3, (True, False): 3, (True, True): 0})
PYTHON
python look.py
