"""OpenVINO on the CPU with the settings that are served: all cores share one image, or each has its own.

    network = compile_for_cpu("model.onnx", precision="bf16", threads=2)
    network.create_infer_request().infer({"image": image[None], "letterbox": letterbox[None]})

The module imports nothing of ours: `build` copies it into the Triton model directory `retinanet`, where `model.py`
imports it as `openvino_cpu`. OpenVINO is imported by the calls.
"""

import functools
from collections.abc import Mapping
from typing import Any

# The CPU's arithmetic, and OpenVINO's INFERENCE_PRECISION_HINT for it, which a repository's config holds. f32 is
# another word for fp32.
HINTS: Mapping[str, str] = {"fp32": "f32", "bf16": "bf16", "f32": "f32"}


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
    source: str | bytes, *, precision: str = "fp32", threads: int = 0, streams: int = 1, profile: bool = False
) -> Any:
    """Return OpenVINO's compiled model of an ONNX file or its content; `threads` 0 takes all cores.

    More than one of `streams` share the threads, and each has an image of its own. With `profile` each request
    tells how long every operator took, at some cost.

    `precision` is a key of HINTS; fp32 where the processor has no bf16: OpenVINO would emulate it,
    many times slower.
    """
    core = shared_core()
    hint = HINTS[precision]
    if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        hint = HINTS["fp32"]
    settings = {
        "PERFORMANCE_HINT": "LATENCY" if streams == 1 else "THROUGHPUT",
        "NUM_STREAMS": str(streams),
        "INFERENCE_PRECISION_HINT": hint,
    }
    if threads:
        settings["INFERENCE_NUM_THREADS"] = str(threads)
    if profile:
        settings["PERF_COUNT"] = "YES"
    return core.compile_model(core.read_model(source), "CPU", settings)
