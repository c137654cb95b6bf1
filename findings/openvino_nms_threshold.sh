#!/usr/bin/env bash
# OpenVINO's NonMaxSuppression removes boxes at the IoU threshold, ONNX Runtime's keeps them.
#
# Expected: ONNX removes what overlaps by more than the threshold; a box at exactly the threshold stays, in every
#           runtime.
# Seen:     IoU exactly 0.5, threshold 0.5: ONNX Runtime keeps both boxes, OpenVINO one.
# Matters:  integer boxes, tiles and grids have an IoU of exactly 0.5 often. One float32 step above the threshold makes
#           OpenVINO do what ONNX Runtime does.
# Source:   ONNX operators, NonMaxSuppression-11.
. "$(dirname "$0")/_venv.sh"
pip 'openvino==2026.4.1' 'onnx==1.22.0' 'onnxruntime==1.26.0' 'numpy==2.2.6'
cp "$(dirname "$0")/_operators.py" "$folder"
cat > "$folder/look.py" <<'PYTHON'
import sys

import numpy as np
from _operators import VERSIONS, run
from onnx import TensorProto, helper

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
