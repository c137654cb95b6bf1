#!/usr/bin/env bash
# OpenVINO on CPUs divides integers in float32, and has 32 bits for an int64.
#
# Expected: integer Div is exact, int64 products hold 64 bits.
# Seen:     16777217 / 1 = 16777216, 50331651 / 3 = 16777218; 100000 * 100000 = 1410065408 (of int64 inputs).
# Matters:  flattened indices of detectors (level, cell, anchor, class) are taken apart by Div and Mod: past 2^24
#           candidates boxes come from a neighbouring cell or class. Keep indices below 2^24, or divide level by level.
. "$(dirname "$0")/_venv.sh"
pip 'openvino==2026.4.1' 'onnx==1.22.0' 'onnxruntime==1.26.0' 'numpy==2.2.6'
cp "$(dirname "$0")/_operators.py" "$folder"
cat > "$folder/look.py" <<'PYTHON'
import sys

import numpy as np
from _operators import VERSIONS, run
from onnx import TensorProto, helper

a, b = np.array([16777217, 50331651], np.int64), np.array([1, 3], np.int64)
integers = {"y": (TensorProto.INT64, [2])}
divided = [each[0].tolist() for each in run(helper.make_node("Div", ["a", "b"], ["y"]), {"a": a, "b": b}, integers)]
c = np.array([100000, 46341], np.int64)
squared = [each[0].tolist() for each in run(helper.make_node("Mul", ["a", "b"], ["y"]), {"a": c, "b": c}, integers)]
print(f"{VERSIONS} (ONNX Runtime's first): {a} / {b} = {divided[0]}, {divided[1]}; {c} squared = {squared[0]}, {squared[1]}")
exact = [[16777217, 16777217], [10**10, 46341**2]]
sys.exit([divided[0], squared[0]] != exact or divided[1] == exact[0] or squared[1] == exact[1])
PYTHON
python look.py
