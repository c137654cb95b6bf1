#!/usr/bin/env bash
# TensorRT for RTX: a quantized ConvTranspose runs in FP32, on every GPU, and nothing says so.
#
# Expected: between Q/DQ nodes a transposed convolution runs in INT8, as a convolution does, or the builder warns.
# Seen:     scales of the weights by output channel or for all of them, 16 to 256 channels, kernels of 2 and 4: FP32.
#           So does a Conv whose weights have a scale an input channel. A Conv with a scale an output channel is INT8.
# Matters:  detectors that go up by transposed convolutions gain nothing from INT8 there, and lose what rounding costs.
#           Read the layers' types from the listing of a build at detailed verbosity, or go up by Resize and Conv.
. "$(dirname "$0")/_venv.sh"
pip 'numpy==1.26.4' 'onnx==1.22.0' 'tensorrt-rtx-cu12==1.7.1.116'
cat > "$folder/ask.py" <<'PYTHON'
import sys

import numpy as np
import tensorrt_rtx as trt
from onnx import TensorProto, helper, numpy_helper


class Log(trt.ILogger):
    def __init__(self):
        super().__init__()
        self.listing, self.told = "", []

    def log(self, severity, message):
        if "LayerType: " in message:
            self.listing = message
        elif severity in (trt.ILogger.WARNING, trt.ILogger.ERROR):
            self.told.append(message)


def precision(operator, channels, kernel, axis, target):
    """Return the type that the convolution reads, and what was warned of; axis None: one scale for all weights."""
    rng = np.random.default_rng(0)
    scales = np.full(channels, 0.01, np.float32) if axis is not None else np.float32(0.01)
    values = {"s": np.float32(0.05), "z": np.int8(0), "ws": scales, "wz": np.zeros_like(scales, np.int8),
              "w": rng.integers(-127, 128, (channels, channels, kernel, kernel)).astype(np.int8)}
    graph = helper.make_graph(
        [helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
         helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
         helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], axis=axis or 0),
         helper.make_node(operator, ["d", "wd"], ["y"], strides=[2, 2])],
        "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, channels, 16, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()],
    )
    log = Log()
    builder = trt.Builder(log)
    network = builder.create_network(0)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    assert trt.OnnxParser(network, log).parse(model.SerializeToString())
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, target), 0)
    assert builder.build_serialized_network(network, config) is not None
    (line,) = [line for line in log.listing.splitlines() if any(
        f"LayerType: {kind}," in line for kind in ("correlation", "deconv"))]
    return line.split("Datatype: ")[1].split(",")[0], log.told


cases = [("ConvTranspose", 16, 2, 1), ("ConvTranspose", 64, 4, 1), ("ConvTranspose", 256, 2, None), ("Conv", 64, 3, 1),
         ("Conv", 64, 3, 0)]
found = {case: {precision(*case, target)[0] for target in ("SM86", "SM89", "SM120")} for case in cases}
told = [message for case in cases for message in precision(*case, "SM89")[1]]
print(f"tensorrt_rtx {trt.__version__}; operator, channels, kernel, axis of the scales: {found}; warnings: {told}")
sys.exit(list(found.values()) != [{"Float"}] * 4 + [{"Int8"}] or told != [])
PYTHON
python ask.py
