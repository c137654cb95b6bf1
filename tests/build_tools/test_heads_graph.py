import json
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from retinaserve.build_tools.graph.graft import graft
from retinaserve.build_tools.graph.onnx_io import read_spec
from retinaserve.build_tools.openvino_cpu import shared_core
from retinaserve.training.model import build_model
from retinaserve.training.spec import METADATA_CLASSES, NETWORK_INPUT, DetectorSpec
from retinaserve.training.trainer.validate import detect
from tests.heads import Heads, assert_equal_detections, reference_detections
from tests.toys import export_heads, small_spec

SPEC = small_spec(["a", "b", "ü"], size=(64, 96))
SMALL = DetectorSpec.create(["a"], size=(16, 16), strides=(8,))


class Small(nn.Module):
    """Two convolutions a level are enough of a model for how a file is written."""

    def __init__(self):
        super().__init__()
        self.cls = nn.Conv2d(3, 9, 8, 8)
        self.box = nn.Conv2d(3, 36, 8, 8)

    def forward(self, images):
        return ((self.cls(images), self.box(images)),)


class Broken(nn.Module):
    def forward(self, images):
        raise RuntimeError("no such layer")


@pytest.fixture(scope="module")
def trained():
    """Return a model whose batch statistics and heads are not those of a fresh one."""
    torch.manual_seed(0)
    model = build_model(SPEC)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    nn.init.normal_(model.cls_head.output.weight, std=0.5)
    nn.init.normal_(model.box_head.output.weight, std=0.2)
    return model.train()


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "heads.onnx"
    export_heads(trained, SPEC, path)
    return path


def test_the_file_keeps_the_contract(exported):
    model = onnx.load(exported)
    assert [path.name for path in exported.parent.iterdir()] == ["heads.onnx"]
    assert [value.name for value in model.graph.input] == [NETWORK_INPUT]
    shapes = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in model.graph.output
    }
    assert shapes == {
        "cls_logits_p3": ["batch", 27, 8, 12], "box_deltas_p3": ["batch", 36, 8, 12],
        "cls_logits_p4": ["batch", 27, 4, 6], "box_deltas_p4": ["batch", 36, 4, 6],
        "cls_logits_p5": ["batch", 27, 2, 3], "box_deltas_p5": ["batch", 36, 2, 3],
        "cls_logits_p6": ["batch", 27, 1, 2], "box_deltas_p6": ["batch", 36, 1, 2],
        "cls_logits_p7": ["batch", 27, 1, 1], "box_deltas_p7": ["batch", 36, 1, 1],
    }  # fmt: skip
    assert list(shapes) == [name for pair in SPEC.head_names for name in pair]
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}
    assert read_spec(model) == SPEC
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(metadata[METADATA_CLASSES]) == ["a", "b", "ü"]


@pytest.mark.parametrize("batch", [1, 3])
def test_onnx_runtime_and_openvino_equal_torch(exported, trained, batch):
    images = torch.randn(batch, 3, 64, 96, generator=torch.Generator().manual_seed(batch))
    trained.eval()
    with torch.no_grad():
        expected = [tensor.numpy() for pair in trained(images) for tensor in pair]
    session = onnxruntime.InferenceSession(exported, providers=["CPUExecutionProvider"])
    compiled = shared_core().compile_model(exported, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    answers = session.run(None, {NETWORK_INPUT: images.numpy()}), list(compiled([images.numpy()]).values())
    for found in answers:
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_exported_and_grafted_it_detects_what_torch_detects(exported, trained):
    image = np.random.default_rng(1).integers(0, 256, (2, 3, 64, 96), np.uint8)
    letterbox = np.array([[128, 192, 64, 96], [300, 333, 58, 64]], np.float32)
    data = graft(exported).SerializeToString()
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    found = session.run(None, {"image": image, "letterbox": letterbox})
    mean, std = torch.tensor(SPEC.mean).view(3, 1, 1), torch.tensor(SPEC.std).view(3, 1, 1)
    trained.eval()
    with torch.no_grad():
        heads = trained((torch.from_numpy(image) / 255 - mean) / std)
    expected = detect(SPEC, heads, letterbox)
    assert (expected[0] > 10).all()
    assert_equal_detections(found, expected)


def test_openvino_keeps_decode_and_nms_in_float32_at_bf16(exported):
    # all candidates: bf16 makes equal logits, and which of them make a cut is OpenVINO's choice
    spec = replace(SPEC, topk_candidates=3000)
    model = graft(exported, spec, keep_heads=True)
    compiled = shared_core().compile_model(
        shared_core().read_model(model.SerializeToString()), "CPU", {"INFERENCE_PRECISION_HINT": "bf16"}
    )
    image = np.random.default_rng(1).integers(0, 256, (2, 3, 64, 96), np.uint8)
    letterbox = np.array([[128, 192, 64, 96], [300, 333, 58, 64]], np.float32)
    found = list(compiled({"image": image, "letterbox": letterbox}).values())
    heads = Heads(found[4::2], found[5::2], letterbox)
    assert_equal_detections(found[:4], reference_detections(spec, heads))


def test_the_model_is_left_as_it_was(tmp_path):
    model = Small().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    export_heads(model, SMALL, tmp_path / "heads.onnx")
    assert model.training
    assert all((before[name] == value).all() for name, value in model.state_dict().items())


def test_the_same_model_gives_the_same_bytes_without_a_word(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(torch.onnx, "export", torch.onnx.export.__wrapped__)  # each time anew
    model = Small()
    first, second = tmp_path / "first.onnx", tmp_path / "second.onnx"
    export_heads(model, SMALL, first)
    export_heads(model, SMALL, second)
    assert first.read_bytes() == second.read_bytes()
    assert b".py" not in first.read_bytes()  # no stack traces
    assert capfd.readouterr() == ("", "")


def test_a_failure_leaves_the_old_file_alone(tmp_path):
    path = tmp_path / "heads.onnx"
    path.write_bytes(b"old")
    with pytest.raises(torch.onnx.errors.OnnxExporterError):
        export_heads(Broken(), SMALL, path)
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1
    export_heads(Small(), SMALL, path)
    assert read_spec(onnx.load(path)) == SMALL and len(list(tmp_path.iterdir())) == 1
