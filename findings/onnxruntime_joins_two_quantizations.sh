#!/usr/bin/env bash
# ONNX Runtime makes one quantization of two in a row, with a scale that stands in neither.
#
# Expected: QuantizeLinear and DequantizeLinear round to the codes that the graph states, at every optimization level.
# Seen:     a pair of scale 0.05 followed by one of 0.04 becomes one pair of scale 0.0327, the common range over 255, from
#           ORT_ENABLE_BASIC on: the output has 256 values where the graph allows 168, and 99 of 100 are between them.
#           With optimizations off, and in OpenVINO, the values are the stated ones.
# Matters:  two pairs meet where quantized parts of a network are joined, or a tensor goes into two layers of other ranges:
#           AP measured in ONNX Runtime is not that of the graph in TensorRT or OpenVINO. One pair a tensor avoids it.
# Source:   ONNX operators, QuantizeLinear; ONNX Runtime's graph optimizations name no change of values.
. "$(dirname "$0")/_venv.sh"
pip 'openvino==2026.4.1' 'onnx==1.22.0' 'onnxruntime==1.26.0' 'numpy==2.2.6'
cat > "$folder/look.py" <<'PYTHON'
import sys

import numpy as np
import onnxruntime as ort
import openvino as ov
from onnx import TensorProto, helper, numpy_helper

SCALES, ZEROS = (0.05, 0.04), (128, 50)
nodes, tensor = [], "x"
for number in (0, 1):
    quantized, result = f"q{number}", ("between", "y")[number]
    parts = [f"scale{number}", f"zero{number}"]
    nodes.append(helper.make_node("QuantizeLinear", [tensor, *parts], [quantized]))
    nodes.append(helper.make_node("DequantizeLinear", [quantized, *parts], [result]))
    tensor = result
constants = [numpy_helper.from_array(np.array(value, np.float32), f"scale{n}") for n, value in enumerate(SCALES)]
constants += [numpy_helper.from_array(np.array(value, np.uint8), f"zero{n}") for n, value in enumerate(ZEROS)]
x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1024]) for name in "xy")
model = helper.make_model(helper.make_graph(nodes, "g", [x], [y], constants), opset_imports=[helper.make_opsetid("", 18)])
model.ir_version = 9
data, given = model.SerializeToString(), {"x": np.linspace(-6, 8, 1024, dtype=np.float32)[None]}
found = {}
for level in ("DISABLE_ALL", "ENABLE_BASIC", "ENABLE_ALL"):
    options = ort.SessionOptions()
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, f"ORT_{level}")
    found[level] = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"]).run(None, given)[0]
core = ov.Core()
found["OpenVINO"] = core.compile_model(core.read_model(data), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(given)[0]
print(f"onnxruntime {ort.__version__}, openvino {ov.__version__.split('-')[0]}; values, percent that are no multiple of 0.04")
seen = {}
for name, values in found.items():
    steps = values / np.float32(SCALES[1])
    seen[name] = len(np.unique(values)), round(100 * float((np.abs(steps - np.rint(steps)) > 1e-3).mean()))
    print(f"{name}: {seen[name]}")
joined = seen["ENABLE_BASIC"]
sys.exit(
    seen["DISABLE_ALL"] != (168, 0) or seen["OpenVINO"] != (168, 0) or joined != seen["ENABLE_ALL"] or joined[1] < 90
)
PYTHON
python look.py
