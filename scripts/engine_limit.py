"""How many images/s the network alone allows on this machine: no server around it can answer more.

    engine_limit(Path("model.onnx"), threads=2, precision="bf16", seconds=10)  # {"together": 13.1, "apart": 14.0}

Inputs are ready and outputs unread. It says nothing about decoding, which takes the same cores.
"""

import time
from pathlib import Path

import numpy as np


def engine_limit(graph: Path, *, threads: int, precision: str, seconds: float) -> dict[str, float]:
    """Return the images/s of OpenVINO with all cores on one picture, and with a core a picture.

    The graph's own image is noise, so nothing is detected and decode and NMS cost their least.
    """
    from build_tools.signature import read_signature
    from eval.openvino_cpu import compile_for_cpu

    height, width = read_signature(graph).spec.size
    inputs = {
        "image": np.random.default_rng(0).integers(0, 256, (1, 3, height, width), dtype=np.uint8),
        "letterbox": np.asarray([[height, width, height, width]], np.float32),
    }
    rates = {}
    for name, streams in (("together", 1), ("apart", threads)):
        compiled = compile_for_cpu(str(graph), precision=precision, threads=threads, streams=streams)
        requests = [compiled.create_infer_request() for _ in range(streams)]
        for request in requests:  # the first run of each is slower
            request.infer(inputs)
        for request in requests:
            request.start_async(inputs)
        done, start = 0, time.perf_counter()
        while (spent := time.perf_counter() - start) < seconds:
            request = requests[done % streams]
            request.wait()
            request.start_async(inputs)
            done += 1
        for request in requests:
            request.wait()
        rates[name] = round(done / spent, 2)
    return rates
