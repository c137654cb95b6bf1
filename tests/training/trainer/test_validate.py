import json
from pathlib import Path

import pytest
import torch

from retinaserve.training.data.dataset import CocoDataset
from retinaserve.training.errors import UserError
from retinaserve.training.model import build_model
from retinaserve.training.trainer.progress import draw_predictions
from retinaserve.training.trainer.validate import check, predict
from tests.training.squares import SPEC, draw


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> CocoDataset:
    return draw(tmp_path_factory.mktemp("squares") / "set", 8)


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
