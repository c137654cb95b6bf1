#!/usr/bin/env bash
# OpenVINO's TopK gives equal values in an order of its own; ONNX wants the lower index first.
#
# Expected: what ONNX demands of the operator: of two equal values, the one of the lower index comes first.
# Seen:     the values are right; among equal ones the order is another, and where the last place is tied, others are
#           chosen than by ONNX Runtime (with a constant k; a k that is an input takes another path, which is right).
# Matters:  detectors take the best 1000 of many candidates, and 8-bit or bf16 scores are full of ties: two runtimes keep
#           other boxes, and "the same model" disagrees. Make ties impossible, or compare sets above the last score only.
# Source:   ONNX operators, TopK-11.
. "$(dirname "$0")/_venv.sh"
pip 'openvino==2026.4.1' 'onnx==1.22.0' 'onnxruntime==1.26.0' 'numpy==2.2.6'
cp "$(dirname "$0")/_operators.py" "$folder"
cat > "$folder/look.py" <<'PYTHON'
import sys

import numpy as np
from _operators import VERSIONS, run
from onnx import TensorProto, helper

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
