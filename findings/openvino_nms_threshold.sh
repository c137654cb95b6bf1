#!/usr/bin/env bash
# OpenVINO's NonMaxSuppression removes boxes at the IoU threshold, ONNX Runtime's keeps them.
#
# Expected: ONNX: boxes "that have high intersection-over-union (IoU) overlap" above the threshold go; one at exactly
#           the threshold stays, in every runtime.
# Seen:     IoU exactly 0.5, threshold 0.5: ONNX Runtime keeps both boxes, OpenVINO one.
# Matters:  integer boxes, tiles and grids have an IoU of exactly 0.5 often. One float32 step above the threshold makes
#           OpenVINO do what ONNX Runtime does.
# Source:   ONNX operators, NonMaxSuppression-11.
. "$(dirname "$0")/_venv.sh"
pip 'openvino==2026.4.1' 'onnx==1.22.0' 'onnxruntime==1.26.0' 'numpy==2.2.6'
cat > "$folder/look.py" <<'PYTHON'
import sys

import numpy as np
import onnxruntime as ort
import openvino as ov
from onnx import TensorProto, helper

VERSIONS = f"openvino {ov.__version__.split('-')[0]}, onnxruntime {ort.__version__}"


def run(node, inputs, outputs):
    """The outputs of one node in ONNX Runtime and in OpenVINO, on CPUs in fp32."""
    types = {np.dtype(each): helper.np_dtype_to_tensor_dtype(np.dtype(each)) for each in ("f4", "i8", "u1", "i1")}
    infos = [helper.make_tensor_value_info(name, types[a.dtype], a.shape) for name, a in inputs.items()]
    results = [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in outputs.items()]
    model = helper.make_model(helper.make_graph([node], "g", infos, results), opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 9
    data = model.SerializeToString()
    reference = ort.InferenceSession(data, providers=["CPUExecutionProvider"]).run(None, inputs)
    compiled = ov.Core().compile_model(ov.Core().read_model(data), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return reference, [np.array(value) for value in compiled(inputs).values()]


boxes = np.array([[[0, 0, 2, 1], [0, 0, 1, 1]]], np.float32)
scores = np.array([[[0.9, 0.8]]], np.float32)
node = helper.make_node("NonMaxSuppression", ["boxes", "scores", "most", "iou"], ["kept"])
kept = []
for iou in (0.5, np.nextafter(np.float32(0.5), np.float32(1))):
    given = {"boxes": boxes, "scores": scores, "most": np.array([9], np.int64), "iou": np.array([iou], np.float32)}
    outputs = {"kept": (TensorProto.INT64, [None, 3])}
    kept.append([int((each[0][:, 0] >= 0).sum()) for each in run(node, given, outputs)])
print(f"{VERSIONS}: boxes kept at an IoU of the threshold: {kept[0]}, with the threshold one step up: {kept[1]}")
sys.exit(kept != [[2, 1], [2, 2]])
PYTHON
python look.py
