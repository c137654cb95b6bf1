#!/usr/bin/env bash
# TensorRT for RTX: an output in kHWC8 is a convolution's own only if its channels are a multiple of eight.
#
# Expected: kHWC8 pads channels to eight in memory, and a float16 convolution for tensor cores writes them so: nothing
#           has to be copied for 36 channels either.
# Seen:     with 40 channels the convolution writes the output; with 36 a second kernel reads all of it and writes it
#           padded. In kLINEAR there is a second kernel in both cases.
# Matters:  who hands heads to a plugin or reads outputs in kHWC8 to save a transpose pays for a copy instead. Give the
#           last convolution channels of zeros up to the next multiple of eight.
. "$(dirname "$0")/_venv.sh"
pip 'numpy==1.26.4' 'onnx==1.22.0' 'tensorrt-rtx-cu12==1.7.1.116'
cat > "$folder/ask.py" <<'PYTHON'
import sys

import numpy as np
import tensorrt_rtx as trt
from onnx import TensorProto, helper, numpy_helper


class Log(trt.ILogger):
    listing = ""

    def log(self, severity, message):
        if "LayerType: " in message:
            self.listing = message


def layers(channels, layout):
    rng = np.random.default_rng(0)
    shapes = (64, 32, 3, 3), (channels, 64, 3, 3)
    weights = [numpy_helper.from_array(rng.normal(0, 0.1, shape).astype(np.float16), f"w{i}")
               for i, shape in enumerate(shapes)]
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w0"], ["a"], pads=[1] * 4), helper.make_node("Relu", ["a"], ["b"]),
         helper.make_node("Conv", ["b", "w1"], ["y"], pads=[1] * 4)],
        "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT16, [1, 32, 32, 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT16, [1, channels, 32, 32])], weights,
    )
    log = Log()
    builder = trt.Builder(log)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, log)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    assert parser.parse(model.SerializeToString())
    network.get_output(0).allowed_formats = 1 << int(getattr(trt.TensorFormat, layout))
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM89, 0)
    assert builder.build_serialized_network(network, config) is not None
    (line,) = [each for each in log.listing.splitlines() if "Outputs: [ { Name: y," in each]
    return line.split("LayerType: ")[1].split(",")[0]


found = {(channels, layout): layers(channels, layout) for channels in (36, 40) for layout in ("HWC8", "LINEAR")}
print(f"tensorrt_rtx {trt.__version__}, compute capability 8.9; what writes the output: {found}")
sys.exit([found[key] == "correlation" for key in sorted(found)] != [False, False, True, False])
PYTHON
python ask.py
