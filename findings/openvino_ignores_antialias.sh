#!/usr/bin/env bash
# OpenVINO ignores antialias=1 of ONNX's Resize, without an error.
#
# Expected: what a runtime does not have it refuses; antialias is part of Resize since opset 18.
# Seen:     shrinking 64 x 64 to 8 x 8, linear: OpenVINO's result is, to the last digits, that of antialias=0.
# Matters:  a graph that shrinks images itself (preprocessing exported with the network) sees another image on CPUs than
#           in training: fine texture becomes noise, small objects come and go. Shrink before the graph.
# Source:   ONNX operators, Resize-18.
. "$(dirname "$0")/_venv.sh"
pip 'openvino==2026.4.1' 'onnx==1.22.0' 'onnxruntime==1.26.0' 'numpy==2.2.6'
cp "$(dirname "$0")/_operators.py" "$folder"
cat > "$folder/look.py" <<'PYTHON'
import sys

import numpy as np
from _operators import VERSIONS, run
from onnx import TensorProto, helper

x = np.random.default_rng(0).random((1, 1, 64, 64), np.float32)
sizes = np.array([1, 1, 8, 8], np.int64)
results = {}
for antialias in (0, 1):
    node = helper.make_node("Resize", ["x", "", "", "sizes"], ["y"], mode="linear", antialias=antialias)
    outputs = {"y": (TensorProto.FLOAT, [1, 1, 8, 8])}
    results[antialias] = [each[0] for each in run(node, {"x": x}, outputs, {"sizes": sizes})]
apart = [float(np.abs(on - off).max()) for on, off in zip(results[1], results[0], strict=True)]
print(f"{VERSIONS}: antialias=1 changes the image by {apart[0]:.2f} in ONNX Runtime, by {apart[1]:.1g} in OpenVINO")
sys.exit(not (apart[0] > 0.1 and apart[1] < 1e-6))
PYTHON
python look.py
