import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from retinaserve.scripts.cli.learn.import_weights import import_weights
from retinaserve.training.checkpoint import Backbone, Checkpoint, load, read
from retinaserve.training.coco import COCO_NAMES
from retinaserve.training.errors import UserError
from retinaserve.training.importers import Choices, import_content
from retinaserve.training.importers.odtk import odtk_anchors
from retinaserve.training.importers.parts import Imported
from retinaserve.training.model.backbones import build_backbone
from retinaserve.training.spec import Network
from retinaserve.training.trainer.validate import detect
from tests import torchvision_layout

UNUSED_IDS = sorted(set(range(91)) - set(COCO_NAMES))
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


def test_coco_names() -> None:
    assert len(COCO_NAMES) == 80 and (COCO_NAMES[1], COCO_NAMES[44], COCO_NAMES[90]) == (
        "person",
        "bottle",
        "toothbrush",
    )
    assert UNUSED_IDS == [0, 12, 26, 29, 30, 45, 66, 68, 69, 71, 83]


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


def test_predecessors_boxes_may_reach_into_its_padding() -> None:
    content = odtk_checkpoint()
    assert import_odtk(content).spec.clip == "image", "by another's rule"
    specs = [import_content(content, Choices(clip=clip), source="odtk").spec for clip in (None, "image")]
    assert [(each.clip, each.resize) for each in specs] == [("canvas", "odtk"), ("image", "odtk")]
    # 256 x 192 pixels in a canvas of 256 x 256, of an image twice as large
    assert specs[0].ends(np.array([[512, 384, 256, 192]], np.float32)).tolist() == [[512, 512, 256, 256]]


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
    [("resnet18", 64, {}), ("resnet50", 16, {}), ("resnext50_32x4d", 64, {"groups": 32, "group_width": 4})],
)
def test_backbones_are_recognised(name: str, width: int, extra: dict[str, int]) -> None:
    layout = torchvision_layout.Layout()
    depth = "resnet18" if name == "resnet18" else "resnet50"
    torchvision_layout.resnet(layout, "", depth, width=width, classifier=True, **extra)
    backbone = import_backbone({f"module.{key}": value for key, value in layout.state.items()})
    assert (backbone.name, backbone.width) == (name, width)
    assert set(layout.state) - set(backbone.weights) == {"fc.weight", "fc.bias"}


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
