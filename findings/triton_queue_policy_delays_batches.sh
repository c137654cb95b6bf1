#!/usr/bin/env bash
# A queue policy makes Triton wait up to half a second with work in its queue and an idle instance.
#
# Expected: max_queue_size only limits a queue; below the limit requests are batched and run as without it.
# Seen:     24 requests at once on a model of 0.1 s a batch, batches up to 8: 0.4 s without a policy, 0.6 to 1.6 s with
#           max_queue_size 64, which nothing reaches.
# Why:      with a policy a batch is formed only while an instance waits for one; when none does, the batcher's thread
#           sleeps for its full interval of 500 ms instead of being woken.
# Matters:  who bounds a queue against overload loses a third of the throughput of a slow model. Bound the queue at a
#           step before the model, which takes requests one at a time.
. "$(dirname "$0")/_venv.sh"
pip 'nvidia-pytriton==0.7.0' 'numpy==1.26.4' 'tritonclient[http,grpc]==2.69.0'
cp "$(dirname "$0")/_triton.py" "$folder"
cat > "$folder/ask.py" <<'PYTHON'
import sys
import threading
import time

import numpy as np
import tritonclient.grpc as grpc
from _triton import triton

CONFIG = """
max_batch_size: 8
input [{ name: "x" data_type: TYPE_FP32 dims: [ 1 ] }]
output [{ name: "y" data_type: TYPE_FP32 dims: [ 1 ] }]
"""
SLOW = """
        time.sleep(0.1)
        y = np.zeros((1, 1), np.float32)
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", y)]) for _ in requests]
"""
QUEUES = {"plain": "", "policy": "default_queue_policy { max_queue_size: 64 }"}


def ask(client: grpc.InferenceServerClient, name: str) -> None:
    x = grpc.InferInput("x", [1, 1], "FP32")
    x.set_data_from_numpy(np.zeros((1, 1), np.float32))
    client.infer(name, [x])


seconds = {name: [] for name in QUEUES}
with triton({name: (f"{CONFIG}dynamic_batching {{ {queue} }}\n", SLOW) for name, queue in QUEUES.items()}) as server:
    client = grpc.InferenceServerClient(server.grpc)
    for _ in range(16):
        for name in QUEUES:
            threads = [threading.Thread(target=ask, args=[client, name]) for _ in range(24)]
            start = time.monotonic()
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            seconds[name].append(time.monotonic() - start)
    client.close()
plain, policy = (max(each) for each in seconds.values())  # how often it happens, differs from run to run
print(f"tritonserver 2.51.0 of nvidia-pytriton 0.7.0: at most {plain:.2f} s without, {policy:.2f} s with a policy (of 16)")
sys.exit(policy < 1.5 * plain)
PYTHON
python ask.py
