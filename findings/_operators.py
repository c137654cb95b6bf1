"""One ONNX operator in ONNX Runtime and in OpenVINO, on CPUs in fp32, for the findings about them.

reference, seen = run(helper.make_node("Relu", ["x"], ["y"]), {"x": x}, {"y": (TensorProto.FLOAT, [2])})
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
import openvino as ov
from onnx import NodeProto, helper, numpy_helper

VERSIONS = f"openvino {ov.__version__.split('-')[0]}, onnxruntime {ort.__version__}"


def run(
    node: NodeProto,
    inputs: Mapping[str, np.ndarray],
    outputs: Mapping[str, tuple[int, Sequence[Any]]],
    constants: Mapping[str, np.ndarray] | None = None,
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return the outputs of both; `outputs` are types and shapes, `constants` inputs that the graph holds."""
    given = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in inputs.items()
    ]
    results = [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in outputs.items()]
    weights = [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()]
    graph = helper.make_graph([node], "g", given, results, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 9
    data = model.SerializeToString()
    reference = ort.InferenceSession(data, providers=["CPUExecutionProvider"]).run(None, dict(inputs))
    core = ov.Core()
    compiled = core.compile_model(core.read_model(data), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return reference, [np.array(value) for value in compiled(dict(inputs)).values()]
