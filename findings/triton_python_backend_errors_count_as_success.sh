#!/usr/bin/env bash
# Triton counts a python model's error answers as successful requests.
#
# Expected: a request that is answered by an error raises nv_inference_request_failure.
# Seen:     TritonError in the response: the client gets an error, nv_inference_request_success rises, failure stays 0
#           (an exception that leaves execute() is counted, as BACKEND).
# Matters:  an alert on nv_inference_request_failure is silent while every image is refused. Count errors yourself
#           (pb_utils.MetricFamily), or at the clients.
. "$(dirname "$0")/_venv.sh"
pip 'nvidia-pytriton==0.7.0' 'numpy==1.26.4' 'tritonclient[http,grpc]==2.69.0'
cp "$(dirname "$0")/_triton.py" "$folder"
cat > "$folder/ask.py" <<'PYTHON'
import re
import sys
import urllib.request

import numpy as np
import tritonclient.grpc as grpc
from _triton import triton

CONFIG = """
input [{ name: "x" data_type: TYPE_FP32 dims: [ 1 ] }]
output [{ name: "y" data_type: TYPE_FP32 dims: [ 1 ] }]
"""
ERROR = """        return [pb_utils.InferenceResponse(error=pb_utils.TritonError("no image")) for _ in requests]\n"""
with triton({"error": (CONFIG, ERROR), "raise": (CONFIG, "        raise ValueError('no image')\n")}) as server:
    client = grpc.InferenceServerClient(server.grpc)
    refused = 0
    for name in ("error", "raise"):
        for _ in range(5):
            x = grpc.InferInput("x", [1], "FP32")
            x.set_data_from_numpy(np.zeros(1, np.float32))
            try:
                client.infer(name, [x])
            except grpc.InferenceServerException:
                refused += 1
    client.close()
    text = urllib.request.urlopen(f"http://{server.metrics}/metrics").read().decode()
rows = re.findall(r'^nv_inference_request_(success|failure){model="(\w+)".*} (\d+)$', text, re.MULTILINE)
counts = {}
for kind, model, value in rows:
    counts[model, kind] = counts.get((model, kind), 0) + int(value)
print(f"tritonserver 2.51.0 of nvidia-pytriton 0.7.0; errors at the client: {refused} of 10; counted: {counts}")
expected = {("error", "success"): 5, ("error", "failure"): 0, ("raise", "success"): 0, ("raise", "failure"): 5}
sys.exit(refused != 10 or counts != expected)
PYTHON
python ask.py
