"""OpenVINO on the CPU with the settings that are served: all cores share one picture, or each has its own.

    network = compile_for_cpu("model.onnx", precision="bf16", threads=2)
    network.create_infer_request().infer({"image": image[None], "letterbox": letterbox[None]})

What is served sets the same by itself, as a model directory imports nothing of ours
(model_repository/cpu/retinanet/1/model.py); tests hold the two together. OpenVINO is imported by the call.
"""

import functools
from typing import Any

__all__ = ["compile_for_cpu", "shared_core"]


def shared_core() -> Any:
    """Return the process's one openvino.Core, which lives as long as the process.

    Each one installs a stack for signals in the thread that first compiles, and puts back what was there before
    when it goes. Two that don't go in reverse order leave the thread with freed memory, and the next signal kills
    it: seen with OpenVINO 2026.4 beside `faulthandler`. Signals are how torch hears of its data loader's workers.
    """
    import openvino

    return _only(openvino.Core)


@functools.cache
def _only(kind: Any) -> Any:
    return kind()


def compile_for_cpu(
    source: str | bytes, *, precision: str = "f32", threads: int = 0, streams: int = 1, profile: bool = False
) -> Any:
    """Return OpenVINO's compiled model of an ONNX file or its content; `threads` 0 takes all cores.

    More than one of `streams` share the threads, and each has a picture of its own. With `profile` each request
    tells how long every operator took, at some cost.

    `precision` is f32 or bf16, and f32 where the processor has no bf16: OpenVINO would emulate it, many times
    slower.
    """
    core = shared_core()
    if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        precision = "f32"
    settings = {
        "PERFORMANCE_HINT": "LATENCY" if streams == 1 else "THROUGHPUT",
        "NUM_STREAMS": str(streams),
        "INFERENCE_PRECISION_HINT": precision,
    }
    if threads:
        settings["INFERENCE_NUM_THREADS"] = str(threads)
    if profile:
        settings["PERF_COUNT"] = "YES"
    return core.compile_model(core.read_model(source), "CPU", settings)
