"""Grafted graphs that were changed a little, as a bad export, a bad conversion or a bad quantizer changes them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Change = Callable[[onnx.ModelProto], None]


def changed(source: Path, target: Path, change: Change) -> Path:
    """Write a changed copy of a graph."""
    model = onnx.load(str(source))
    change(model)
    onnx.save(model, str(target))
    return target


def one_weight(model: onnx.ModelProto) -> None:
    """Change a single weight of the network's first convolution by half of the largest."""
    values, write = _weights(model, _convolution(model).input[1])
    values.flat[7] += np.abs(values).max() / 2
    write(values)


def swapped_classes(model: onnx.ModelProto) -> None:
    """Let the class head answer the first class as the second and the other way round."""
    convolution = _convolution(model, "cls_logits_p3")
    for name in convolution.input[1:3]:
        values, write = _weights(model, name)
        by_class = values.reshape(9, 3, -1)  # (A*C, ...) -> (A, C, ...)
        write(by_class[:, [1, 0, 2]].reshape(values.shape))


def shifted_deltas(model: onnx.ModelProto) -> None:
    """Add a twentieth of an anchor to every delta."""
    model.graph.initializer.append(numpy_helper.from_array(np.full(36, 0.05, np.float32), "shift"))
    for node in _convolutions(model):
        if node.output[0].startswith("box_deltas"):
            assert len(node.input) == 2, "the toy's bias is zero, and the exporter leaves it out"
            node.input.append("shift")


def not_a_number(model: onnx.ModelProto) -> None:
    """Let one bias of the class head of P3 be NaN."""
    values, write = _weights(model, _convolution(model, "cls_logits_p3").input[2])
    values.flat[0] = np.nan
    write(values)


def other_nms(model: onnx.ModelProto) -> None:
    """Suppress from an IoU of 0.2 on; the network stays as it is."""
    nms = next(node for node in model.graph.node if node.op_type == "NonMaxSuppression")
    _, write = _weights(model, nms.input[3])
    write(np.array([0.2], np.float32))


def half_weights(model: onnx.ModelProto) -> None:
    """Store all weights of convolutions in float16."""
    for name in {node.input[1]: None for node in _convolutions(model)}:  # the levels share those of the heads
        values = numpy_helper.to_array(_initializer(model, name)).astype(np.float16)
        model.graph.initializer.append(numpy_helper.from_array(values, f"{name}_half"))
        _replace(model, name, helper.make_node("Cast", [f"{name}_half"], [f"{name}_back"], to=TensorProto.FLOAT))


def quantized_weights(model: onnx.ModelProto) -> None:
    """Store the weights of the backbone's convolutions in int8, one scale a channel."""
    inner = [node for node in _convolutions(model) if node.input[1].startswith("backbone.")]
    for name in {node.input[1]: None for node in inner}:
        values = numpy_helper.to_array(_initializer(model, name))
        scale = np.abs(values).reshape(len(values), -1).max(1).astype(np.float32) / 127 + np.float32(1e-9)
        stored = np.round(values / scale[:, None, None, None]).astype(np.int8)
        names = [f"{name}_{part}" for part in ("int8", "scale", "zero")]
        for part, array in zip(names, (stored, scale, np.zeros(len(values), np.int8)), strict=True):
            model.graph.initializer.append(numpy_helper.from_array(array, part))
        _replace(model, name, helper.make_node("DequantizeLinear", names, [f"{name}_back"], axis=0))


def _replace(model: onnx.ModelProto, name: str, maker: onnx.NodeProto) -> None:
    for node in model.graph.node:
        node.input[:] = [maker.output[0] if item == name else item for item in node.input]
    model.graph.node.insert(0, maker)
    model.graph.initializer.remove(_initializer(model, name))


def _convolutions(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type == "Conv"]


def _convolution(model: onnx.ModelProto, output: str = "") -> onnx.NodeProto:
    return next(node for node in _convolutions(model) if output in ("", node.output[0]))


def _initializer(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(tensor for tensor in model.graph.initializer if tensor.name == name)


def _weights(model: onnx.ModelProto, name: str) -> tuple[np.ndarray, Callable[[np.ndarray], None]]:
    tensor = _initializer(model, name)

    def write(values: np.ndarray) -> None:
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float32), name))

    return numpy_helper.to_array(tensor).copy(), write
