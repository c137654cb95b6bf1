import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from retinaserve.scripts.cli.learn.console import announce_labels
from retinaserve.training.data.dataset import CocoDataset, describe_labels
from retinaserve.training.errors import UserError
from retinaserve.training.spec import DetectorSpec
from tests.training.squares import SPEC, draw


def coco() -> dict[str, Any]:
    return {
        "images": [
            {"id": 7, "file_name": "a.png", "width": 40, "height": 20},
            {"id": 2, "file_name": "sub/b.png", "width": 10, "height": 10},
        ],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 90, "bbox": [1, 2, 10, 5], "iscrowd": 0},
            {"id": 2, "image_id": 7, "category_id": 3, "bbox": [0, 0, 40, 20], "iscrowd": 1},
            {"id": 3, "image_id": 7, "category_id": 3, "bbox": [5, 5, 0, 3]},
        ],
        "categories": [{"id": 90, "name": "toothbrush"}, {"id": 3, "name": "car"}],
    }


def write(folder: Path, content: Any) -> tuple[Path, Path]:
    images = folder / "images"
    (images / "sub").mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 20), "red").save(images / "a.png")
    Image.new("L", (10, 10), 9).save(images / "sub" / "b.png")
    path = folder / "annotations.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return images, path


def test_classes_follow_the_ids_and_images_the_file(tmp_path: Path) -> None:
    data = CocoDataset(*write(tmp_path, coco()))
    assert (data.classes, data.category_ids) == (("car", "toothbrush"), (3, 90))
    first, second = data.labels
    assert (first.image_id, second.image_id, len(data), data.box_count) == (7, 2, 2, 1)
    # xywh becomes xyxy; the crowd is kept as one, the flat box is not kept.
    assert first.boxes.tolist() == [[1, 2, 11, 7], [0, 0, 40, 20]]
    assert first.classes.tolist() == [1, 0] and first.crowd.tolist() == [False, True]
    assert second.boxes.shape == (0, 4) and second.path.name == "b.png"


def change(**fields: Any) -> Callable[[dict[str, Any]], Any]:
    def apply(content: dict[str, Any]) -> Any:
        for name, value in fields.items():
            where, _, key = name.partition("__")
            if key:
                content[where][0][key] = value
            else:
                content[where] = value
        return content

    return apply


# What a file's entries may have wrong, tests/training/test_labels.py holds to be refused alike by all verbs.
WRONG = {
    "empty file": (lambda _: "", "not JSON"),
    "not json": (lambda _: "{'a': 1}", "not JSON"),
    "detections": (lambda _: [{"image_id": 1}], "a list, as files of detections are"),
    "labelme": (lambda _: {"shapes": []}, "there are no categories"),
    "categories as a dict": (change(categories={}), "no list of categories"),
    "no categories": (change(categories=[]), "there are no categories"),
    "no images": (change(images=[], annotations=[]), "there are no images"),
    "no image": (change(images__file_name="lost.png"), "lost.png: no such image (1 of 2"),
    "nan in a box": (
        change(annotations__bbox=[0, 0, float("nan"), 1]),
        "[box-malformed]: annotation 1: the bbox [0, 0, nan, 1]",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_file_is_explained(tmp_path: Path, case: str) -> None:
    spoil, message = WRONG[case]
    images, path = write(tmp_path, spoil(coco()))
    with pytest.raises(UserError, match=r"annotations\.json") as caught:
        CocoDataset(images, path)
    assert message in caught.value.message


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.json: no such file"):
        CocoDataset(tmp_path, tmp_path / "none.json")
    with pytest.raises(UserError, match="no label files in this folder"):
        CocoDataset(tmp_path, tmp_path)
    _, path = write(tmp_path, coco())
    with pytest.raises(UserError, match=r"a\.png: no such image \(2 of 2 are missing\)"):
        CocoDataset(tmp_path / "elsewhere", path)


def test_a_set_without_boxes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    statistics = describe_labels(draw(tmp_path / "set", 3, boxes=False), SPEC)
    assert statistics.empty_images == 3 and not len(statistics.sizes) and statistics.covered == 0
    announce_labels(statistics)
    assert capsys.readouterr().err == "labels: dark 0, light 0; 3 images without boxes\n"


def test_sizes_are_the_networks_and_anchors_are_told_to_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = draw(tmp_path / "set", 5)
    sides = [labels.boxes[0, 2] - labels.boxes[0, 0] for labels in data.labels]
    statistics = describe_labels(data, SPEC)
    assert statistics.per_class == {"dark": 3, "light": 2}
    assert statistics.sizes[:, 0].tolist() == sides == statistics.sizes[:, 1].tolist()
    # Squares of 20 px and more: anchors measure 32, 40, 51 px, and half of 32 x 32 is 22.6 x 22.6.
    assert statistics.covered == np.mean([side >= 32 / 2**0.5 for side in sides])
    larger = DetectorSpec.create(["dark", "light"], size=(128, 128), category_ids=[2, 5])
    assert describe_labels(data, larger).sizes[:, 0].tolist() == [2 * side for side in sides]
    tiny = DetectorSpec.create(["dark", "light"], size=(16, 16), category_ids=[2, 5])
    announce_labels(describe_labels(data, tiny))
    assert "0% of them fit an anchor; see --anchor-size and --size" in capsys.readouterr().err
