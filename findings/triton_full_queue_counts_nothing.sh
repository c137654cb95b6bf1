#!/usr/bin/env bash
# Requests that Triton refuses because a queue is full are counted nowhere.
#
# Expected: nv_inference_request_failure{reason="REJECTED"} counts what max_queue_size refuses; its documentation names
#           the queue's policy as the reason for REJECTED.
# Seen:     the client gets "Exceeds maximum queue size", REJECTED and the statistics' fail count stay 0.
# Matters:  overload does not show in the server's metrics: an alert on refusals needs the proxy's or client's counts.
# Source:   Triton user guide, Metrics, "Failure Reason" (REJECTED).
. "$(dirname "$0")/_venv.sh"
pip 'nvidia-pytriton==0.7.0' 'numpy==1.26.4' 'tritonclient[http,grpc]==2.69.0'
cp "$(dirname "$0")/_triton.py" "$folder"
cat > "$folder/ask.py" <<'PYTHON'
import re
import sys
import threading
import urllib.request

import numpy as np
import tritonclient.grpc as grpc
from _triton import triton

CONFIG = """
max_batch_size: 1
input [{ name: "x" data_type: TYPE_FP32 dims: [ 1 ] }]
output [{ name: "y" data_type: TYPE_FP32 dims: [ 1 ] }]
dynamic_batching { default_queue_policy { max_queue_size: 2 } }
"""
SLOW = """
        time.sleep(0.3)
        y = np.zeros((1, 1), np.float32)
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", y)]) for _ in requests]
"""
answered, refused = [], []


def ask(url: str) -> None:
    x = grpc.InferInput("x", [1, 1], "FP32")
    x.set_data_from_numpy(np.zeros((1, 1), np.float32))
    try:
        answered.append(grpc.InferenceServerClient(url).infer("slow", [x]))
    except grpc.InferenceServerException as error:
        refused.append(str(error))


with triton({"slow": (CONFIG, SLOW)}) as server:
    threads = [threading.Thread(target=ask, args=[server.grpc]) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    client = grpc.InferenceServerClient(server.grpc)
    failed = client.get_inference_statistics("slow").model_stats[0].inference_stats.fail.count
    client.close()
    text = urllib.request.urlopen(f"http://{server.metrics}/metrics").read().decode()
counted = sum(map(int, re.findall(r"^nv_inference_request_failure{.*} (\d+)$", text, re.MULTILINE)))
print(f"tritonserver 2.51.0 of nvidia-pytriton 0.7.0: {len(answered)} answered, {len(refused)} refused;")
print(f"refusals in nv_inference_request_failure: {counted}, in the statistics: {failed}")
sys.exit(not refused or not all("maximum queue size" in each for each in refused) or (counted, failed) != (0, 0))
PYTHON
python ask.py
