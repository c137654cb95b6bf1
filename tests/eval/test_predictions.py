import json
from pathlib import Path

import pytest

from retinaserve.eval.predictions import annotated_paths, coco_results, json_line
from retinaserve.training.detections import Detections
from retinaserve.training.errors import UserError

FOUND = Detections.from_slots(2, [[1.004, 2, 11, 22.5], [0, 0, 5, 5]], [0.87654, 0.5], [1, 0], size=(40, 30))
NAMES, IDS = ("cat", "étoile"), (3, 9)


def test_a_line_of_json_is_an_image() -> None:
    line = json_line(Path("a b.jpg"), FOUND, NAMES)
    assert "\n" not in line and "étoile" in line
    assert json.loads(line) == {
        "file": "a b.jpg",
        "width": 30,
        "height": 40,
        "detections": [
            {"class": "étoile", "score": 0.8765, "box": [1.0, 2.0, 11.0, 22.5]},
            {"class": "cat", "score": 0.5, "box": [0.0, 0.0, 5.0, 5.0]},
        ],
    }
    assert json.loads(json_line(Path("x"), Detections.none(), NAMES))["detections"] == []


def test_coco_results_are_a_data_set() -> None:
    data = coco_results([(Path("none.jpg"), Detections.none()), (Path("some.jpg"), FOUND)], NAMES, IDS)
    assert [image["id"] for image in data["images"]] == [1, 2]
    assert data["categories"] == [{"id": 3, "name": "cat"}, {"id": 9, "name": "étoile"}]
    first, second = data["annotations"]
    assert (first["id"], first["image_id"], first["category_id"], first["score"]) == (1, 2, 9, 0.8765)
    assert (first["bbox"], first["area"], second["id"]) == ([1.0, 2.0, 10.0, 20.5], 205.0, 2)


PLACES = {
    "one file": (["in/a.jpg"], ["a.jpg"]),
    "a tree": (["in/a.jpg", "in/x/a.jpg"], ["a.jpg", "x/a.jpg"]),
    "two trees": (["in/x/a.jpg", "in/y/a.jpg"], ["x/a.jpg", "y/a.jpg"]),
    "a name that another becomes": (
        ["in/a.webp", "in/a.webp.jpg", "in/b.bmp", "in/b.bmp.jpg", "in/b.bmp.2.jpg"],
        ["a.webp.2.jpg", "a.webp.jpg", "b.bmp.3.jpg", "b.bmp.jpg", "b.bmp.2.jpg"],
    ),
    "a way round": (["in/x/../a.jpg", "in/x/a.jpg"], ["a.jpg", "x/a.jpg"]),
    "other formats": (["in/a.jpg", "in/a.tiff", "in/a.PNG"], ["a.jpg", "a.tiff.jpg", "a.PNG"]),
}


@pytest.mark.parametrize("case", PLACES)
def test_annotated_images_never_share_a_path(case: str, tmp_path: Path) -> None:
    files, expected = PLACES[case]
    paths = annotated_paths([tmp_path / file for file in files], tmp_path / "out")
    assert [path.relative_to(tmp_path / "out").as_posix() for path in paths] == expected


def test_originals_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    with pytest.raises(UserError, match=r"a\.jpg would be overwritten"):
        annotated_paths([tmp_path / "a.jpg"], tmp_path)
