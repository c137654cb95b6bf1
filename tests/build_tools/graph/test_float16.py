"""The FP16 network: what is in half and what is not, what it costs, and what must be refused."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from retinaserve.build_tools.graph.float16 import Rounding, to_float16
from retinaserve.build_tools.graph.graft import graft
from retinaserve.training.errors import UserError
from retinaserve.training.spec import METADATA_PRECISION, METADATA_SPEC
from tests.toys import toy_model, toy_spec


@pytest.fixture
def heads(toy_onnx: Path) -> Path:
    """The toy detector before its graft."""
    return toy_onnx.parent / "heads.onnx"


def run(model: onnx.ModelProto, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, inputs)


def types(model: onnx.ModelProto, *operators: str) -> set[int]:
    """Return the element types of the outputs of all nodes of some operators."""
    inferred = onnx.shape_inference.infer_shapes(model)
    kinds = {v.name: v.type.tensor_type.elem_type for v in (*inferred.graph.value_info, *inferred.graph.output)}
    return {kinds[node.output[0]] for node in model.graph.node if node.op_type in operators}


def small(nodes, constants: dict[str, np.ndarray], *, opset: int = 18) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 2, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def convolution(weight: float) -> onnx.ModelProto:
    constants = {"w": np.array([[[[weight]], [[1.0]]]], np.float32)}
    return small([helper.make_node("Conv", ["x", "w"], ["y"])], constants)


def test_the_network_is_in_half_and_its_ends_in_float(heads: Path) -> None:
    model, rounding = to_float16(heads)
    before = onnx.load(heads)
    assert types(model, "Conv", "Relu", "Add", "MaxPool", "Resize") == {TensorProto.FLOAT16}
    assert [str(v) for v in model.graph.input] == [str(v) for v in before.graph.input]
    assert [str(v) for v in model.graph.output] == [str(v) for v in before.graph.output]
    assert sum(node.op_type == "Cast" for node in model.graph.node) == 1 + len(before.graph.output)
    weights = {item.name: numpy_helper.to_array(item) for item in before.graph.initializer}
    for item in model.graph.initializer:
        if item.data_type == TensorProto.FLOAT16:
            expected = weights[item.name.removesuffix("_half")].astype(np.float16)
            assert (numpy_helper.to_array(item) == expected).all()
    assert rounding.values == sum(a.size for a in weights.values() if a.dtype == np.float32)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert metadata[METADATA_PRECISION] == "fp16" and metadata[METADATA_SPEC] == toy_spec().to_json()
    assert Rounding.read(model) == rounding


def test_heads_equal_torch_s_within_half(heads: Path) -> None:
    picture = np.random.default_rng(0).normal(0, 1, (2, 3, *toy_spec().size)).astype(np.float32)
    found = run(to_float16(heads)[0], {"input": picture})
    with torch.no_grad():
        expected = [t.numpy() for pair in toy_model(toy_spec())(torch.from_numpy(picture)) for t in pair]
    for a, b in zip(found, expected, strict=True):
        assert 0 < np.abs(a - b).max() < 3e-3 * np.abs(b).max()


def test_the_grafted_graph_keeps_boxes_in_float(heads: Path) -> None:
    grafted = graft(to_float16(heads)[0])
    behind = {node.name: node for node in grafted.graph.node if node.name.startswith("detect/")}
    assert types(grafted, "TopK", "Exp", "GatherElements") <= {TensorProto.FLOAT, TensorProto.INT64}
    assert behind and types(grafted, "Conv") == {TensorProto.FLOAT16}
    image = np.random.default_rng(0).integers(0, 256, (1, 3, *toy_spec().size)).astype(np.uint8)
    inputs = {"image": image, "letterbox": np.array([[128, 192, 128, 192]], np.float32)}
    half, single = run(grafted, inputs), run(graft(onnx.load(heads)), inputs)
    assert [(a.shape, a.dtype) for a in half] == [(a.shape, a.dtype) for a in single]
    np.testing.assert_allclose(half[2], single[2], atol=5e-3)  # scores


def test_the_plugin_reads_the_heads_in_half_and_in_vectors(heads: Path) -> None:
    """The channels that fill the vectors come last; the others are the heads, bit for bit."""
    half = to_float16(heads)[0]
    grafted = graft(half, flavour="tensorrt")
    (decode,) = (node for node in grafted.graph.node if node.op_type == "RetinaNetDecode")
    assert sum(node.op_type == "Cast" for node in grafted.graph.node) == 2  # of the image, and to half
    read = list(decode.input[:-1])
    names = [name for pair in toy_spec().head_names for name in pair]
    for node in [node for node in grafted.graph.node if node.domain]:
        grafted.graph.node.remove(node)
    del grafted.graph.output[:]
    grafted.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT16, None) for name in read)
    inputs = {"image": np.random.default_rng(0).integers(0, 256, (2, 3, *toy_spec().size)).astype(np.uint8)}
    del grafted.graph.input[1]
    floats = run(graft(half, keep_heads=True), {**inputs, "letterbox": np.full((2, 4), 128, np.float32)})[4:]
    for name, found, expected in zip(names, run(grafted, inputs), floats, strict=True):
        channels = expected.shape[1]
        assert found.dtype == np.float16 and found.shape[1] == {27: 32, 36: 40}[channels]
        assert (found[:, :channels] == expected.astype(np.float16)).all()  # what a runtime may leave unrounded
        assert (found[:, channels:] == (-65504 if name.startswith("cls") else 0)).all()


def test_normalisation_stays_in_float() -> None:
    constants = {name: np.ones((2, 2, 1, 1) if name == "w" else 2, np.float32) for name in ("w", "scale", "shift")}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"]),
        helper.make_node("InstanceNormalization", ["a", "scale", "shift"], ["b"]),
        helper.make_node("Relu", ["b"], ["c"]),
        helper.make_node("Conv", ["c", "w"], ["y"]),
    ]
    model, _ = to_float16(small(nodes, constants))
    assert types(model, "InstanceNormalization") == {TensorProto.FLOAT}
    assert types(model, "Conv", "Relu") == {TensorProto.FLOAT16}
    assert [node.op_type for node in model.graph.node].count("Cast") == 4  # in, around the normalisation, out


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        pytest.param([], Rounding(), id="none"),
        pytest.param([0.0, 1.0, -2.0], Rounding(3, 0, 0, 2.0), id="exact"),
        pytest.param(
            [6.2e-5, 6.0e-5], Rounding(2, 1, 0, np.float32(6.2e-5)), id="below the smallest normal number"
        ),
        pytest.param([3.1e-8, 2.9e-8], Rounding(2, 2, 1, np.float32(3.1e-8)), id="below half the smallest number"),
        pytest.param([65504.0], Rounding(1, 0, 0, 65504.0), id="the largest"),
    ],
)
def test_rounding_is_counted(weights: list[float], expected: Rounding) -> None:
    assert Rounding().of(np.array(weights, np.float32)) == expected


@pytest.mark.parametrize("weight", [65520.0, -1e6, np.inf, np.nan])
def test_a_weight_beyond_half_is_refused_by_name(weight: float) -> None:
    with pytest.raises(UserError, match="the weight 'w' reaches") as caught:
        to_float16(convolution(weight))
    assert caught.value.code == 3 and "--precision fp32" in caught.value.hint


def test_a_graph_in_half_is_refused(heads: Path) -> None:
    with pytest.raises(UserError, match="in FP16 already"):
        to_float16(to_float16(heads)[0])


def quantized(scale: float) -> onnx.ModelProto:
    """A convolution in INT8 whose bias is a 32-bit integer, as other quantizers write it."""
    constants = {
        "scale": np.float32(scale),
        "zero": np.int8(0),
        "w": np.array([[[[4]], [[-2]]]], np.int8),
        "wide": np.int32(0),
        "b": np.array([3], np.int32),
        "bias_scale": np.array([0.25], np.float32),
        "bias_zero": np.array([0], np.int32),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["dq"]),
        helper.make_node("DequantizeLinear", ["w", "scale", "zero"], ["weight"]),
        helper.make_node("DequantizeLinear", ["b", "bias_scale", "bias_zero"], ["bias"], axis=0),
        helper.make_node("Conv", ["dq", "weight", "bias"], ["y"]),
    ]
    return small(nodes, constants)


def test_a_quantized_graph_stays_so_among_half() -> None:
    model, _ = to_float16(quantized(0.5))
    assert types(model, "QuantizeLinear") == {TensorProto.INT8}
    assert types(model, "DequantizeLinear", "Conv") == {TensorProto.FLOAT16}
    ones = np.ones((1, 2, 4, 4), np.float32)
    (found,) = run(model, {"x": ones})
    assert (found == 1 * 2.0 + 1 * -1.0 + 0.75).all()  # by hand: (4 - 2) * 0.5 + 3 * 0.25


def test_a_scale_that_is_denormal_in_half_does_not_shift_its_channel() -> None:
    """1.03e-6 is 17.28 times half's smallest step: rounded alone, the channel would be off by 1.6%."""
    scales = np.array([1.03e-6, 0.5], np.float32)
    assert abs(float(np.float16(scales[0])) / scales[0] - 1) > 0.015
    constants = {
        "scale": scales,
        "zero": np.zeros(2, np.int8),
        "w": np.array([[[[100]], [[0]]], [[[3]], [[2]]]], np.int8),
    }
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "scale", "zero"], ["weight"], axis=0),
        helper.make_node("Conv", ["x", "weight"], ["y"]),
    ]
    model, _ = to_float16(small(nodes, constants, opset=19))
    (found,) = run(model, {"x": np.ones((1, 2, 4, 4), np.float32)})
    assert found[0, 0] == pytest.approx(1.03e-4, rel=5e-3) and (found[0, 1] == 2.5).all()  # 100 * 1.03e-6; 5 * 0.5


def test_a_scale_that_half_has_not_is_refused() -> None:
    with pytest.raises(UserError, match=r"the scale .* is nothing in FP16") as caught:
        to_float16(quantized(1e-8))
    assert "--exclude" in caught.value.hint
