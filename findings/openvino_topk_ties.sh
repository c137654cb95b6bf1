#!/usr/bin/env bash
# OpenVINO's TopK gives equal values in an order of its own; ONNX wants the lower index first.
#
# Expected: ONNX's operator: "given two equivalent values, ... the element with the lower index will appear first".
# Seen:     the values are right; among equal ones the order is another, and where the last place is tied, others are
#           chosen than by ONNX Runtime (with a constant k; a k that is an input takes another path, which is right).
# Matters:  detectors take the best 1000 of many candidates, and 8-bit or bf16 scores are full of ties: two runtimes keep
#           other boxes, and "the same model" disagrees. Make ties impossible, or compare sets above the last score only.
# Source:   ONNX operators, TopK-11.
. "$(dirname "$0")/_venv.sh"
pip 'openvino==2026.4.1' 'onnx==1.22.0' 'onnxruntime==1.26.0' 'numpy==2.2.6'
cat > "$folder/look.py" <<'PYTHON'
import sys

import numpy as np
import onnxruntime as ort
import openvino as ov
from onnx import TensorProto, helper, numpy_helper

VERSIONS = f"openvino {ov.__version__.split('-')[0]}, onnxruntime {ort.__version__}"


def run(node, inputs, outputs, constants):
    """The outputs of one node in ONNX Runtime and in OpenVINO, on CPUs in fp32."""
    types = {np.dtype(each): helper.np_dtype_to_tensor_dtype(np.dtype(each)) for each in ("f4", "i8", "u1", "i1")}
    infos = [helper.make_tensor_value_info(name, types[a.dtype], a.shape) for name, a in inputs.items()]
    results = [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in outputs.items()]
    weights = [numpy_helper.from_array(a, name) for name, a in constants.items()]
    graph = helper.make_graph([node], "g", infos, results, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 9
    data = model.SerializeToString()
    reference = ort.InferenceSession(data, providers=["CPUExecutionProvider"]).run(None, inputs)
    compiled = ov.Core().compile_model(ov.Core().read_model(data), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return reference, [np.array(value) for value in compiled(inputs).values()]


x = np.random.default_rng(0).integers(0, 5, (1, 1000)).astype(np.float32)
k = np.array([500], np.int64)
node = helper.make_node("TopK", ["x", "k"], ["values", "places"], axis=1)
outputs = {"values": (TensorProto.FLOAT, [1, 500]), "places": (TensorProto.INT64, [1, 500])}
reference, seen = run(node, {"x": x}, outputs, {"k": k})
lowest_first = np.argsort(-x, axis=1, kind="stable")[:, :500]
same = [int(np.isin(each[1], lowest_first).sum()) for each in (reference, seen)]
print(f"{VERSIONS}: values equal: {np.array_equal(reference[0], seen[0])};")
print(f"of the 500 places that ONNX asks for, ONNX Runtime gives {same[0]}, OpenVINO {same[1]}")
sys.exit(not np.array_equal(reference[0], seen[0]) or same[0] != 500 or same[1] == 500)
PYTHON
python look.py
