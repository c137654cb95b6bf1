#!/usr/bin/env bash
# onnxconverter-common's float16 conversion changes weights that fit into half precision.
#
# Expected: float32 to float16 rounds; only what is beyond 65504 or below 3e-8 changes otherwise.
# Seen:     everything above 10000 becomes 10000, every weight below 1e-7, other than 0, becomes 1e-7 (rounded up to
#           1.19e-7), with a warning at most.
# Matters:  anchors, strides and image sizes are constants of a detector's graph, 10000 pixels a usual bound for "no
#           limit": boxes are cut without an error. Pass max_finite_val=65504, min_positive_val=6e-8.
. "$(dirname "$0")/_venv.sh"
pip 'onnxconverter-common==1.16.0' 'onnx==1.22.0' 'numpy==2.2.6'
cat > "$folder/look.py" <<'PYTHON'
import importlib.metadata
import sys
import warnings

import numpy as np
from onnx import TensorProto, helper, numpy_helper
from onnxconverter_common import float16

warnings.simplefilter("ignore")
weights = np.array([2e-8, 6e-8, 1e-3, 9000, 20000, 60000, -30000], np.float32)
value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [7]) for name in "xy"]
graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", value[:1], value[1:])
graph.initializer.append(numpy_helper.from_array(weights, "w"))
converted = float16.convert_float_to_float16(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]))
(seen,) = (numpy_helper.to_array(each) for each in converted.graph.initializer)
rounded = weights.astype(np.float16)
print(f"onnxconverter-common {importlib.metadata.version('onnxconverter-common')}: {weights.tolist()} becomes")
print(f"{seen.tolist()}; rounding gives {rounded.tolist()}")
changed = [bool(a != b) for a, b in zip(seen, rounded)]
sys.exit(changed != [True, True, False, False, True, True, True] or float(seen[5]) != 10000)
PYTHON
python look.py
