"""The TensorRT adapter: through its whole life in the harness, and in a real registry where tensorrt_rtx is.

On the CPU the plugins' kernels are emulated, so that `enqueue` runs here too; on a GPU it is the shipped library,
plainly and in a CUDA graph. What is not here (headers, tensorrt_rtx, a GPU) skips its tests with the reason.
"""

import ctypes
import json
import math
import os
import shutil
import subprocess
import sys
from ctypes import POINTER, c_char_p, c_int32, c_int64, c_size_t, c_void_p
from pathlib import Path

import numpy as np
import pytest

from retinaserve.plugins import reference
from retinaserve.training.spec import DELTA_CLAMP
from tests.heads import KINDS, SPECS, random_heads
from tests.plugins.emulator.native import garbage, laid_out
from tests.plugins.libraries import built, harness_on, plugins_on, triton_on

FLOAT, HALF, INT32 = 0, 1, 3  # nvinfer1::DataType
FORMATS = {"linear": 0, "linear, filled": 0, "kHWC8": 2, "kHWC": 8}  # nvinfer1::TensorFormat
FIELD_TYPES = {"FLOAT32": 1, "FLOAT64": 2, "INT32": 5, "INT64": 10}  # nvinfer1::PluginFieldType
NUMPY_TYPES = {"FLOAT32": np.float32, "FLOAT64": np.float64, "INT32": np.int32, "INT64": np.int64}
DECODE, NMS = "RetinaNetDecode", "RetinaNetNMS"
MODES = (("cpu", False), *(pytest.param(("gpu", in_graph), marks=pytest.mark.gpu) for in_graph in (False, True)))


class Field(ctypes.Structure):
    """nvinfer1::PluginField."""

    _fields_ = (("name", c_char_p), ("data", c_void_p), ("type", c_int32), ("length", c_int32))


class Tensor(ctypes.Structure):
    """HarnessTensor of emulator/harness.cpp."""

    _fields_ = (
        ("type", c_int32), ("format", c_int32), ("nbDims", c_int32), ("dims", c_int64 * 8), ("data", c_void_p),
    )  # fmt: skip

    @classmethod
    def of(cls, array, layout="linear", shape=None):
        kind = {np.dtype(np.float32): FLOAT, np.dtype(np.float16): HALF, np.dtype(np.int32): INT32}[array.dtype]
        return cls(kind, FORMATS[layout], array.ndim, (c_int64 * 8)(*(shape or array.shape)), array.ctypes.data)


def decode_fields(spec):
    return {
        "anchors": ("FLOAT32", spec.anchor_table.ravel().tolist()),
        "strides": ("INT32", list(spec.strides)),
        "threshold_logit": ("FLOAT32", [spec.score_threshold_logit]),
        "delta_clamp": ("FLOAT32", [DELTA_CLAMP]),
        "topk": ("INT32", [spec.topk_candidates]),
        "classes": ("INT32", [len(spec.classes)]),
    }


def nms_fields(spec):
    return {"iou": ("FLOAT32", [spec.nms_iou]), "max_detections": ("INT32", [spec.max_detections])}


def live(mode, plugin, fields, inputs, outputs, *, max_batch=None, layout="linear"):
    """Take a plugin through its life and fill the outputs; return what went wrong, or nothing.

    layout: of the inputs of 4 dimensions, of native.LAYOUTS.
    """
    device, in_graph = mode
    arrays = {name: np.array(values, NUMPY_TYPES[kind]) for name, (kind, values) in fields.items()}
    given = (Field * max(len(fields), 1))(
        *(
            Field(name.encode(), arrays[name].ctypes.data, FIELD_TYPES[kind], arrays[name].size)
            for name, (kind, _) in fields.items()
        )
    )
    heads = [array.ndim == 4 for array in inputs]
    stored = [
        laid_out(a, layout) if head else np.ascontiguousarray(a) for a, head in zip(inputs, heads, strict=True)
    ]
    given_tensors = [
        Tensor.of(array, layout, array.shape if layout.startswith("linear") else original.shape)
        if head
        else Tensor.of(array)
        for array, original, head in zip(stored, inputs, heads, strict=True)
    ]
    tensors = [(Tensor * len(group))(*group) for group in (given_tensors, [*map(Tensor.of, outputs)])]
    message = ctypes.create_string_buffer(2000)
    harness = ctypes.CDLL(str(harness_on(device)))
    harness.harnessRun.argtypes = (
        c_char_p, c_char_p, POINTER(Field), c_int32, POINTER(Tensor), c_int32, POINTER(Tensor), c_int32, c_int64,
        c_int32, c_char_p, c_size_t,
    )  # fmt: skip
    error = harness.harnessRun(
        str(plugins_on(device)).encode(), plugin.encode(), given, len(fields), tensors[0], len(inputs),
        tensors[1], len(outputs), max_batch or len(inputs[0]), in_graph, message, len(message),
    )  # fmt: skip
    assert bool(error) == bool(message.value)
    return message.value.decode()


def candidate_outputs(batch, slots):
    return [
        garbage((batch, slots), np.float32), garbage((batch, slots, 4), np.float32),
        garbage((batch, slots), np.int32),
    ]  # fmt: skip


def detection_outputs(batch, most):
    return [
        garbage((batch, 1), np.int32), garbage((batch, most, 4), np.float32),
        garbage((batch, most), np.float32), garbage((batch, most), np.int32),
    ]  # fmt: skip


def problem(name, dtype=np.float32):
    """Return a spec, its decode's inputs, and what the reference's decode makes of them."""
    spec = SPECS[name]
    heads = random_heads(spec, KINDS)
    logits = [level.astype(dtype) for level in heads.logits]
    deltas = [level.astype(dtype) for level in heads.deltas]
    expected = reference.decode(
        logits, deltas, heads.letterbox, anchors=spec.anchor_table, strides=spec.strides,
        threshold_logit=spec.score_threshold_logit, topk=spec.topk_candidates, delta_clamp=DELTA_CLAMP,
    )  # fmt: skip
    pairs = [array for pair in zip(logits, deltas, strict=True) for array in pair]
    return spec, [*pairs, heads.letterbox], expected


@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize(
    ("dtype", "layout"),
    [
        (np.float32, "linear"), (np.float16, "linear"), (np.float16, "linear, filled"), (np.float16, "kHWC8"),
        (np.float32, "kHWC"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", SPECS)
def test_the_life_of_the_decode_plugin(name, dtype, layout, mode):
    spec, inputs, expected = problem(name, dtype)
    found = candidate_outputs(len(KINDS), expected[0].shape[1])
    assert live(mode, DECODE, decode_fields(spec), inputs, found, max_batch=2 * len(KINDS), layout=layout) == ""
    assert np.array_equal(found[0], expected[0]) and np.array_equal(found[2], expected[2])
    np.testing.assert_allclose(found[1], expected[1], rtol=0, atol=1e-3)


@pytest.mark.parametrize(("dtype", "layout"), [(np.float32, "linear"), (np.float16, "kHWC8")])
def test_a_plan_of_a_library_before_this_field_is_still_read(dtype, layout):
    spec, inputs, expected = problem("3 classes 96x160, no multiple of 128", dtype)
    found = candidate_outputs(len(KINDS), expected[0].shape[1])
    fields = without("classes")(decode_fields(spec))
    assert live(("cpu", False), DECODE, fields, inputs, found, layout=layout) == ""
    assert np.array_equal(found[0], expected[0]) and np.array_equal(found[2], expected[2])


@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize("name", SPECS)
def test_the_life_of_the_nms_plugin(name, mode):
    spec, inputs, candidates = problem(name)
    letterbox = inputs[-1]
    expected = reference.nms(*candidates, letterbox, iou=spec.nms_iou, max_detections=spec.max_detections)
    found = detection_outputs(len(letterbox), spec.max_detections)
    assert live(mode, NMS, nms_fields(spec), [*candidates, letterbox], found, max_batch=20) == ""
    assert np.array_equal(found[0], expected[0]) and np.array_equal(found[3], expected[3])
    assert np.array_equal(found[1], expected[1])
    np.testing.assert_allclose(found[2], expected[2], rtol=0, atol=1e-5)


def without(name):
    return lambda fields: {key: value for key, value in fields.items() if key != name}


def having(name, kind, values):
    return lambda fields: fields | {name: (kind, values)}


BAD_FIELDS = [
    *((plugin, without(name), f"field '{name}' is missing") for plugin, name in (
        (DECODE, "anchors"), (DECODE, "strides"), (DECODE, "threshold_logit"), (DECODE, "delta_clamp"),
        (DECODE, "topk"), (NMS, "iou"), (NMS, "max_detections"),
    )),
    (DECODE, having("topk", "FLOAT32", [1000]), "field 'topk' is FLOAT32, but INT32 is expected"),
    (DECODE, having("strides", "INT64", [8] * 5), "field 'strides' is INT64, but INT32 is expected"),
    (DECODE, having("anchors", "FLOAT64", [0] * 180), "field 'anchors' is FLOAT64, but FLOAT32 is expected"),
    (DECODE, having("anchors", "FLOAT32", [0] * 21), "field 'anchors' has 21 values"),
    (DECODE, having("strides", "INT32", [8, 16, 0, 64, 128]), "field 'strides' has a value below 1"),
    (DECODE, having("strides", "INT32", []), "field 'strides' is empty"),
    (DECODE, having("topk", "INT32", [1000, 1000]), "field 'topk' has 2 values, but 1 is expected"),
    (DECODE, having("topk", "INT32", [0]), "field 'topk' is 0, but 1 to 4096 is expected"),
    (DECODE, having("threshold_logit", "FLOAT32", [math.nan]), "field 'threshold_logit' is not a finite number"),
    (DECODE, having("delta_clamp", "FLOAT32", [math.nan]), "field 'delta_clamp' is not a number"),
    (DECODE, having("classes", "FLOAT32", [1]), "field 'classes' is FLOAT32, but INT32 is expected"),
    (DECODE, having("classes", "INT32", [-1]), "field 'classes' is -1, but 0 or more is expected"),
    (NMS, having("iou", "FLOAT64", [0.5]), "field 'iou' is FLOAT64, but FLOAT32 is expected"),
    (NMS, having("iou", "FLOAT32", [1.5]), "field 'iou' is 1.500000, but 0 to 1 is expected"),
    (NMS, having("max_detections", "INT32", [5000]), "field 'max_detections' is 5000, but 1 to 4096 is expected"),
]  # fmt: skip


def bad_fields(plugin, change):
    spec = SPECS["1 class 64x64"]
    return change(decode_fields(spec) if plugin == DECODE else nms_fields(spec))


@pytest.mark.parametrize(("plugin", "change", "message"), BAD_FIELDS, ids=[each[2] for each in BAD_FIELDS])
def test_a_bad_field_is_named(plugin, change, message):
    array = np.zeros((1, 4), np.float32)
    found = live(("cpu", False), plugin, bad_fields(plugin, change), [array], [array.copy()])
    assert found.startswith(f"createPlugin failed: {plugin}: {message}")


def reshaped(index, shape):
    return lambda inputs: [np.zeros(shape, a.dtype) if i == index else a for i, a in enumerate(inputs)]


REFUSED = "the tensors' own format is refused"


@pytest.mark.parametrize(
    ("plugin", "change", "message"),
    [
        (DECODE, lambda inputs: inputs[2:], REFUSED),
        (DECODE, reshaped(2, (7, 36, 13, 5)), "level 1: logits must have (anchors x classes) channels"),
        (DECODE, reshaped(2, (7, 17, 13, 5)), "level 1: logits must have (anchors x classes) channels"),
        (DECODE, reshaped(2, (7, 24, 13, 5)), "level 1: logits must have (anchors x classes) channels"),
        (DECODE, reshaped(3, (7, 35, 13, 5)), "level 1: deltas must have (anchors x 4) channels"),
        (DECODE, reshaped(3, (7, 36, 13, 6)), "level 1: logits and deltas differ in size"),
        (DECODE, reshaped(10, (7, 5)), "the last input, letterbox, must be (batch, 4)"),
        (NMS, lambda inputs: inputs[1:], REFUSED),
        (NMS, reshaped(1, (7, 9, 4)), "boxes must be (batch, candidates, 4), as many as logits"),
        (NMS, reshaped(2, (7, 9)), "classes must be (batch, candidates), as many as logits"),
        (NMS, reshaped(3, (7, 3)), "letterbox must be (batch, 4)"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_inputs_that_do_not_fit(plugin, change, message):
    spec, inputs, candidates = problem("few candidates, other thresholds")
    if plugin == DECODE:
        fields, outputs = decode_fields(spec), candidate_outputs(7, candidates[0].shape[1])
    else:
        fields, outputs = nms_fields(spec), detection_outputs(7, spec.max_detections)
        inputs = [*candidates, inputs[-1]]
    found = live(("cpu", False), plugin, fields, change(inputs), outputs)
    prefix = "" if message == REFUSED else f"configurePlugin failed: {plugin}: "
    assert found.startswith(prefix + message)


def test_the_graft_s_attributes_are_the_plugins_fields():
    pytest.importorskip("onnx_graphsurgeon")
    from onnx import helper

    from retinaserve.build_tools.graph.graft import graft
    from tests.build_tools.graph.test_graft import raw_model

    spec, inputs, expected = problem("few candidates, other thresholds")
    model = graft(raw_model(spec, random_heads(spec, ("none",))), flavour="tensorrt")
    fields = {}
    for node in model.graph.node:
        if node.domain:
            own = [each for each in node.attribute if not each.name.startswith("plugin_")]
            kinds = [each.AttributeType.Name(each.type).rstrip("S") + "32" for each in own]  # as TensorRT's parser
            values = [np.atleast_1d(helper.get_attribute_value(each)) for each in own]
            names = [each.name for each in own]
            fields[node.op_type] = dict(zip(names, zip(kinds, values, strict=True), strict=True))
    found = candidate_outputs(len(KINDS), expected[0].shape[1])
    assert live(("cpu", False), DECODE, fields[DECODE], inputs, found) == ""
    assert np.array_equal(found[0], expected[0]) and np.array_equal(found[2], expected[2])
    detections = detection_outputs(len(KINDS), spec.max_detections)
    assert live(("cpu", False), NMS, fields[NMS], [*found, inputs[-1]], detections) == ""
    assert detections[0].max() == spec.max_detections


def rtx_python():
    """Return an interpreter that has tensorrt_rtx; skip where there is none."""
    python = os.environ.get("RETINASERVE_RTX_PYTHON", sys.executable)
    done = subprocess.run([python, "-c", "import tensorrt_rtx"], capture_output=True)
    if done.returncode:
        pytest.skip("needs tensorrt_rtx: set RETINASERVE_RTX_PYTHON to an interpreter that has it")
    return python


def registry(library, cases):
    probe = Path(__file__).parent / "emulator" / "registry_probe.py"
    command = [rtx_python(), str(probe), str(library), str(harness_on("cpu"))]
    done = subprocess.run(command, input=json.dumps(cases), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("library", ["emulated kernels", "make plugins"])
def test_a_real_registry(library):
    rtx_python()
    spec = SPECS["80 classes 256x256"]
    good = [(DECODE, decode_fields(spec)), (NMS, nms_fields(spec))]
    # JSON has no NaN, and TensorRT's Python no empty field.
    bad = [each for each in BAD_FIELDS if "number" not in each[2] and "empty" not in each[2]]
    cases = good + [(plugin, bad_fields(plugin, change)) for plugin, change, _ in bad]
    path = built("libretinaserve_plugins.so") if library == "make plugins" else plugins_on("cpu")
    report = registry(path, cases)
    decode = {name: kind for name, (kind, _) in decode_fields(spec).items()}
    nms = {name: kind for name, (kind, _) in nms_fields(spec).items()}
    assert report["creators"] == [[DECODE, "1", "", decode], [NMS, "1", "", nms]]
    for case in report["cases"][:2]:
        assert case == {"created": True, "errors": [], "round_trip": ""}
    for (plugin, _, message), case in zip(bad, report["cases"][2:], strict=True):
        assert not case["created"] and len(case["errors"]) == 1
        assert case["errors"][0].startswith(f"{plugin}: {message}")


# All that Triton's TensorRT backend does with `plugins=` is a dlopen with these flags.
DLOPEN = """
import ctypes, os, sys
if sys.argv[1] == "tensorrt":
    import tensorrt_rtx as trt
    class Log(trt.ILogger):
        def __init__(self): trt.ILogger.__init__(self)
        def log(self, severity, message):
            if is_loading and severity <= trt.ILogger.WARNING: print(message, file=sys.stderr)
    is_loading, log = False, Log()
    before = trt.Runtime(log)  # the registry logs to the logger of the first object made
for path in sys.argv[2:]:
    is_loading = True
    ctypes.CDLL(path, mode=os.RTLD_NOW | os.RTLD_LOCAL)
    is_loading = False
    if sys.argv[1] == "tensorrt":
        found = trt.Runtime(log).get_plugin_registry(), trt.Builder(log).get_plugin_registry()
        names = "RetinaNetDecode", "RetinaNetNMS"
        print([each.get_creator(name, "1", "") is not None for each in found for name in names])
"""


def dlopen(*arguments):
    command = [rtx_python(), "-c", DLOPEN, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines(), done.stderr


def test_triton_s_way_of_loading_registers_the_plugins(tmp_path):
    rtx_python()
    library, again = triton_on("cpu"), tmp_path / "again.so"
    shutil.copy(library, again)
    shutil.copy(plugins_on("cpu"), tmp_path / "libretinaserve_plugins.so")
    shown, said = dlopen("tensorrt", plugins_on("cpu"), library, again)
    assert shown == [str([False] * 4), str([True] * 4), str([True] * 4)]
    assert said == ""


def test_what_keeps_triton_s_library_from_registering_is_told(tmp_path):
    rtx_python()
    shutil.copy(triton_on("cpu"), tmp_path)
    alone = tmp_path / "libretinaserve_triton.so"
    assert dlopen("alone", alone)[1] == f"{alone.name}: there is no TensorRT in this process\n"
    shown, said = dlopen("tensorrt", alone)
    assert shown == [str([False] * 4)]
    assert said.startswith(f"{alone.name}: {tmp_path}/libretinaserve_plugins.so: cannot open shared object file")
    assert len(said.splitlines()) == 1
