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


def read_for_cpu(source: str | bytes) -> Any:
    """Return OpenVINO's model of an ONNX file or its content; compiled twice, it has its weights in memory once.

    Where the products of an INT8 graph would overflow, its weights have 7 bits.
    """
    model = shared_core().read_model(source)
    quantized = any(node.get_type_name() == "FakeQuantize" for node in model.get_ordered_ops())
    if quantized and int8_overflows():
        _halve_weights(model)
    return model


def compile_for_cpu(source: Any, *, precision: str = "fp32", threads: int = 0, streams: int = 1) -> Any:
    """Return the compiled model of what `read_for_cpu` reads, or has read; `threads` 0 takes all cores.

    More than one of `streams` share the threads, and each has an image of its own.

    `precision` is a key of HINTS; fp32 where the processor has no bf16: OpenVINO would emulate it, many times
    slower.
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
    model = read_for_cpu(source) if isinstance(source, str | bytes) else source
    return core.compile_model(model, "CPU", settings)


@functools.cache
def int8_overflows() -> bool:
    """Return whether quantized convolutions come out wrong on this processor.

    Those of x86 without VNNI add two products in 16 bits, 255 * 127 * 2 and more, and stop at 32767. Eight
    channels of 127 are multiplied by 127 to see, which takes some 0.1 s.
    """
    import numpy as np
    import openvino
    from openvino import opset13 as ops

    largest, low, high = (np.float32(value) for value in (127, -128, 127))
    given = ops.parameter([1, 8, 1, 1], np.float32)
    rounded = ops.fake_quantize(given, low, high, low, high, 256)
    weights = ops.convert(ops.constant(np.full((8, 8, 1, 1), 127, np.int8)), "f32")
    scaled = ops.multiply(weights, ops.constant(np.ones((8, 1, 1, 1), np.float32)))
    model = openvino.Model([ops.convolution(rounded, scaled, [1, 1], [0, 0], [0, 0], [1, 1])], [given])
    compiled = shared_core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    seen = compiled(np.full((1, 8, 1, 1), largest, np.float32))[0]
    return bool(abs(seen - 8 * largest * 127).max() > 1)


def _halve_weights(model: Any) -> None:
    """Round weights of 8 bits to 7, and double their scales: no pair of products overflows then."""
    import numpy as np
    from openvino import opset13 as ops

    for weights in model.get_ordered_ops():
        if weights.get_type_name() != "Constant" or weights.get_element_type().get_type_name() != "i8":
            continue
        scaled = [product for reader in _readers(weights) for product in _products(reader)]
        if scaled:
            weights.output(0).replace(ops.constant(np.rint(weights.data / 2).astype(np.int8)).output(0))
        for product in scaled:
            doubled = ops.multiply(product.input_value(1), np.float32(2))
            product.input(1).replace_source_output(doubled.output(0))


def _readers(node: Any) -> list[Any]:
    """Return the nodes whose first input it is."""
    return [reader.get_node() for reader in node.output(0).get_target_inputs() if reader.get_index() == 0]


def _products(node: Any) -> list[Any]:
    """Return where the scales are multiplied with, behind the Convert and Subtract of a DequantizeLinear."""
    if node.get_type_name() == "Multiply":
        return [node]
    if node.get_type_name() not in ("Convert", "Subtract"):
        return []
    return [product for reader in _readers(node) for product in _products(reader)]
