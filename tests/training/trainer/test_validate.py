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
from retinaserve.training.trainer.plots import draw_predictions
from retinaserve.training.trainer.validate import check, predict, score
from tests.training.squares import SPEC, draw


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> CocoDataset:
    return draw(tmp_path_factory.mktemp("squares") / "set", 8)


def guesses(data: CocoDataset, noise: float) -> dict[int, Detections]:
    """The annotations moved about, with a guess beside each that is wrong."""
    rng = np.random.default_rng(1)
    found = {}
    for labels in data.labels:
        boxes = np.repeat(labels.boxes, 2, axis=0) + rng.normal(0, noise, (2 * len(labels.boxes), 4))
        scores = np.sort(rng.random(len(boxes)))[::-1]
        classes = np.repeat(labels.classes, 2).astype(np.int32)
        classes[1::2] = 1 - classes[1::2]
        found[labels.image_id] = Detections(boxes.astype(np.float32), scores.astype(np.float32), classes)
    return found


def test_nothing_found_scores_nothing(data: CocoDataset) -> None:
    assert score(data, SPEC, {labels.image_id: Detections.none() for labels in data.labels}).ap == 0
    assert score(data, SPEC, {}).ap == 0


@pytest.mark.parametrize("noise", [0.0, 2.0, 6.0])
def test_scores_are_those_of_eval(data: CocoDataset, noise: float) -> None:
    found = guesses(data, noise)
    expected = evaluate(Annotations.load(data.truth.path), found, SPEC.category_ids)
    scores = score(data, SPEC, found)
    assert (scores.ap, scores.ap50, scores.ap75) == (expected.ap, expected.ap50, expected.ap75)


def test_the_annotations_themselves_are_perfect(data: CocoDataset) -> None:
    right = {
        image_id: Detections(each.boxes[:1], each.scores[:1], each.classes[:1])
        for image_id, each in guesses(data, noise=0).items()
    }
    scores = score(data, SPEC, right)
    assert (scores.ap, scores.ap50, scores.ap75) == pytest.approx((1, 1, 1))


def test_every_image_is_looked_at_once(data: CocoDataset) -> None:
    torch.manual_seed(0)
    model = build_model(SPEC).eval()
    found = predict(model, SPEC, data, [5, 0, 3])
    assert list(found) == [data.labels[index].image_id for index in (5, 0, 3)]
    for each in found.values():
        assert len(each.boxes) == len(each.scores) == len(each.classes) <= SPEC.max_detections
    assert 3 * 360 < draw_predictions(data, SPEC, found).width < 4 * 360


def test_a_set_that_can_score_nothing_is_refused(data: CocoDataset, tmp_path: Path) -> None:
    check(data, SPEC)
    with pytest.raises(UserError, match="no boxes to find"):
        check(draw(tmp_path / "set", 2, boxes=False), SPEC)
    content = json.loads((data.labels[0].path.parent / "annotations.json").read_text())
    content["categories"] = [{"id": 2, "name": "grey"}, {"id": 5, "name": "light"}, {"id": 9, "name": "red"}]
    (tmp_path / "other.json").write_text(json.dumps(content))
    check(CocoDataset(data.labels[0].path.parent, tmp_path / "other.json"), SPEC)
    content["categories"][1]["name"] = "white"
    (tmp_path / "other.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"\[split-disjoint\]: grey, white, red"):
        check(CocoDataset(data.labels[0].path.parent, tmp_path / "other.json"), SPEC)
