#!/usr/bin/env bash
# A request that its client cancelled is run all the same, unless it waits in a dynamic batcher of its own.
#
# Expected: a request cancelled over gRPC while it waits costs the server nothing more, and counts as cancelled.
# Seen:     only a model with `dynamic_batching` drops it. Without, it is run; in an ensemble the step that it waits for
#           is run, with a dynamic batcher too; both count as success, and no failure is counted.
# Matters:  clients that time out and ask again multiply the load of an ensemble of preprocessing and detector, and the
#           statistics call it success; a proxy's or queue policy's timeout is what bounds the work.
# Source:   Triton user guide, Request Cancellation.
. "$(dirname "$0")/_venv.sh"
pip 'nvidia-pytriton==0.7.0' 'numpy==1.26.4' 'tritonclient[http,grpc]==2.69.0'
cp "$(dirname "$0")/_triton.py" "$folder"
cat > "$folder/ask.py" <<'PYTHON'
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import tritonclient.grpc as grpc
from _triton import triton

IO = """
max_batch_size: 1
input [{ name: "x" data_type: TYPE_FP32 dims: [ 1 ] }]
output [{ name: "y" data_type: TYPE_FP32 dims: [ 1 ] }]
"""
SLOW = """
        for request in requests:
            with open("LOG", "a") as log:
                log.write(f"{int(pb_utils.get_input_tensor_by_name(request, 'x').as_numpy()[0, 0])} ")
            time.sleep(0.8)
        y = np.zeros((1, 1), np.float32)
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", y)]) for _ in requests]
"""
STEP = '{ model_name: "batched" model_version: -1 input_map { key: "x" value: "x" } output_map { key: "y" value: "y" } }'
ENSEMBLE = f'platform: "ensemble" {IO} ensemble_scheduling {{ step [ {STEP} ] }}'


def ask(url: str, model: str, log: Path) -> tuple[str, int, int]:
    """Ask for 1 to 7, cancel 4 to 6 while 1 is worked on; return what was run, successes and failures."""
    log.write_text("")
    done = []
    with grpc.InferenceServerClient(url) as client:
        calls = []
        for value in range(1, 8):
            x = grpc.InferInput("x", [1, 1], "FP32")
            x.set_data_from_numpy(np.full((1, 1), value, np.float32))
            calls.append(client.async_infer(model, [x], lambda result, error: done.append(error)))
            time.sleep(0.05)
        time.sleep(0.2)
        for call in calls[3:6]:
            call.cancel()
        time.sleep(7)
        statistics = client.get_inference_statistics(model).model_stats[0].inference_stats
    assert sum(error is None for error in done) == 4, done
    return log.read_text().strip(), statistics.success.count, statistics.fail.count


with tempfile.TemporaryDirectory() as scratch:
    log = Path(scratch) / "log"
    slow = SLOW.replace("LOG", str(log))
    models = {"plain": (IO, slow), "batched": (IO + "dynamic_batching { }", slow), "ensemble": (ENSEMBLE, "")}
    with triton(models) as server:
        seen = {model: ask(server.grpc, model, log) for model in ("batched", "plain", "ensemble")}
print("tritonserver 2.51.0, 4 to 6 of 7 requests cancelled; what was run, successes and failures counted:")
print(seen)
dropped = set("456") - set(seen["batched"][0].split())
all_run = all(sorted(seen[name][0].split()) == list("1234567") for name in ("plain", "ensemble"))
sys.exit(len(dropped) < 2 or not all_run or any(seen[name][1:] != (7, 0) for name in ("plain", "ensemble")))
PYTHON
python ask.py
