#!/usr/bin/env bash
# Sums, differences and products of uint8 stop at 0 and 255 in OpenVINO, and wrap in ONNX Runtime.
#
# Expected: bytes are computed as in NumPy, torch and C: 5 - 7 is 254 and 200 + 100 is 44, in every runtime.
# Seen:     ONNX Runtime does so; OpenVINO gives 0 and 255, for one byte and for whole images.
# Matters:  differences of frames, checksums, hashes and dithering inside a graph give other numbers on CPUs with OpenVINO
#           than where the graph was tested; cast to int32 first.
# Source:   ONNX operators, Add-14 and Sub-14, which take uint8 and say nothing of overflow.
. "$(dirname "$0")/_venv.sh"
pip 'openvino==2026.4.1' 'onnx==1.22.0' 'onnxruntime==1.26.0' 'numpy==2.2.6'
cp "$(dirname "$0")/_operators.py" "$folder"
cat > "$folder/look.py" <<'PYTHON'
import sys

import numpy as np
from _operators import VERSIONS, run
from onnx import TensorProto, helper

seen = {}
for operator, one, other in (("Sub", 5, 7), ("Add", 200, 100), ("Mul", 20, 20)):
    node = helper.make_node(operator, ["one", "other"], ["y"])
    images = {"one": np.full((1, 3, 8, 8), one, np.uint8), "other": np.full((1, 3, 8, 8), other, np.uint8)}
    results = run(node, images, {"y": (TensorProto.UINT8, [1, 3, 8, 8])})
    seen[f"{operator} {one} {other}"] = [sorted({int(value) for value in each[0].flat}) for each in results]
print(f"{VERSIONS}, in ONNX Runtime and in OpenVINO: {seen}")
sys.exit(seen != {"Sub 5 7": [[254], [0]], "Add 200 100": [[44], [255]], "Mul 20 20": [[144], [255]]})
PYTHON
python look.py
