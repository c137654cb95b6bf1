import json
import math
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from click.testing import CliRunner, Result
from torch.nn import functional

from retinaserve.build_tools.graph.graft import graft, save
from retinaserve.build_tools.repository.builder import build_repository
from retinaserve.scripts.cli.import_weights import import_weights
from retinaserve.training.checkpoint import Backbone, Checkpoint, load, load_model, read
from retinaserve.training.coco import COCO_NAMES
from retinaserve.training.errors import UserError
from retinaserve.training.export import export_heads
from retinaserve.training.importers import Choices, import_content
from retinaserve.training.importers.parts import Imported, with_eps
from retinaserve.training.importers.tables import odtk_anchors, torchvision_anchors
from retinaserve.training.model import build_model
from retinaserve.training.model.backbones import build_backbone
from retinaserve.training.model.postprocess import detect
from retinaserve.training.spec import Network
from tests import torchvision_layout

UNUSED_IDS = sorted(set(range(91)) - set(COCO_NAMES))
# The published file of 2020, what torchvision writes today, frozen norms trained by someone, and the second model.
LAYOUTS: dict[str, dict[str, Any]] = {
    "v1, published": {"version": 1, "old_names": True},
    "v1, today's names": {"version": 1, "old_names": False},
    "v1, norms that learn": {"version": 1, "old_names": False, "frozen": False},
    "v2": {"version": 2, "old_names": False},
}
SMALL = {"width": 8, "pyramid": 64}
LETTERBOX: dict[str, Any] = {"size": (1024, 1024), "resize_rule": "letterbox"}


def import_torchvision(state: Any, **said: Any) -> Imported:
    result = import_content(state, Choices(**{**LETTERBOX, **said}), source="torchvision")
    assert isinstance(result, Imported)
    return result


def import_odtk(content: Any, **said: Any) -> Imported:
    result = import_content(content, Choices(**{**LETTERBOX, **said}), source="odtk")
    assert isinstance(result, Imported)
    return result


def import_backbone(state: Any) -> Backbone:
    result = import_content(state, Choices(), source="torchvision-backbone")
    assert isinstance(result, Backbone)
    return result


LOGITS = 2e-3  # how far float32 sums in another order may drift apart, which differs by processor
SCORES = LOGITS / 4  # what that makes of a score: the sigmoid is nowhere steeper


def spread(state: dict[str, torch.Tensor], images: torch.Tensor, how: dict[str, Any], eps: float) -> None:
    """Choose the bias of the classes so that a few hundred candidates pass, and none of an unused class."""
    levels = torchvision_layout.forward(state, images, eps=eps, **how)
    for logits, _, _ in levels:
        logits[:, :, UNUSED_IDS] = -1e4
    flat = torch.cat([logits.flatten() for logits, _, _ in levels])
    best = flat.topk(300).values
    scale = 4 / float(best[0] - best[-1])
    bias = math.log(0.05 / 0.95) - scale * float(best[-1])
    state["head.classification_head.cls_logits.weight"] *= scale
    old = state["head.classification_head.cls_logits.bias"]
    old.mul_(scale).add_(bias).view(9, 91)[:, UNUSED_IDS] = -20.0


def case(
    name: str, size: tuple[int, int], **widths: int
) -> tuple[dict[str, torch.Tensor], torch.Tensor, Any, float]:
    layout = LAYOUTS[name]
    how = {"version": layout["version"], "old_names": layout["old_names"]}
    state = torchvision_layout.retinanet(**layout, **widths)
    eps = 0.0 if layout["version"] == 1 and layout.get("frozen", True) else 1e-5
    noise = torch.randn(1, 3, size[0] // 16, size[1] // 16, generator=torch.Generator().manual_seed(1))
    images = functional.interpolate(noise, size=size, mode="bilinear")
    torchvision_layout.settle(state, "backbone.body.", images)
    spread(state, images, how, eps)
    return state, images, how, eps


@torch.no_grad()
def assert_same(state: dict[str, torch.Tensor], images: torch.Tensor, how: Any, eps: float) -> Imported:
    """Hold the imported detector to torchvision's: raw heads level by level, and detections above 0.1."""
    size = (images.shape[2], images.shape[3])
    expected = torchvision_layout.forward(state, images, eps=eps, **how)
    boxes, scores, labels, counts = torchvision_layout.detections(expected, size)
    assert max(counts) < 1000 and len(scores) < 300  # no limit decides
    detector = import_torchvision(state, size=size)
    model = build_model(detector.spec).eval()
    model.load_state_dict(detector.weights)
    heads = model(images)
    for (logits, deltas), (their_logits, their_deltas, (h, w)) in zip(heads, expected, strict=True):
        # (1, HWA, K) -> (1, A*C, h, w)
        theirs = (
            their_logits[:, :, list(COCO_NAMES)].view(1, h, w, 9, 80).permute(0, 3, 4, 1, 2).reshape(1, -1, h, w)
        )
        torch.testing.assert_close(logits, theirs, rtol=1e-3, atol=LOGITS)
        theirs = their_deltas.view(1, h, w, 9, 4).permute(0, 3, 4, 1, 2).reshape(1, -1, h, w)
        torch.testing.assert_close(deltas, theirs, rtol=1e-3, atol=1e-3)

    (count,), found_boxes, found_scores, found_classes = (
        torch.from_numpy(part[0]) for part in detect(detector.spec, heads, np.array([[*size, *size]], np.float32))
    )
    ids = torch.tensor(detector.spec.category_ids)[found_classes.long()][:count]
    wanted = (scores > 0.1).nonzero()[:, 0].tolist()
    assert len(wanted) > 20
    for index in wanted:
        same = (ids == labels[index]).nonzero()[:, 0]
        fits = torchvision_layout.overlap(boxes[index][None], found_boxes[same])[0] > 0.99
        fits &= (found_scores[same] - scores[index]).abs() < SCORES
        assert fits.any(), (index, scores[index], labels[index])
    assert int((found_scores[:count] > 0.1 + SCORES).sum()) <= len(wanted)
    return detector


@pytest.mark.parametrize("name", LAYOUTS)
def test_it_detects_what_torchvision_detects(name: str) -> None:
    detector = assert_same(*case(name, (256, 384), **SMALL))
    network = detector.spec.network
    assert (network.backbone, network.width, network.fpn_channels, network.head_depth) == ("resnet50", 8, 64, 4)
    assert network.p6_from == ("c5" if name == "v2" else "p5")
    assert (network.norm, network.pyramid_norm) == (("group", False) if name == "v2" else ("none", True))
    assert detector.spec.max_detections == 300


@pytest.mark.parametrize("name", ["v1, published", "v2"])
def test_so_does_the_full_size(name: str) -> None:
    detector = assert_same(*case(name, (128, 128)))
    assert (detector.spec.network.width, detector.spec.network.fpn_channels) == (64, 256)
    # torchvision's published number of parameters, less the frozen norms' and unused classes' as they count.
    published = {"v1, published": 34_014_999, "v2": 38_198_935}[name]
    model = build_model(detector.spec)
    norms = 2 * 26_560 if name == "v1, published" else 0  # buffers in torchvision
    dropped = 9 * 11 * (9 * 256 + 1)
    assert sum(each.numel() for each in model.parameters()) - norms + dropped == published


def test_another_epsilon_goes_into_the_scale() -> None:
    # scale / sqrt(1e-5 + 0) = 2 * scale' / sqrt(1e-5 + 1e-5), by hand: scale' is sqrt(2) times as large
    state = {"bn1.weight": torch.tensor([3.0]), "bn1.running_var": torch.tensor([1e-5])}
    assert with_eps(state, 0.0)["bn1.weight"].item() == pytest.approx(3 * math.sqrt(2))
    assert with_eps(state, 1e-5)["bn1.weight"].item() == 3 and state["bn1.weight"].item() == 3


def test_coco_names() -> None:
    assert len(COCO_NAMES) == 80 and (COCO_NAMES[1], COCO_NAMES[44], COCO_NAMES[90]) == (
        "person",
        "bottle",
        "toothbrush",
    )
    assert UNUSED_IDS == [0, 12, 26, 29, 30, 45, 66, 68, 69, 71, 83]


def test_torchvision_anchors_by_hand() -> None:
    # 32 / sqrt(0.5) = 45.25 wide and 22.63 high; halves rounded. int(32 * 2^(1/3)) = 40.
    table = torchvision_anchors()
    assert table[0, [0, 3, 4]].tolist() == [[-23, -11, 23, 11], [-16, -16, 16, 16], [-20, -20, 20, 20]]
    assert table[4, 3].tolist() == [-256, -256, 256, 256]


@pytest.mark.parametrize(
    ("convention", "golden"),
    [
        # Inclusive corners at stride 8 and scale 4, ratios 1, 2 and 1/2, as the predecessor's code gives them.
        ("current", [[-12, -12, 20, 20], [-7.31, -18.63, 15.31, 26.63], [-18.63, -7.31, 26.63, 15.31]]),
        ("legacy", [[-12, -12, 19, 19], [-8, -20, 15, 27], [-18, -8, 25, 15]]),
    ],
)
def test_predecessors_anchors(convention: str, golden: list[list[float]]) -> None:
    table = odtk_anchors(convention, ratios=(1, 2, 0.5), scales=(4, 4 * 2 ** (1 / 3), 4 * 2 ** (2 / 3)))
    assert table.shape == (5, 9, 4)
    expected = np.array(golden) + np.array((0, 0, 1, 1))  # half-open
    np.testing.assert_allclose(table[0, :3], expected, atol=0.01)


def odtk_checkpoint(**changes: Any) -> dict[str, Any]:
    """Write a checkpoint as odtk's Model.save does, with a narrow ResNet18."""
    layout = torchvision_layout.Layout()
    prefix = "backbones.ResNet18FPN."
    torchvision_layout.resnet(layout, f"{prefix}features.", "resnet18", width=16, tracked=False, classifier=True)
    for level, inputs in ((3, 32), (4, 64), (5, 128)):
        layout.conv(f"{prefix}lateral{level}", inputs, 32, 1, bias=True)
        layout.conv(f"{prefix}smooth{level}", 32, 32, 3, bias=True)
    layout.conv(f"{prefix}pyramid6", 128, 32, 3, bias=True)
    layout.conv(f"{prefix}pyramid7", 32, 32, 3, bias=True)
    for head, outputs in (("cls_head", 9 * 3), ("box_head", 9 * 4)):
        for number in (0, 2, 4, 6):
            layout.conv(f"{head}.{number}", 32, 32, 3, bias=True)
        layout.conv(f"{head}.8", 32, outputs, 3, bias=True, gain=0.1)
    content = {
        "backbone": ["ResNet18FPN"],
        "classes": 3,
        "state_dict": layout.state,
        "ratios": [1.0, 2.0, 0.5],
        "scales": [4 * 2 ** (i / 3) for i in range(3)],
        "iteration": 90000,
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.01}]},
        "scheduler": {"last_epoch": 90000},
    }
    return {**content, **changes}


@pytest.mark.parametrize("convention", ["current", "legacy"])
def test_predecessors_boxes_are_its_own(convention: str) -> None:
    """Decode one anchor with the predecessor's arithmetic: widths with + 1, the last pixel inside."""
    detector = import_odtk(odtk_checkpoint(), size=(128, 128), convention=convention)
    spec = detector.spec
    assert spec.classes == ("class 1", "class 2", "class 3") and spec.network.width == 16
    level, anchor, x, y, deltas = 1, 4, 3, 2, (0.25, -0.5, 0.4, -0.3)
    heads = []
    for index in range(5):
        h, w = spec.feature_size(index)
        logits, boxes = torch.full((1, 27, h, w), -20.0), torch.zeros(1, 36, h, w)
        if index == level:
            logits[0, anchor * 3 + 2, y, x] = 2
            boxes[0, anchor * 4 : anchor * 4 + 4, y, x] = torch.tensor(deltas)
        heads.append((logits, boxes))
    (count,), (box,), _, (label,) = (part[0, :1] for part in detect(spec, heads, np.full((1, 4), 128, np.float32)))

    stride, scale, ratio = 16, 4 * 2 ** (1 / 3), 2.0  # anchor 4: the second scale, the second ratio
    w = math.sqrt(stride**2 / ratio)
    w = round(w) if convention == "legacy" else w
    h = round(w * ratio) if convention == "legacy" else w * ratio
    rest = 1 if convention == "legacy" else 0
    x1, x2 = ((stride - w * scale) / 2 + x * stride, (stride + w * scale) / 2 - rest + x * stride)
    y1, y2 = ((stride - h * scale) / 2 + y * stride, (stride + h * scale) / 2 - rest + y * stride)
    wide, high = x2 - x1 + 1, y2 - y1 + 1
    centre_x, centre_y = deltas[0] * wide + x1 + 0.5 * wide, deltas[1] * high + y1 + 0.5 * high
    wide, high = math.exp(deltas[2]) * wide, math.exp(deltas[3]) * high
    inclusive = [centre_x - wide / 2, centre_y - high / 2, centre_x + wide / 2 - 1, centre_y + high / 2 - 1]
    inclusive = [min(max(value, 0), 127) for value in inclusive]
    assert count == 1 and label == 2
    assert box.tolist() == pytest.approx(
        [inclusive[0], inclusive[1], inclusive[2] + 1, inclusive[3] + 1], abs=1e-3
    )


def test_predecessors_network_is_ours() -> None:
    content = odtk_checkpoint()
    detector = import_odtk(content, size=(64, 64))
    state, weights = content["state_dict"], detector.weights
    prefix = "backbones.ResNet18FPN."
    for ours, theirs in {
        "backbone.layer4.1.conv2.weight": f"{prefix}features.layer4.1.conv2.weight",
        "fpn.laterals.0.weight": f"{prefix}lateral3.weight",
        "fpn.smooth.2.bias": f"{prefix}smooth5.bias",
        "fpn.p6.weight": f"{prefix}pyramid6.weight",
        "fpn.p7.bias": f"{prefix}pyramid7.bias",
        "cls_head.convs.3.weight": "cls_head.6.weight",
        "box_head.output.bias": "box_head.8.bias",
    }.items():
        assert torch.equal(weights[ours], state[theirs]), ours
    assert detector.spec.network.p6_from == "c5" and not any("fc." in name for name in weights)


@pytest.mark.parametrize(
    ("name", "width", "extra"),
    [
        ("resnet18", 64, {}),
        ("resnet50", 16, {}),
        ("resnext50_32x4d", 64, {"groups": 32, "group_width": 4}),
    ],
)
def test_backbones_are_recognised(name: str, width: int, extra: dict[str, int]) -> None:
    layout = torchvision_layout.Layout()
    depth = "resnet18" if name == "resnet18" else "resnet50"
    torchvision_layout.resnet(layout, "", depth, width=width, classifier=True, **extra)
    backbone = import_backbone({f"module.{key}": value for key, value in layout.state.items()})
    assert (backbone.name, backbone.width) == (name, width)
    assert set(layout.state) - set(backbone.weights) == {"fc.weight", "fc.bias"}


def test_an_imported_detector_is_built_like_any_other(tmp_path: Path) -> None:
    state, *_ = case("v2", (64, 64), **SMALL)
    torch.save({"model": state, "args": Namespace(lr=0.01)}, tmp_path / "weights.pth")
    result = run(tmp_path / "weights.pth", tmp_path / "model.pth", "--from", "torchvision", "--size", "64", "96")
    assert result.exit_code == 0 and "80 classes at 64 to 96 (torchvision)" in result.stdout
    spec, model = load_model(tmp_path / "model.pth")
    export_heads(model, spec, tmp_path / "heads.onnx")
    save(graft(tmp_path / "heads.onnx"), tmp_path / "model.onnx")
    built = build_repository(tmp_path / "model.onnx", tmp_path / "repository")
    assert (built.repository / "detector" / "config.pbtxt").is_file()
    image = np.random.default_rng(0).integers(0, 256, (1, 3, 64, 96), np.uint8)
    letterbox = np.array([[128, 150, 64, 75]], np.float32)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    found = session.run(None, {"image": image.astype(spec.pixels), "letterbox": letterbox})
    mean, std = torch.tensor(spec.mean).view(3, 1, 1), torch.tensor(spec.std).view(3, 1, 1)
    with torch.no_grad():
        heads = model((torch.from_numpy(image) / 255 - mean) / std)
    expected = detect(spec, heads, letterbox)
    # Fifty layers and the scaled class output: the last bits differ, so the order of near ties may.
    count, total = int(found[0][0, 0]), int(expected[0][0, 0])
    assert total > 20 and abs(count - total) <= 2
    boxes, scores, classes = (torch.from_numpy(part[0, :count]) for part in found[1:])
    for box, score, label in zip(*(part[0, :total] for part in expected[1:]), strict=True):
        overlap = torchvision_layout.overlap(torch.from_numpy(box)[None], boxes)[0]
        same = (classes == int(label)) & (overlap > 0.99) & ((scores - float(score)).abs() < 1e-4)
        assert score <= 0.1 or same.any()


def run(weights: Path, output: Path, *flags: str) -> Result:
    return CliRunner().invoke(import_weights, [str(weights), str(output), *flags])


def test_a_backbone_becomes_a_file_to_start_from(tmp_path: Path) -> None:
    layout = torchvision_layout.Layout()
    torchvision_layout.resnet(layout, "", "resnet18", width=8, classifier=True)
    torch.save(layout.state, tmp_path / "resnet18.pth")
    result = run(tmp_path / "resnet18.pth", tmp_path / "backbone.pth", "--from", "torchvision-backbone")
    assert result.exit_code == 0 and "resnet18 of width 8" in result.stdout and "--fine-tune" in result.stderr
    backbone = read(tmp_path / "backbone.pth")
    assert isinstance(backbone, Backbone) and torch.equal(
        backbone.weights["conv1.weight"], layout.state["conv1.weight"]
    )
    with pytest.raises(UserError, match="a backbone alone, not a detector"):
        load(tmp_path / "backbone.pth")


@pytest.mark.parametrize(("name", "top"), [("mobilenet_v3_large", 16), ("efficientnet_b0", 8)])
def test_a_classifier_gives_its_backbone(name: str, top: int) -> None:
    torch.manual_seed(0)
    own = build_backbone(Network(name)).state_dict()
    rest = {f"features.{top}.0.weight": torch.rand(8), "classifier.3.bias": torch.rand(4)}
    found = import_backbone(own | rest)
    assert (found.name, found.width, found.weights.keys()) == (name, 64, own.keys())
    # a variance of 1: only MobileNetV3's epsilon, 0.001, changes the scale
    ratio = found.weights["features.0.1.weight"] / own["features.0.1.weight"]
    expected = math.sqrt(1.00001 / 1.001) if name == "mobilenet_v3_large" else 1.0
    assert torch.allclose(ratio, torch.tensor(expected), rtol=0, atol=1e-6)


def test_names_come_from_the_annotation_file(tmp_path: Path) -> None:
    categories = [{"id": 7, "name": "egg"}, {"id": 3, "name": "hen"}, {"id": 5, "name": "fox"}]
    (tmp_path / "train.json").write_text(json.dumps({"categories": categories}))
    torch.save(odtk_checkpoint(), tmp_path / "odtk.pth")
    flags = ["--from", "odtk", "--annotations", str(tmp_path / "train.json"), "--anchors", "legacy"]
    assert run(tmp_path / "odtk.pth", tmp_path / "model.pth", *flags).exit_code == 0
    checkpoint = load(tmp_path / "model.pth")
    assert isinstance(checkpoint, Checkpoint)
    assert (checkpoint.spec.classes, checkpoint.spec.category_ids) == (("egg", "hen", "fox"), (7, 3, 5))


def test_torchvisions_labels_are_the_category_ids() -> None:
    state = torchvision_layout.retinanet(1, classes=5, **SMALL)
    named = import_torchvision(state, size=(64, 64), categories={4: "d", 2: "b"})
    assert (named.spec.classes, named.spec.category_ids) == (("d", "b"), (4, 2))
    bias = state["head.classification_head.cls_logits.bias"].view(9, 5)
    assert torch.equal(named.weights["cls_head.output.bias"].view(9, 2), bias[:, [4, 2]])
    unnamed = import_torchvision(state, size=(64, 64))
    assert unnamed.spec.category_ids == (1, 2, 3, 4)
    with pytest.raises(UserError, match=r"category 5 .*no output"):
        import_torchvision(state, size=(64, 64), categories={5: "e"})


@pytest.mark.parametrize(
    ("content", "source", "message"),
    [
        ({}, "torchvision", "not a RetinaNet of torchvision"),
        ([1, 2], "torchvision", "it holds nothing with names"),
        ({"conv1.weight": torch.zeros(8, 3, 7, 7)}, "torchvision", "not a RetinaNet of torchvision"),
        ({"conv1.weight": torch.zeros(8, 3, 7, 7)}, "torchvision-backbone", "not a ResNet"),
        ({"state_dict": {"a": torch.zeros(1)}}, "odtk", "not a checkpoint of the predecessor"),
        (odtk_checkpoint(angles=[0.0]), "odtk", "rotated boxes"),
        (odtk_checkpoint(backbone=["ResNet18C4"]), "odtk", "ResNet18C4 is not supported"),
        (odtk_checkpoint(classes=4), "odtk", "cls_head.output.weight' measures"),
        (
            odtk_checkpoint(state_dict={"cls_head.x": torch.zeros(1)}),
            "odtk",
            "not a checkpoint of the predecessor",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_files_are_answered_in_a_line(tmp_path: Path, content: Any, source: str, message: str) -> None:
    torch.save(content, tmp_path / "weights.pth")
    error = run(tmp_path / "weights.pth", tmp_path / "model.pth", "--from", source).exception
    assert isinstance(error, UserError), error
    assert "weights.pth: " in error.message and message in error.message and error.code == 3
    assert not (tmp_path / "model.pth").exists()


def test_a_missing_layer_is_named() -> None:
    state = torchvision_layout.retinanet(1, **SMALL)
    del state["backbone.body.layer3.2.bn1.bias"]
    with pytest.raises(UserError, match=r"lack 'backbone\.layer3\.2\.bn1\.bias'"):
        import_torchvision(state, size=(64, 64))
