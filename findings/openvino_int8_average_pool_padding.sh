#!/usr/bin/env bash
# OpenVINO's quantized AveragePool pads with code 0, which is not 0.0 where there is a zero point.
#
# Expected: with `count_include_pad=1` padding counts as 0.0, quantized or not: its code is the zero point.
# Seen:     a map of 2.0 in uint8 with zero point 128: at the corner ONNX Runtime gives 0.875, OpenVINO -3.56; in int8
#           with zero point -128 (all of the range for what follows a ReLU) 5.31. With zero point 0, or without padding
#           counted, both agree.
# Matters:  torch's AvgPool2d counts padding by default; in an INT8 graph with asymmetric activations the borders of each
#           map come out wrong by up to hundreds of steps, and boxes there with them, without an error.
# Source:   ONNX operators, AveragePool: "count_include_pad"; QuantizeLinear on zero points.
. "$(dirname "$0")/_venv.sh"
pip 'openvino==2026.4.1' 'onnx==1.22.0' 'onnxruntime==1.26.0' 'numpy==2.2.6'
cat > "$folder/look.py" <<'PYTHON'
import sys

import numpy as np
import onnxruntime as ort
import openvino as ov
from onnx import TensorProto, helper, numpy_helper


def corner(code: np.integer, counted: int) -> list[float]:
    """Return the corner of the pooled map in ONNX Runtime and in OpenVINO."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["a"]),
        helper.make_node("DequantizeLinear", ["a", "scale", "zero"], ["b"]),
        helper.make_node("AveragePool", ["b"], ["c"], kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=counted),
        helper.make_node("QuantizeLinear", ["c", "scale", "zero"], ["d"]),
        helper.make_node("DequantizeLinear", ["d", "scale", "zero"], ["y"]),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 8, 4, 4]) for name in "xy")
    constants = [numpy_helper.from_array(np.array(0.0625, np.float32), "scale"), numpy_helper.from_array(code, "zero")]
    graph = helper.make_graph(nodes, "g", [x], [y], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 9
    data, given = model.SerializeToString(), {"x": np.full((1, 8, 4, 4), 2, np.float32)}
    core = ov.Core()
    compiled = core.compile_model(core.read_model(data), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    one = ort.InferenceSession(data, providers=["CPUExecutionProvider"]).run(None, given)[0]
    return [round(float(each[0, 0, 0, 0]), 2) for each in (one, compiled(given)[0])]


print(f"openvino {ov.__version__.split('-')[0]}, onnxruntime {ort.__version__}; a corner, 8/9 in float:")
expected = {"int8 0": [0.88, 0.88], "uint8 128": [0.88, -3.56], "int8 -128": [0.88, 5.31]}
codes = {"int8 0": np.int8(0), "uint8 128": np.uint8(128), "int8 -128": np.int8(-128)}
seen = {name: corner(np.array(code), 1) for name, code in codes.items()}
without = corner(np.array(np.uint8(128)), 0)
print(f"padding counted, by zero point: {seen}; not counted: {without}")
sys.exit(seen != expected or without != [2.0, 2.0])
PYTHON
python look.py
