import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from retinaserve.training.data.dataset import CocoDataset
from retinaserve.training.errors import UserError

FILL = (124, 116, 104)


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


def test_classes_follow_the_ids_and_pictures_the_file(tmp_path: Path) -> None:
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


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        pytest.param(lambda _: "", "not JSON", id="empty file"),
        pytest.param(lambda _: "{'a': 1}", "not JSON", id="not json"),
        pytest.param(lambda _: [{"image_id": 1}], "a list, as files of detections are", id="detections"),
        pytest.param(lambda _: {"shapes": []}, "no list of images or annotations or categories", id="labelme"),
        pytest.param(change(categories={}), "no list of categories", id="categories as a dict"),
        pytest.param(change(categories=[]), "there are no categories", id="no categories"),
        pytest.param(change(images=[], annotations=[]), "there are no images", id="no images"),
        pytest.param(change(images__id="a7"), "image has the id 'a7'", id="id is a string"),
        pytest.param(change(images__id=2), "two images have the id 2", id="same image twice"),
        pytest.param(change(images__file_name=None), "image has the file_name None", id="no file name"),
        pytest.param(change(images__file_name="lost.png"), "lost.png: no such image (1 of 2", id="no picture"),
        pytest.param(change(categories__id=3), "two categories have the id 3", id="same category twice"),
        pytest.param(change(categories__name="car"), "two categories are named 'car'", id="same name twice"),
        pytest.param(change(annotations__image_id=5), "annotation 1 is of image 5", id="image not listed"),
        pytest.param(change(annotations__category_id=0), "annotation 1 has category 0", id="class not listed"),
        pytest.param(change(annotations__bbox=[1, 2, 3]), "annotation 1 has the bbox [1, 2, 3]", id="short box"),
        pytest.param(change(annotations__bbox=[0, 0, float("nan"), 1]), "bbox [0, 0, nan, 1]", id="nan in a box"),
        pytest.param(change(annotations__bbox=None), "annotation 1 has the bbox None", id="no box"),
        pytest.param(change(annotations=[3]), "annotation number 0 has the image_id None: 3", id="no objects"),
    ],
)
def test_a_wrong_file_is_explained(tmp_path: Path, spoil: Callable[[dict[str, Any]], Any], message: str) -> None:
    images, path = write(tmp_path, spoil(coco()))
    with pytest.raises(UserError) as caught:
        CocoDataset(images, path)
    assert message in caught.value.message
    assert "annotations.json" in str(caught.value)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.json: no such file"):
        CocoDataset(tmp_path, tmp_path / "none.json")
    with pytest.raises(UserError, match="Is a directory"):
        CocoDataset(tmp_path, tmp_path)
    _, path = write(tmp_path, coco())
    with pytest.raises(UserError, match=r"a\.png: no such image \(2 of 2 are missing\)"):
        CocoDataset(tmp_path / "elsewhere", path)
