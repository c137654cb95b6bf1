#!/usr/bin/env bash
# Triton's response cache answers a request with what another request's parameters gave.
#
# Expected: with `response_cache { enable: true }` two requests are the same when a model cannot tell them apart; a
#           python model reads `request.parameters()`, so other parameters are another request.
# Seen:     the key is model, version and inputs: after threshold 0.3, a request with 0.9 gets the answer for 0.3, and
#           the model is not asked. A model whose answers differ from call to call repeats the first.
# Matters:  thresholds, classes or a debug switch that travel as request parameters stop working once the cache is on,
#           without an error; as an input tensor they are part of the key.
# Source:   Triton user guide, Response Cache: the hash is of "model name, model version, and model inputs".
. "$(dirname "$0")/_venv.sh"
pip 'nvidia-pytriton==0.7.0' 'numpy==1.26.4' 'tritonclient[http,grpc]==2.69.0'
cp "$(dirname "$0")/_triton.py" "$folder"
cat > "$folder/ask.py" <<'PYTHON'
import sys
import sysconfig
from pathlib import Path

import numpy as np
import tritonclient.grpc as grpc
from _triton import triton

IO = """
max_batch_size: 1
input [{ name: "x" data_type: TYPE_FP32 dims: [ 1 ] }]
output [{ name: "y" data_type: TYPE_FP32 dims: [ 1 ] }]
"""
THRESHOLD = """
        import json
        values = [json.loads(request.parameters())["threshold"] for request in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", np.array([[v]], np.float32))]) for v in values]
"""
caches = Path(sysconfig.get_path("purelib")) / "pytriton" / "tritonserver" / "caches"
flags = (f"--cache-directory={caches}", "--cache-config=local,size=1048576")
models = {"plain": (IO, THRESHOLD), "cached": (IO + "response_cache { enable: true }", THRESHOLD)}
with triton(models, *flags) as server, grpc.InferenceServerClient(server.grpc) as client:
    seen = {}
    for name in models:
        x = grpc.InferInput("x", [1, 1], "FP32")
        x.set_data_from_numpy(np.ones((1, 1), np.float32))
        answers = [client.infer(name, [x], parameters={"threshold": value}) for value in ("0.3", "0.9", "0.5")]
        seen[name] = [round(float(answer.as_numpy("y")[0, 0]), 3) for answer in answers]
    runs = client.get_inference_statistics("cached").model_stats[0].execution_count
print(f"tritonserver 2.51.0, thresholds 0.3, 0.9, 0.5: {seen}; with the cache the model ran {runs} time")
sys.exit(seen != {"plain": [0.3, 0.9, 0.5], "cached": [0.3, 0.3, 0.3]} or runs != 1)
PYTHON
python ask.py
