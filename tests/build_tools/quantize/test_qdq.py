"""Q/DQ placement and arithmetic on the toy detector's heads, run by ONNX Runtime and OpenVINO."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime
import pytest
from onnx import numpy_helper

from retinaserve.build_tools.export import heads_graph
from retinaserve.build_tools.graph.graft import graft
from retinaserve.build_tools.graph.onnx_io import metadata_of, precision_of
from retinaserve.build_tools.quantize.calibrate import Calibrated, Int8Options, calibrate, draw, to_int8
from retinaserve.build_tools.quantize.qdq import Layer, find_layers, layers_of, quantize, tensors_of, without
from retinaserve.eval.sensitivity import noise
from retinaserve.training.errors import Exit, UserError
from retinaserve.training.spec import METADATA_CALIBRATION, METADATA_PRECISION, NETWORK_INPUT, DetectorSpec
from tests.images import checker, encode
from tests.toys import small_spec, toy_model

LAYERS = ("conv", "add")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("calibration")
    for number in range(6):
        image = checker(200 + 30 * number, 160, seed=number, cell=12 + 9 * number)
        (folder / f"{number}.jpg").write_bytes(encode(image))
    return folder


@pytest.fixture(scope="module")
def calibrated(images: Path) -> Calibrated:
    """Heads with norms of their own on every level, some of which turn signs around."""
    import torch

    spec = small_spec(["disc", "box"], size=(128, 192), head_depth=2, norm="batch")
    model = toy_model(spec)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.uniform_(0.6, 1.4)
                module.bias.uniform_(-0.3, 0.3)
                module.running_mean.uniform_(-0.2, 0.2)
        model.cls_head.norms[1][0].weight[::3] *= -1
    return calibrate(heads_graph(model, spec), spec, draw(spec, Int8Options(images)), Int8Options(images))


@pytest.fixture(scope="module")
def quantized(calibrated: Calibrated) -> onnx.ModelProto:
    return calibrated.quantize("minmax", calibrated.layers)


def heads_of(model: onnx.ModelProto, calibrated: Calibrated) -> list[list[np.ndarray]]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [name for pair in calibrated.spec.head_names for name in pair]
    inputs = np.random.default_rng(0).normal(0, 1, (6, 3, *calibrated.spec.size)).astype(np.float32)
    return [session.run(names, {NETWORK_INPUT: image[None]}) for image in inputs]


def test_nothing_quantized_is_the_network_as_it_was(calibrated: Calibrated) -> None:
    same = calibrated.quantize("entropy", [])
    assert precision_of(same) != "int8"
    for found, expected in zip(heads_of(same, calibrated), heads_of(calibrated.model, calibrated), strict=True):
        for a, b in zip(found, expected, strict=True):  # the output weights are stored in half precision
            np.testing.assert_allclose(a, b, atol=2e-3 * np.abs(b).max())


@pytest.mark.parametrize("calibrator", ["entropy", "percentile", "minmax"])
def test_int8_heads_are_near_those_in_float(calibrated: Calibrated, calibrator) -> None:
    """Eight bits a tensor leave an error of a few percent of the variance, norms of either sign folded or not."""
    found = heads_of(calibrated.quantize(calibrator, calibrated.layers), calibrated)
    expected = heads_of(calibrated.model, calibrated)
    assert noise(found, expected, 0) < 0.05 and noise(found, expected, 1) < 0.05


def test_norms_are_folded_exactly(calibrated: Calibrated) -> None:
    """With a range of a single value the activations' rounding is the same; what is left is that of weights."""
    layers = [layer for layer in calibrated.layers if layer.name.startswith("cls_head.convs.0")]
    for layer in layers:
        one = calibrated.quantize("minmax", [layer])
        assert noise(heads_of(one, calibrated), heads_of(calibrated.model, calibrated), 0) < 2e-3


def test_heads_are_stored_once_with_scales_of_each_level(quantized: onnx.ModelProto) -> None:
    """Five levels share the bytes; the level whose norm turns signs around has a copy of its own."""
    consumers = Counter(node.input[0] for node in quantized.graph.node if node.op_type == "DequantizeLinear")
    stored = {
        item.name: consumers[item.name]
        for item in quantized.graph.initializer
        if item.data_type == onnx.TensorProto.INT8 and len(item.dims) == 4 and "_head" in item.name
    }
    assert sorted(stored.values()) == [1, 4, 5, 5, 5]
    assert not any(node.op_type == "BatchNormalization" for node in quantized.graph.node)


def test_weights_take_a_quarter(calibrated: Calibrated, quantized: onnx.ModelProto) -> None:
    def weights(model: onnx.ModelProto) -> int:
        return sum(len(item.raw_data) for item in model.graph.initializer if len(item.dims) == 4)

    assert weights(quantized) < 0.30 * weights(calibrated.model)


def test_scales_are_those_of_the_largest_weight_a_channel() -> None:
    """By hand: 1 and -0.5 become 127 and -64 (63.5, half to even) in steps of 1/127; 0 and 2 become 0 and 127."""
    weight = np.array([[1, -0.5], [0, 2]], np.float32).reshape(2, 2, 1, 1)
    graph = gs.Graph(opset=18, ir_version=10)
    x, y, z = (gs.Variable(name, np.float32, ["batch", 2, 4, 4]) for name in ("input", "y", "z"))
    nodes = [
        gs.Node("Conv", "first", {}, [x, gs.Constant("first.weight", weight)], [y]),
        gs.Node("Conv", "last", {}, [y, gs.Constant("last.weight", weight)], [z]),
    ]
    graph.nodes, graph.inputs, graph.outputs = nodes, [x], [z]
    layer = Layer("first", "conv", "first", "input", 0)
    model = quantize(gs.export_onnx(graph), None, {"input": 6.35}, [layer])
    values = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    (stored,) = [value for value in values.values() if value.dtype == np.int8 and value.ndim == 4]
    assert stored.ravel().tolist() == [127, -64, 0, 127]
    np.testing.assert_allclose(values["first.weight/first/scale"], [1 / 127, 2 / 127], rtol=1e-6)
    assert values["input/scale"] == np.float32(6.35 / 127) and values["input/zero"] == 0
    assert values["last.weight/half"].dtype == np.float16


def test_pairs_stand_where_tensorrt_fuses_them(quantized: onnx.ModelProto) -> None:
    graph = gs.import_onnx(quantized)
    outputs = {tensor.name for tensor in graph.outputs}

    def restored(tensor: gs.Tensor) -> bool:
        return bool(tensor.inputs) and tensor.inputs[0].op == "DequantizeLinear"

    both = 0
    for node in graph.nodes:
        if node.op == "Conv":
            quantizes = node.outputs[0].name not in outputs
            assert [restored(tensor) for tensor in node.inputs[:2]] == [quantizes] * 2, node.name
            # No rounding between a convolution and its ReLU; P6 is read both ways, as it is and through one.
            followers = {consumer.op for consumer in node.outputs[0].outputs} - {"Shape"}
            both += followers == {"QuantizeLinear", "Relu"}
            assert followers in ({"Relu"}, {"Add"}, {"QuantizeLinear"}, {"QuantizeLinear", "Relu"}, set())
        elif node.op == "Add":
            assert sorted(restored(tensor) for tensor in node.inputs) == [False, True], node.name
        elif node.op in ("MaxPool", "Resize"):
            (pair,) = node.inputs[0].inputs
            (after,) = node.outputs[0].outputs
            assert pair.op == "DequantizeLinear" and after.op == "QuantizeLinear"
            assert pair.inputs[1].values == after.inputs[1].values  # the scale: what goes in comes out
        elif node.op == "QuantizeLinear":
            assert node.inputs[2].values.dtype == np.int8 and not node.inputs[2].values.any()
            assert node.inputs[1].values > 0
    assert both == 1


def test_every_tensor_is_rounded_once(quantized: onnx.ModelProto) -> None:
    rounded = Counter(node.input[0] for node in quantized.graph.node if node.op_type == "QuantizeLinear")
    assert set(rounded.values()) == {1}


def test_openvino_computes_in_bytes(quantized: onnx.ModelProto, calibrated: Calibrated, tmp_path: Path) -> None:
    from retinaserve.scripts.precisions import convolution_types

    onnx.save(graft(quantized), tmp_path / "int8.onnx")
    onnx.save(graft(calibrated.model), tmp_path / "fp32.onnx")
    convolutions = sum(layer.kind == "conv" for layer in calibrated.layers)
    types = convolution_types(tmp_path / "int8.onnx", "f32")
    assert types["f32"] == 10 and sum(types.values()) - 10 == convolutions
    assert set(types) <= {"f32", "u8", "i8"}
    assert set(convolution_types(tmp_path / "fp32.onnx", "f32")) == {"f32"}


def test_a_network_may_have_its_outputs_in_bytes_too(images: Path, tmp_path: Path) -> None:
    """One tower for both heads on three levels, a stem without a pool, an anchor a cell."""
    from retinaserve.scripts.precisions import convolution_types

    family = {"backbone": "fast-n", "towers": "one", "p6_from": "none", "one_anchor": True, "int8_outputs": True}
    spec = DetectorSpec.create(
        ["disc", "box"], size=(128, 192), width=16, fpn_channels=16, head_depth=1, norm="batch", **family
    )
    float_ = calibrate(
        heads_graph(toy_model(spec), spec), spec, draw(spec, Int8Options(images)), Int8Options(images)
    )
    quantized = float_.quantize("minmax", float_.layers)
    names = {layer.name for layer in float_.layers}
    assert {"tower.convs.0/p3", "cls_head.output/p5", "box_head.output/p4"} <= names
    onnx.save(graft(quantized), tmp_path / "int8.onnx")
    types = convolution_types(tmp_path / "int8.onnx", "f32")
    assert "f32" not in types and sum(types.values()) == sum(layer.kind == "conv" for layer in float_.layers)
    kept = float_.quantize("minmax", layers_of(float_.model, spec, ["cls_head.output", "box_head.output"]))
    onnx.save(graft(kept), tmp_path / "kept.onnx")
    assert convolution_types(tmp_path / "kept.onnx", "f32")["f32"] == 6
    for kind in (0, 1):
        assert noise(heads_of(quantized, float_), heads_of(float_.model, float_), kind) < 0.05


@pytest.mark.parametrize("options", [{"flavour": "tensorrt"}, {"until": "candidates"}], ids=str)
def test_every_graft_takes_int8_heads(quantized: onnx.ModelProto, options) -> None:
    """And rounds nothing behind the heads, or in front of the first convolution's own pair."""
    rounded = {node.name for node in quantized.graph.node if node.op_type == "QuantizeLinear"}
    grafted = graft(quantized, **options)
    assert {node.name for node in grafted.graph.node if node.op_type == "QuantizeLinear"} == rounded


def test_layers_are_called_as_in_the_checkpoint(calibrated: Calibrated) -> None:
    names = [layer.name for layer in calibrated.layers]
    assert len(set(names)) == len(names)
    assert names[:4] == [
        "backbone.conv1",
        "backbone.layer1.0.conv1",
        "backbone.layer1.0.conv2",
        "backbone.layer1.0.conv2+add",
    ]
    heads = {f"{head}_head.convs.{n}/p{level}" for head in ("cls", "box") for n in (0, 1) for level in range(3, 8)}
    assert heads < set(names) and "fpn.laterals.1.0+add" in names
    assert not any("output" in name for name in names)


NAMES = (
    "backbone.conv1",
    "backbone.layer1.0.conv1",
    "backbone.layer1.0.conv1+add",
    "backbone.layer1.0.conv11",
    "backbone.layer10.0.conv1",
    "cls_head.convs.0/p3",
    "cls_head.convs.0/p4",
)


@pytest.mark.parametrize(
    ("excluded", "gone"),
    [
        ([], []),
        (["backbone.conv1"], [0]),
        (["backbone.layer1"], [1, 2, 3]),
        (["backbone.layer1.0.conv1"], [1]),
        (["backbone.layer1.0.conv1+add"], [2]),
        (["cls_head.convs.0"], [5, 6]),
        (["cls_head.convs.0/p4", "backbone.layer10"], [4, 6]),
    ],
    ids=str,
)
def test_a_name_means_a_layer_or_those_below_it(excluded: list[str], gone: list[int]) -> None:
    layers = [Layer(name, "conv", name, "x", 0) for name in NAMES]
    left = {layer.name for layer in without(layers, excluded)}
    assert [number for number, name in enumerate(NAMES) if name not in left] == gone


def test_a_layer_that_is_not_there_is_refused_with_those_near(calibrated: Calibrated) -> None:
    with pytest.raises(UserError, match=r"backbone.layer1.0.conv3: there is no such layer") as caught:
        layers_of(calibrated.model, calibrated.spec, ["backbone.layer1.0.conv3"])
    assert "backbone.layer1.0.conv2" in caught.value.hint and caught.value.code == Exit.USAGE


def test_an_excluded_layer_stays_in_float_and_its_neighbours_do_not(calibrated: Calibrated, images: Path) -> None:
    options = Int8Options(images, exclude=("backbone.layer2", "cls_head.convs.0/p3"))
    drawn = draw(calibrated.spec, options)
    model, record = to_int8(calibrated.model, calibrated.spec, drawn, options)
    assert set(record["excluded"]) == {
        layer.name
        for layer in calibrated.layers
        if layer.name.startswith("backbone.layer2.") or layer.name == "cls_head.convs.0/p3"
    }
    floats = [
        node for node in model.graph.node if node.op_type == "Conv" and not node.input[1].endswith("/restored")
    ]
    assert len(floats) == 5 + 1  # of layer2, two of them around a shortcut with a convolution, and of the head
    metadata = metadata_of(model)
    assert metadata[METADATA_PRECISION] == "int8" and '"calibrator": "minmax"' in metadata[METADATA_CALIBRATION]


def test_quantizing_twice_is_refused(quantized: onnx.ModelProto, calibrated: Calibrated) -> None:
    with pytest.raises(UserError, match="quantized already"):
        quantize(quantized, calibrated.spec, {}, [])


def test_every_layer_has_its_range_measured(calibrated: Calibrated) -> None:
    tensors = tensors_of(calibrated.model, calibrated.layers)
    assert len(set(tensors)) == len(tensors) and set(tensors) == set(calibrated.histograms)
    graph = gs.import_onnx(calibrated.model)
    assert {layer.kind for layer in find_layers(graph, calibrated.spec)} == set(LAYERS)
