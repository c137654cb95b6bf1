#!/usr/bin/env bash
# OpenVINO ignores antialias=1 and keep_aspect_ratio_policy of ONNX's Resize, without an error.
#
# Expected: what a runtime does not have it refuses; both are part of Resize since opset 18.
# Seen:     shrinking 64 x 64 to 8 x 8, linear: OpenVINO's result is, to the last digits, that of antialias=0. Of 10 x 20
#           into 16 x 16 "not_larger" it makes 16 x 16 where ONNX Runtime makes 8 x 16.
# Matters:  a graph that shrinks images itself (preprocessing exported with the network) sees another image on CPUs than
#           in training: fine texture becomes noise, small objects come and go, and a letterbox becomes a stretched
#           image. Shrink before the graph.
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
fitted = {"mode": "linear", "keep_aspect_ratio_policy": "not_larger", "axes": [2, 3]}
node = helper.make_node("Resize", ["x", "", "", "sizes"], ["y"], **fitted)
box = {"sizes": np.array([16, 16], np.int64)}
seen = [each[0].shape[2:] for each in run(node, {"x": x[:, :, :10, :20]}, {"y": (TensorProto.FLOAT, [1, 1, None, None])}, box)]
print(f"10 x 20 fitted into 16 x 16: {seen[0]} in ONNX Runtime, {seen[1]} in OpenVINO")
sys.exit(not (apart[0] > 0.1 and apart[1] < 1e-6 and seen == [(8, 16), (16, 16)]))
PYTHON
python look.py
