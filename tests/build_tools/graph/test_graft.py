import json
import math
from dataclasses import replace

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from retinaserve.build_tools.graph.graft import graft, save
from retinaserve.build_tools.graph.onnx_io import read_spec
from retinaserve.build_tools.openvino_cpu import compile_for_cpu, shared_core
from retinaserve.training.errors import UserError
from retinaserve.training.spec import METADATA_CLASSES, METADATA_SPEC, NETWORK_INPUT, OUTPUTS, DetectorSpec
from tests.heads import (
    KINDS,
    SPECS,
    Heads,
    assert_equal_detections,
    random_heads,
    reference_candidates,
    reference_detections,
)

RUNTIMES = ("onnxruntime", "openvino")


def raw_model(spec, heads, *, opset=18):
    """A network that looks its heads up: the first byte of a picture is its row in `heads`."""
    spec = replace(spec, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    constants = {
        "zeros": np.zeros(3, int),
        "ones": np.ones(3, int),
        "axes": np.arange(1, 4),
        "all": np.array([-1]),
    }
    nodes = [
        helper.make_node("Slice", [NETWORK_INPUT, "zeros", "ones", "axes"], ["corner"]),
        helper.make_node("Reshape", ["corner", "all"], ["value"]),
        helper.make_node("Mul", ["value", "white"], ["scaled"]),
        helper.make_node("Round", ["scaled"], ["rounded"]),
        helper.make_node("Cast", ["rounded"], ["row"], to=TensorProto.INT64),
    ]
    constants["white"] = np.float32(255)
    tables = [table for pair in zip(heads.logits, heads.deltas, strict=True) for table in pair]
    names = [name for pair in spec.head_names for name in pair]
    for name, table in zip(names, tables, strict=True):
        constants[f"{name}_table"] = table
        nodes.append(helper.make_node("Gather", [f"{name}_table", "row"], [name], axis=0))
    shapes = {name: ["batch", *table.shape[1:]] for name, table in zip(names, tables, strict=True)}
    return onnx_model(spec, nodes, constants, shapes, opset=opset)


def onnx_model(spec, nodes, constants, shapes, *, opset=18):
    graph = helper.make_graph(
        nodes,
        "raw",
        [helper.make_tensor_value_info(NETWORK_INPUT, TensorProto.FLOAT, ["batch", 3, *spec.size])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    helper.set_model_props(model, {METADATA_SPEC: spec.to_json()})
    return model


def images(spec, rows):
    image = np.zeros((len(rows), 3, *spec.size), np.uint8)
    image[:, 0, 0, 0] = rows
    return image


def runner_of(model, runtime):
    """Return a function from named inputs to the outputs in the graph's order."""
    data = model.SerializeToString()
    if runtime == "onnxruntime":
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 2
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        return lambda inputs: session.run(None, inputs)
    request = compile_for_cpu(data, threads=2).create_infer_request()
    names = [output.name for output in model.graph.output]

    def run(inputs):
        request.infer(inputs)
        return [request.get_tensor(name).data.copy() for name in names]

    return run


def runner(model, runtime):
    """Return a function from image and letterbox to the outputs in the graph's order."""
    run = runner_of(model, runtime)
    return lambda image, letterbox: run({"image": image, "letterbox": letterbox})


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("name", SPECS)
def test_equals_the_reference(name, runtime):
    spec = SPECS[name]
    heads = random_heads(spec)
    run = runner(graft(raw_model(spec, heads)), runtime)
    expected = reference_detections(spec, heads)
    batch = run(images(spec, range(len(KINDS))), heads.letterbox)
    assert_equal_detections(batch, expected)
    for image in range(len(KINDS)):  # batch-N equals N times batch-1, bit for bit
        alone = run(images(spec, [image]), heads.letterbox[[image]])
        assert all((a[0] == b[image]).all() for a, b in zip(alone, batch, strict=True))
    five = [4, 0, 2, 4, 3]
    again = run(images(spec, five), heads.letterbox[five])
    assert all((a == b[five]).all() for a, b in zip(again, batch, strict=True))


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize(
    ("height", "count"),
    [
        pytest.param(math.log(0.5), 2, id="an IoU of exactly 0.5 stays"),
        pytest.param(math.log(0.501), 1, id="one above 0.5 goes"),
        pytest.param(math.log(0.499), 2, id="one below 0.5 stays"),
    ],
)
def test_iou_at_the_threshold(height, count, runtime):
    # Two anchors in one cell: 16 x 16 and 16 x 8 at the same corner, the second's height set by its delta.
    anchors = (((0.0, 0.0, 16.0, 16.0), (0.0, 0.0, 16.0, 16.0)),)
    spec = replace(SPECS["1 class 64x64"], size=(16, 16), strides=(16,), anchors=anchors)
    logits = np.array([2.0, 1.0], np.float32).reshape(1, 2, 1, 1)
    deltas = np.zeros((1, 8, 1, 1), np.float32)
    deltas[0, 7] = height
    if count == 2 and height == math.log(0.5):
        deltas[0, 5], deltas[0, 7] = -0.5, 0  # half outside the picture: no exp() to round
    heads = Heads([logits], [deltas], np.array([[16, 16, 16, 16]], np.float32))
    found = runner(graft(raw_model(spec, heads)), runtime)(images(spec, [0]), heads.letterbox)
    assert found[0].tolist() == [[count]]
    assert_equal_detections(found, reference_detections(spec, heads))


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_at_an_iou_of_one_nothing_is_suppressed(runtime):
    """Not even boxes that are the same; ONNX Runtime refuses the float above one."""
    spec = replace(SPECS["3 classes 96x160, no multiple of 128"], nms_iou=1.0)
    heads = random_heads(spec)
    for level in heads.deltas:
        level[:] = 0
    heads.letterbox[:, 2:] = 1  # all boxes end in the same pixel
    found = runner(graft(raw_model(spec, heads)), runtime)(images(spec, range(len(KINDS))), heads.letterbox)
    assert found[0].max() == spec.max_detections
    assert_equal_detections(found, reference_detections(spec, heads))


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_level_of_more_logits_than_float32_counts(runtime):
    spec = replace(
        DetectorSpec.create([f"c{i}" for i in range(80)], size=(1280, 1280), strides=(8,)), max_detections=60
    )
    logits, deltas = np.full((1, 720, 160, 160), -9, np.float32), np.zeros((1, 36, 160, 160), np.float32)
    heads = Heads([logits], [deltas], np.full((1, 4), 1280, np.float32))
    flat = logits.reshape(-1)
    assert flat.size > 2**24
    cells = 160 * 160
    edges = np.arange(flat.size - 50 * cells, flat.size, cells)  # first and last cell of the last channels
    flat[edges] = np.linspace(1, 2, 50)
    flat[edges - 1] = np.linspace(2, 3, 50)
    found = runner(graft(raw_model(spec, heads)), runtime)(images(spec, [0]), heads.letterbox)
    assert_equal_detections(found, reference_detections(spec, heads))


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("name", SPECS)
def test_candidates_equal_the_reference(name, runtime):
    spec = SPECS[name]
    # OpenVINO's TopK orders equal logits as it likes
    kinds = tuple(kind for kind in KINDS if kind != "ties" or runtime == "onnxruntime")
    heads = random_heads(spec, kinds)
    run = runner(graft(raw_model(spec, heads), until="candidates"), runtime)
    found, expected = run(images(spec, range(len(kinds))), heads.letterbox), reference_candidates(spec, heads)
    assert [(a.shape, a.dtype) for a in found] == [(a.shape, a.dtype) for a in expected]
    assert (found[0] == expected[0]).all() and (found[2] == expected[2]).all()
    np.testing.assert_allclose(found[1], expected[1], rtol=0, atol=1e-3)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_more_equal_logits_than_fit(runtime):
    """In a level that is cut into runs: a few are better, and the runs they are in have some of the equal ones."""
    spec = replace(SPECS["80 classes 256x256"], topk_candidates=40)
    heads, rng = random_heads(spec, ("none",)), np.random.default_rng(0)
    for level in heads.logits:
        chance = rng.random(level.shape)
        level[:] = np.where(chance < 2e-5, 3, np.where(chance < 0.02, 2, -9))
    run = runner(graft(raw_model(spec, heads), until="candidates"), runtime)
    logits, boxes, classes = run(images(spec, [0]), heads.letterbox)
    expected = reference_candidates(spec, heads)
    assert (logits == expected[0]).all()
    if runtime == "onnxruntime":  # which of them make the cut is OpenVINO's choice
        assert (classes == expected[2]).all()
        np.testing.assert_allclose(boxes, expected[1], rtol=0, atol=1e-3)


@pytest.mark.parametrize("opset", [17, 20])
def test_opsets_at_both_ends(opset):
    spec = SPECS["few candidates, other thresholds"]
    heads = random_heads(spec)
    model = graft(raw_model(spec, heads, opset=opset))
    assert [(item.domain, item.version) for item in model.opset_import] == [("", opset)]
    found = runner(model, "onnxruntime")(images(spec, range(len(KINDS))), heads.letterbox)
    assert_equal_detections(found, reference_detections(spec, heads))


@pytest.mark.parametrize("pixels", ["uint8", "float32"])
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_pixels_are_normalised_by_the_spec(runtime, pixels):
    # One anchor, three classes and stride 1: the logits can be the normalised picture itself.
    spec = DetectorSpec(
        classes=("r", "g", "b"), category_ids=(1, 2, 3), size=(16, 16), strides=(1,),
        anchors=(((0.0, 0.0, 1.0, 1.0),),), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225),
        pixels=pixels,
    )  # fmt: skip
    ((logits, deltas),) = spec.head_names
    nodes = [
        helper.make_node("Identity", [NETWORK_INPUT], [logits]),
        helper.make_node("Gather", [NETWORK_INPUT, "channels"], [deltas], axis=1),
    ]
    shapes = {logits: ["batch", 3, 16, 16], deltas: ["batch", 4, 16, 16]}
    raw = onnx_model(spec, nodes, {"channels": np.array([0, 1, 2, 0])}, shapes)
    model = graft(raw, keep_heads=True)
    assert [output.name for output in model.graph.output] == [*OUTPUTS, logits, deltas]
    image = np.arange(768, dtype=np.uint16).astype(np.uint8).astype(pixels).reshape(1, 3, 16, 16)
    if pixels == "float32":
        image += np.float32(0.25)
    found = runner(model, runtime)(image, np.full((1, 4), 16, np.float32))[len(OUTPUTS)]
    mean, std = np.reshape(spec.mean, (1, 3, 1, 1)), np.reshape(spec.std, (1, 3, 1, 1))
    np.testing.assert_allclose(found, (image / 255 - mean) / std, rtol=0, atol=1e-6)


def test_every_convolution_has_a_bias_of_its_own(toy_onnx):
    model = onnx.load(toy_onnx)
    biases = [node.input[2] for node in model.graph.node if node.op_type == "Conv" and len(node.input) > 2]
    assert len(biases) >= 5 and len(set(biases)) == len(biases)
    # and OpenVINO adds it in the convolution: a pass over a whole output is what this is for
    core = shared_core()
    compiled = core.compile_model(core.read_model(toy_onnx), "CPU")
    added = [
        node
        for node in compiled.get_runtime_model().get_ops()
        if str(node.get_rt_info()["layerType"].astype(str)) == "Eltwise"
        and "node_conv2d" in node.get_friendly_name()
    ]
    assert not added, added


def test_the_contract_is_written_in_the_file(tmp_path):
    spec = SPECS["80 classes 256x256"]
    save(graft(raw_model(spec, random_heads(spec, ("few",)))), tmp_path / "detector.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["detector.onnx"]
    model = onnx.load(tmp_path / "detector.onnx")

    def tensors(values):
        types = [(value.name, value.type.tensor_type) for value in values]
        return [
            (name, TensorProto.DataType.Name(kind.elem_type), [d.dim_param or d.dim_value for d in kind.shape.dim])
            for name, kind in types
        ]

    assert tensors(model.graph.input) == [
        ("image", "UINT8", ["batch", 3, 256, 256]),
        ("letterbox", "FLOAT", ["batch", 4]),
    ]
    assert tensors(model.graph.output) == [
        ("num_detections", "INT32", ["batch", 1]),
        ("boxes", "FLOAT", ["batch", 100, 4]),
        ("scores", "FLOAT", ["batch", 100]),
        ("classes", "INT32", ["batch", 100]),
    ]
    assert {node.domain for node in model.graph.node} == {""}
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(metadata[METADATA_CLASSES]) == list(spec.classes)
    assert read_spec(model).classes == spec.classes


@pytest.mark.parametrize("until", ["detections", "candidates"])
def test_flavours_differ_in_the_nodes_behind_the_heads_only(until):
    spec = SPECS["3 classes 96x160, no multiple of 128"]
    raw = raw_model(spec, random_heads(spec, ("few",)))
    standard, plugins = (graft(raw, until=until, flavour=flavour) for flavour in ("standard", "tensorrt"))
    for part in (lambda m: m.graph.input, lambda m: m.graph.output, lambda m: m.metadata_props):
        assert list(part(plugins)) == list(part(standard))

    shared = [node for node in plugins.graph.node if not node.domain]
    assert all(node in list(standard.graph.node) for node in shared)
    front = [node.op_type for node in shared if node.name.startswith("detect/")]
    assert front == ["Cast", "Mul", "Add"]  # the pixels' normalisation
    ours = [(node.op_type, node.domain) for node in plugins.graph.node if node.domain]
    expected = [("RetinaNetDecode", "trt.plugins"), ("RetinaNetNMS", "trt.plugins")]
    assert ours == expected[: 1 if until == "candidates" else 2]
    assert [(item.domain, item.version) for item in plugins.opset_import] == [("", 18), ("trt.plugins", 1)]


def test_the_plugins_are_told_where_boxes_end():
    spec = SPECS["boxes end at the canvas"]
    heads = random_heads(spec)
    graph = gs.import_onnx(graft(raw_model(spec, heads), flavour="tensorrt"))
    (ends,) = {node.inputs[-1].name for node in graph.nodes if node.domain}
    graph.outputs = [graph.tensors()[ends].to_variable(np.float32, ["batch", 4])]
    model = gs.export_onnx(graph.cleanup(remove_unused_graph_inputs=True))
    (found,) = runner_of(model, "onnxruntime")({"letterbox": heads.letterbox})
    np.testing.assert_allclose(found, spec.ends(heads.letterbox), rtol=1e-6)
    np.testing.assert_allclose(found[:, :2] / found[:, 2:], heads.letterbox[:, :2] / heads.letterbox[:, 2:], 1e-6)
    assert (found[:, 2:] == spec.size).all()


def test_the_plugins_attributes_are_the_spec_s():
    spec = SPECS["few candidates, other thresholds"]
    model = graft(raw_model(spec, random_heads(spec, ("few",))), flavour="tensorrt")
    decode, nms = (node for node in model.graph.node if node.domain)
    attributes = {
        node.op_type: {each.name: helper.get_attribute_value(each) for each in node.attribute}
        for node in (decode, nms)
    }
    common = {"plugin_version": b"1", "plugin_namespace": b""}
    assert attributes["RetinaNetDecode"] == common | {
        "anchors": spec.anchor_table.ravel().tolist(),
        "strides": [8, 16, 32, 64, 128],
        "threshold_logit": np.float32(math.log(0.4 / 0.6)),
        "delta_clamp": np.float32(math.log(1000 / 16)),
        "topk": 7,
        "classes": 2,
    }
    assert attributes["RetinaNetNMS"] == common | {"iou": np.float32(0.3), "max_detections": 9}
    heads = [name for pair in spec.head_names for name in pair]
    assert list(decode.input) == [*heads, "letterbox"]
    assert list(nms.input) == [*decode.output, "letterbox"] and list(nms.output) == list(OUTPUTS)


@pytest.mark.parametrize(
    "change", [{"topk_candidates": 4097}, {"max_detections": 4097}], ids=lambda change: next(iter(change))
)
def test_more_than_the_plugins_take(change):
    spec = replace(SPECS["1 class 64x64"], **change)
    raw = raw_model(spec, random_heads(spec, ("none",)))
    with pytest.raises(UserError) as error:
        graft(raw, flavour="tensorrt")
    assert next(iter(change)) in error.value.message and "4096" in error.value.hint


def test_a_given_spec_replaces_the_model_s():
    spec = SPECS["1 class 64x64"]
    heads = random_heads(spec, ("many",))
    stricter = replace(spec, score_threshold=0.9, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    model = graft(raw_model(spec, heads), stricter)
    assert read_spec(model) == stricter
    found = runner(model, "onnxruntime")(images(spec, [0]), heads.letterbox)
    assert_equal_detections(found, reference_detections(stricter, heads))


def rename(values, old, new):
    next(value for value in values if value.name == old).name = new


def set_dim(value, axis, size):
    value.type.tensor_type.shape.dim[axis].dim_value = size


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        pytest.param(
            lambda model: model.ClearField("metadata_props"), "no 'retinaserve.spec' in its metadata", id="no spec"
        ),
        pytest.param(
            lambda model: rename(model.graph.input, "input", "pixels"), "has the inputs: pixels", id="input name"
        ),
        pytest.param(
            lambda model: set_dim(model.graph.input[0], 3, 96), "'input' is FLOAT [batch, 3, 64, 96]",
            id="another size",
        ),
        pytest.param(
            lambda model: set_dim(model.graph.input[0], 0, 8), "'input' is FLOAT [8, 3, 64, 64]",
            id="a fixed batch",
        ),
        pytest.param(
            lambda model: rename(model.graph.output, "box_deltas_p5", "boxes"), "no output 'box_deltas_p5'",
            id="a head is missing",
        ),
        pytest.param(
            lambda model: set_dim(model.graph.output[2], 1, 18), "'cls_logits_p4' is FLOAT [batch, 18, 4, 4]",
            id="as many channels as for two classes",
        ),
        pytest.param(
            lambda model: setattr(model.graph.output[1].type.tensor_type, "elem_type", TensorProto.FLOAT16),
            "'box_deltas_p3' is FLOAT16", id="half precision",
        ),
        pytest.param(
            lambda model: setattr(model.opset_import[0], "version", 11), "opset 11", id="an old opset"
        ),
    ],
)  # fmt: skip
def test_a_model_that_does_not_match_its_spec(damage, message):
    spec = SPECS["1 class 64x64"]
    model = raw_model(spec, random_heads(spec, ("none",)))
    damage(model)
    with pytest.raises(UserError) as error:
        graft(model)
    assert message in error.value.message and error.value.hint
