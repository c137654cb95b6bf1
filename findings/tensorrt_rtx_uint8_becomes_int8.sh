#!/usr/bin/env bash
# TensorRT for RTX: QuantizeLinear to uint8 with zero point 0 is built as int8 with the same scale; it only warns.
#
# Expected: uint8 is refused, as every zero point but 0 is, or computed.
# Seen:     ONNX Runtime's quantizer, asked for uint8 activations as for x86 CPUs, gives what is behind a Relu the zero
#           point 0. The parser takes such a graph; its layers, and what the engine's convolutions read, are int8. A
#           warning says "Defaulting to INT8 instead" and nothing of the values.
# Matters:  int8 ends at 127: what lies in the upper half of what was calibrated is clipped to the middle. A tensor
#           with negative values has another zero point and is refused, so it is networks of Relu alone that pass, on
#           images from 0 to 1. Quantize activations to int8, symmetrically.
. "$(dirname "$0")/_venv.sh"
pip 'numpy==2.2.6' 'onnx==1.22.0' 'onnxruntime==1.32.0' 'sympy==1.14.0' 'tensorrt-rtx-cu12==1.7.1.116'
cat > "$folder/ask.py" <<'PYTHON'
import sys

import numpy as np
import onnx
import onnxruntime
import tensorrt_rtx as trt
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

rng = np.random.default_rng(0)
images = [rng.random((1, 16, 32, 32), np.float32) for _ in range(4)]


class Images(CalibrationDataReader):
    left = [{"x": each} for each in images]

    def get_next(self):
        return self.left.pop() if self.left else None


class Log(trt.ILogger):
    listing, told = "", []

    def log(self, severity, message):
        if "LayerType: " in message:
            self.listing = message
        elif severity in (trt.ILogger.WARNING, trt.ILogger.ERROR):
            self.told.append(message)


weights = [numpy_helper.from_array(rng.normal(0, 0.1, (16, 16, 3, 3)).astype(np.float32), f"w{i}") for i in "01"]
graph = helper.make_graph(
    [helper.make_node("Conv", ["x", "w0"], ["a"], pads=[1] * 4), helper.make_node("Relu", ["a"], ["b"]),
     helper.make_node("Conv", ["b", "w1"], ["c"], pads=[1] * 4), helper.make_node("Relu", ["c"], ["y"])],
    "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 16, 32, 32])],
    [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 16, 32, 32])], weights,
)
onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), "float.onnx")
quantize_static("float.onnx", "quantized.onnx", Images(), activation_type=QuantType.QUInt8)
model = onnx.load("quantized.onnx")
values = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
points = {str(values[node.input[2]].dtype) + f" {values[node.input[2]]}" for node in model.graph.node
          if node.op_type == "QuantizeLinear"}
found = onnxruntime.InferenceSession("quantized.onnx").run(None, {"x": images[0]})[0]
share = float((found[found > 0] > 127 * values["y_scale"]).mean())

log = Log()
builder = trt.Builder(log)
network = builder.create_network(0)
parser = trt.OnnxParser(network, log)
assert parser.parse(model.SerializeToString()), parser.get_error(0).desc()
layers = [network.get_layer(i) for i in range(network.num_layers)]
types = {str(each.get_output(0).dtype) for each in layers if each.type == trt.LayerType.QUANTIZE}
config = builder.create_builder_config()
config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
config.num_compute_capabilities = 1
config.set_compute_capability(trt.ComputeCapability.SM89, 0)
assert builder.build_serialized_network(network, config) is not None
inputs = [line.split("Inputs: ")[1].split("Constants: ")[0] for line in log.listing.splitlines()
          if "LayerType: correlation" in line]
read = {text.split("Datatype: ")[1].split(",")[0] for text in inputs}
print(f"tensorrt_rtx {trt.__version__}, onnxruntime {onnxruntime.__version__}: quantized to {points}, "
      f"{share:.0%} of ONNX Runtime's positive outputs above 127 steps; parsed as {types}, convolutions read {read}, "
      f"{len(log.told)} warnings, {sum('Defaulting to INT8' in each for each in log.told)} of them of that")
sys.exit((points, types, read) != ({"uint8 0"}, {"DataType.INT8"}, {"Int8"}) or not log.told)
PYTHON
python ask.py
