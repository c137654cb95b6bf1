"""The sensitivity report on a toy detector, of which a few layers are looked at."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from retinaserve.eval.report.report import evaluate_detector
from retinaserve.eval.runtimes.detector import open_detector
from retinaserve.eval.sensitivity import Finding, Sensitivity, noise
from retinaserve.training.checkpoint import Checkpoint, save
from retinaserve.training.coco import Annotations
from retinaserve.training.detections import Detections
from retinaserve.training.spec import DetectorSpec
from tests.cli import invoke
from tests.coco import write_coco
from tests.images import checker, encode
from tests.toys import toy_model, toy_spec


def test_noise_is_error_over_variance() -> None:
    """By hand: classes 0 and 4 have the variance 4, an error of 1 in one of them is a mean square of a half."""
    expected = [[np.array([0, 4], np.float32), np.array([5, 5], np.float32)]]
    found = [[np.array([0, 5], np.float32), np.array([5, 6], np.float32)]]
    assert noise(found, expected, 0) == pytest.approx(0.5 / 4)
    assert noise(found, expected, 1) == 0  # boxes that do not vary have no noise to compare


def test_the_table_has_points_of_ap() -> None:
    report = Sensitivity(3, 0.5, (Finding("a.conv", 0.02, 0.01, 0.495),), (Finding("none", 0.1, 0.2, 0.48),))
    lines = report.table().splitlines()
    assert lines[1].split() == ["a.conv", "2.000%", "1.000%", "-0.50"]
    assert lines[4].split() == ["none", "10.000%", "20.000%", "-2.00"]


def write_truth(path: Path, found: list[Detections], spec: DetectorSpec) -> None:
    """Write detections that are wide enough for a box as a COCO annotation file."""
    boxes = [
        (image_id, spec.category_ids[label], [x1, y1, x2 - x1, y2 - y1])
        for image_id, one in enumerate(found)
        for (x1, y1, x2, y2), label in zip(one.boxes.tolist(), one.classes.tolist(), strict=True)
        if min(x2 - x1, y2 - y1) >= 4
    ]
    assert boxes
    names = {number: f"{number}.jpg" for number in range(len(found))}
    write_coco(path, names, boxes, dict(zip(spec.category_ids, spec.classes, strict=True)))


def test_the_culprit_is_found(tmp_path: Path) -> None:
    """A channel a thousand times larger than the others takes all steps of its tensor: its reader comes first."""
    import torch

    spec = toy_spec()
    model = toy_model(spec)
    with torch.no_grad():
        block = model.backbone.layer1[0]
        block.bn1.weight[0] = 1000.0  # what comes out of conv1, and so goes into conv2
        block.conv2.weight[:, 0] = 0.0  # and is of no use there
    save(tmp_path / "model.pth", Checkpoint(spec, model.state_dict()))
    for number in range(3):
        (tmp_path / f"{number}.jpg").write_bytes(encode(checker(300, 200, seed=number)))
    # Some of what torch finds is the truth, so that answers that got mixed up would score nothing.
    detector = open_detector(tmp_path / "model.pth")
    found = detector.predict([path.read_bytes() for path in sorted(tmp_path.glob("*.jpg"))])
    write_truth(tmp_path / "truth.json", found, spec)
    arguments = [tmp_path / "model.pth", "--images", tmp_path, "--annotations", tmp_path / "truth.json"]
    arguments += ["--calibration-images", tmp_path, "--calibrator", "minmax", "--left-out", "1"]
    arguments += ["--json", tmp_path / "report.json", "--output", tmp_path / "report.png"]
    for name in ("backbone.layer2", "backbone.layer3", "backbone.layer4", "fpn", "cls_head", "box_head"):
        arguments += ["--exclude", name]
    result = invoke("sensitivity", *arguments)
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "report.json").read_text())
    expected = evaluate_detector(detector, Annotations.load(tmp_path / "truth.json"), tmp_path)
    assert report["float_ap"] == pytest.approx(expected.scores.ap, abs=0.01) and report["float_ap"] > 0.1
    assert report["layers"][0]["name"] == "backbone.layer1.0.conv2"
    assert report["left_out"][0]["class_noise"] > 5 * report["left_out"][1]["class_noise"]
    assert "--exclude backbone.layer1.0.conv2" in result.stderr
    with Image.open(tmp_path / "report.png") as picture:
        assert picture.size[0] > 500
