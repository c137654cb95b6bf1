#!/usr/bin/env bash
# Triton's python backend does not hold a model to the outputs of its config.pbtxt.
#
# Expected: an output of another type or shape than config.pbtxt states, or one that is missing, fails the request.
# Seen:     float64 goes out as FP64 where FP32 is stated, [2, 2] where [3] is, a response without the output succeeds.
# Matters:  clients that size buffers or pick a dtype from the model's config or metadata read something else; a
#           detector that forgets an output under a condition looks healthy in every counter.
. "$(dirname "$0")/_venv.sh"
pip 'nvidia-pytriton==0.7.0' 'numpy==1.26.4' 'tritonclient[http,grpc]==2.69.0'
cp "$(dirname "$0")/_triton.py" "$folder"
cat > "$folder/ask.py" <<'PYTHON'
import sys

import numpy as np
import tritonclient.grpc as grpc
from _triton import triton

CONFIG = """
input [{ name: "x" data_type: TYPE_FP32 dims: [ 3 ] }]
output [{ name: "y" data_type: TYPE_FP32 dims: [ 3 ] }]
"""
ANSWERS = {
    "float64": "[pb_utils.Tensor('y', np.zeros(3))]",
    "shape": "[pb_utils.Tensor('y', np.zeros((2, 2), np.float32))]",
    "missing": "[]",
}
models = {
    name: (CONFIG, f"        return [pb_utils.InferenceResponse({answer}) for _ in requests]\n")
    for name, answer in ANSWERS.items()
}
seen = {}
with triton(models) as server:
    client = grpc.InferenceServerClient(server.grpc)
    for name in models:
        x = grpc.InferInput("x", [3], "FP32")
        x.set_data_from_numpy(np.zeros(3, np.float32))
        outputs = client.infer(name, [x]).get_response().outputs
        seen[name] = [(output.datatype, list(output.shape)) for output in outputs]
    client.close()
print(f"tritonserver 2.51.0 of nvidia-pytriton 0.7.0; stated: FP32 [3]; answered: {seen}")
sys.exit(seen != {"float64": [("FP64", [3])], "shape": [("FP32", [2, 2])], "missing": []})
PYTHON
python ask.py
