#!/usr/bin/env bash
# OpenVINO's MaxPool with ceil_mode keeps windows that lie in the padding, and fills them with -3.4e38.
#
# Expected: as in PyTorch and ONNX Runtime, a last window that would start in the padding is left out.
# Seen:     5 x 5, kernel 2, stride 2, padding 1, ceil_mode: 3 x 3 in ONNX Runtime, 4 x 4 in OpenVINO, with a row and a
#           column of the lowest float32.
# Matters:  backbones with ceil_mode (Caffe's stems, SqueezeNet, GoogLeNet): feature maps and anchors shift by a cell, or
#           the next convolution adds up -1e38. Export with padding made explicit, ceil_mode=0.
# Source:   ONNX operators, MaxPool-22: windows that would start in the right padded region are ignored.
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


x = np.random.default_rng(0).random((1, 1, 5, 5), np.float32)
words = {"kernel_shape": [2, 2], "strides": [2, 2], "pads": [1, 1, 1, 1], "ceil_mode": 1}
node = helper.make_node("MaxPool", ["x"], ["y"], **words)
reference, seen = (each[0] for each in run(node, {"x": x}, {"y": (TensorProto.FLOAT, [1, 1, "h", "w"])}, {}))
lowest = int((seen < -1e38).sum())
print(f"{VERSIONS}: 5 x 5 becomes {reference.shape[2:]} and {seen.shape[2:]}, {lowest} values of the latter are -3.4e38")
same = np.array_equal(seen[:, :, :3, :3], reference)
sys.exit((reference.shape[2:], seen.shape[2:], lowest, same) != ((3, 3), (4, 4), 7, True))
PYTHON
python look.py
