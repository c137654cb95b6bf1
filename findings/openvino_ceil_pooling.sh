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
cp "$(dirname "$0")/_operators.py" "$folder"
cat > "$folder/look.py" <<'PYTHON'
import sys

import numpy as np
from _operators import VERSIONS, run
from onnx import TensorProto, helper

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
