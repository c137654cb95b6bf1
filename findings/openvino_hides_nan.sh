#!/usr/bin/env bash
# In OpenVINO a NaN does not survive an activation: Relu makes 0 of it, Exp infinity, Clip its lower bound.
#
# Expected: NaN stays NaN, as IEEE 754 and ONNX Runtime have it, so that a broken network is seen at its output.
# Seen:     Relu(NaN) = 0, Exp(NaN) = inf, Clip(NaN, -1, 1) = -1; Sigmoid(NaN) = NaN.
# Matters:  a detector with a NaN among its weights (a diverged training, an overflow in FP16) answers plausible boxes on
#           CPUs and none in PyTorch: checking outputs for NaN finds nothing. Check weights before serving.
. "$(dirname "$0")/_venv.sh"
pip 'openvino==2026.4.1' 'onnx==1.22.0' 'onnxruntime==1.26.0' 'numpy==2.2.6'
cp "$(dirname "$0")/_operators.py" "$folder"
cat > "$folder/look.py" <<'PYTHON'
import sys

import numpy as np
from _operators import VERSIONS, run
from onnx import TensorProto, helper

x = np.array([np.nan, 2.0], np.float32)
bounds = {"low": np.array(-1, np.float32), "high": np.array(1, np.float32)}
seen = {}
for name in ("Relu", "Exp", "Clip", "Sigmoid"):
    constants = bounds if name == "Clip" else {}
    results = run(helper.make_node(name, ["x", *constants], ["y"]), {"x": x}, {"y": (TensorProto.FLOAT, [2])}, constants)
    seen[name] = [str(float(each[0][0])) for each in results]
print(f"{VERSIONS}: NaN becomes (ONNX Runtime's first): {seen}")
sys.exit(seen != {"Relu": ["nan", "0.0"], "Exp": ["nan", "inf"], "Clip": ["nan", "-1.0"], "Sigmoid": ["nan", "nan"]})
PYTHON
python look.py
