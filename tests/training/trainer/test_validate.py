import json
from pathlib import Path

import numpy as np
import pytest
import torch

from retinaserve.training.coco import Annotations
from retinaserve.training.data.dataset import CocoDataset
from retinaserve.training.detections import Detections
from retinaserve.training.errors import UserError
from retinaserve.training.model import build_model
from retinaserve.training.scores import evaluate
from retinaserve.training.trainer.pictures import draw_predictions
from retinaserve.training.trainer.validate import Found, check, judge, predictions
from tests.training.squares import SPEC, draw


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> CocoDataset:
    return draw(tmp_path_factory.mktemp("squares") / "set", 8)


def guesses(data: CocoDataset, noise: float) -> list[Found]:
    """The annotations moved about, with a guess beside each that is wrong."""
    rng = np.random.default_rng(1)
    found = []
    for index, labels in enumerate(data.labels):
        boxes = np.repeat(labels.boxes, 2, axis=0) + rng.normal(0, noise, (2 * len(labels.boxes), 4))
        scores = np.sort(rng.random(len(boxes)))[::-1]
        classes = np.repeat(labels.classes, 2).astype(np.int32)
        classes[1::2] = 1 - classes[1::2]
        found.append(Found(index, boxes.astype(np.float32), scores.astype(np.float32), classes))
    return found


def test_nothing_found_scores_nothing(data: CocoDataset) -> None:
    empty = np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int32)
    assert judge(data, SPEC, [Found(index, *empty) for index in range(len(data))]).ap == 0
    assert judge(data, SPEC, []).ap == 0


@pytest.mark.parametrize("noise", [0.0, 2.0, 6.0])
def test_scores_are_those_of_eval(data: CocoDataset, tmp_path: Path, noise: float) -> None:
    found = guesses(data, noise)
    content = json.loads((data.labels[0].path.parent / "annotations.json").read_text())
    (tmp_path / "truth.json").write_text(json.dumps(content))
    detections = {
        data.labels[each.index].image_id: Detections(each.boxes, each.scores, each.classes) for each in found
    }
    theirs = evaluate(Annotations.load(tmp_path / "truth.json"), detections, SPEC.category_ids)
    ours = judge(data, SPEC, found)
    assert (ours.ap, ours.ap50, ours.ap75) == pytest.approx((theirs.ap, theirs.ap50, theirs.ap75), abs=1e-6)


def test_the_annotations_themselves_are_perfect(data: CocoDataset) -> None:
    right = [
        Found(each.index, each.boxes[:1], each.scores[:1], each.classes[:1]) for each in guesses(data, noise=0)
    ]
    scores = judge(data, SPEC, right)
    assert (scores.ap, scores.ap50, scores.ap75) == pytest.approx((1, 1, 1))


def test_every_picture_is_looked_at_once(data: CocoDataset) -> None:
    torch.manual_seed(0)
    model = build_model(SPEC).eval()
    found = list(predictions(model, SPEC, data, [5, 0, 3]))
    assert [each.index for each in found] == [5, 0, 3]
    for each in found:
        assert len(each.boxes) == len(each.scores) == len(each.classes) <= SPEC.max_detections
    assert draw_predictions(data, SPEC, found).width > 3 * 360


def test_a_set_that_can_judge_nothing_is_refused(data: CocoDataset, tmp_path: Path) -> None:
    check(data, SPEC)
    with pytest.raises(UserError, match="no boxes to find"):
        check(draw(tmp_path / "set", 2, boxes=False), SPEC)
    content = json.loads((data.labels[0].path.parent / "annotations.json").read_text())
    content["categories"].append({"id": 9, "name": "grey"})
    (tmp_path / "other.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="not trained: grey"):
        check(CocoDataset(data.labels[0].path.parent, tmp_path / "other.json"), SPEC)
