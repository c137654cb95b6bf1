"""Detections become labels that the project's own readers, which follow the tools' formats, read back."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retinaserve.eval.predictions import coco_results, json_line
from retinaserve.eval.prelabels import Prelabels, csv_text, label_studio
from retinaserve.training.coco import Annotations
from retinaserve.training.detections import Detections
from retinaserve.training.errors import UserError
from tests.images import checker, encode

NAMES, IDS = ("stop sign", "étoile"), (0, 1)
SIZES = {"a.jpg": (97, 61), "more/b c.png": (40, 120)}  # height, width
Row = tuple[str, str, list[float]]


@pytest.fixture
def answers(tmp_path: Path) -> list[tuple[Path, Detections]]:
    """An image with boxes at the border, in its middle and of both classes, and one without any."""
    found = []
    for name, (height, width) in SIZES.items():
        file = tmp_path / "images" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encode(checker(width, height), "PNG" if name.endswith("png") else "JPEG"))
        boxes = [[0, 0, width, height], [10.26, 20.5, 30.13, 33.77]] if name == "a.jpg" else []
        slots = (np.array(boxes, np.float32).reshape(-1, 4), [0.9, 0.4][: len(boxes)], [1, 0][: len(boxes)])
        found.append((file, Detections.from_slots(len(boxes), *slots, size=(height, width))))
    return found


def as_files(style: str) -> Callable[[Any, Path], Path]:
    def write(answers: list[tuple[Path, Detections]], folder: Path) -> Path:
        labels = Prelabels(style, folder / style, [file for file, _ in answers], NAMES)
        for file, found in answers:
            labels.write(file, found)
        return folder / style

    return write


def as_accepted_tasks(answers: list[tuple[Path, Detections]], folder: Path) -> Path:
    """What Label Studio exports when a person has submitted every prediction."""
    tasks = label_studio(answers, NAMES)
    for task in tasks:
        task["annotations"] = [{"result": prediction["result"]} for prediction in task["predictions"]]
    (folder / "tasks.json").write_text(json.dumps(tasks))
    return folder / "tasks.json"


def as_coco(answers: list[tuple[Path, Detections]], folder: Path) -> Path:
    named = [(file.relative_to(folder / "images"), found) for file, found in answers]
    (folder / "coco.json").write_text(json.dumps(coco_results(named, NAMES, IDS)))
    return folder / "coco.json"


WRITERS = {  # and how far a corner may move
    "yolo": (as_files("yolo"), 1e-3),
    "voc": (as_files("voc"), 0.5),
    "labelstudio": (as_accepted_tasks, 1e-3),
    "coco": (as_coco, 0.01),
}


def rows(truth: Annotations) -> list[Row]:
    return [
        (truth.images[box["image_id"]], truth.categories[box["category_id"]], list(box["bbox"]))
        for box in truth.boxes
    ]


@pytest.mark.parametrize("style", WRITERS)
def test_what_is_written_is_read_back(style: str, answers: list[tuple[Path, Detections]], tmp_path: Path) -> None:
    write, tolerance = WRITERS[style]
    truth = Annotations.load(write(answers, tmp_path), tmp_path / "images")
    assert sorted(truth.images.values()) == sorted(SIZES)  # the one without a box too
    expected = [("a.jpg", "étoile", [0, 0, 61, 97]), ("a.jpg", "stop sign", [10.26, 20.5, 19.87, 13.27])]
    found = rows(truth)
    assert [row[:2] for row in found] == [row[:2] for row in expected]
    for (*_, box), (*_, wanted) in zip(found, expected, strict=True):
        assert box == pytest.approx(wanted, abs=2 * tolerance)


def test_csv_and_json_lines_say_the_same(answers: list[tuple[Path, Detections]]) -> None:
    table = list(csv.DictReader(io.StringIO(csv_text(answers, NAMES))))
    lines = [json.loads(json_line(file, found, NAMES)) for file, found in answers]
    expected = [
        {"file": line["file"], "width": line["width"], "class": each["class"], "score": each["score"]}
        | dict(zip(("x1", "y1", "x2", "y2"), each["box"], strict=True))
        for line in lines
        for each in line["detections"]
    ]
    kinds: dict[str, Callable[[str], Any]] = {"file": str, "class": str, "width": int}
    found = [{key: kinds.get(key, float)(row[key]) for key in expected[0]} for row in table]
    assert found == expected and len(found) == 2


def test_no_file_is_written_over(answers: list[tuple[Path, Detections]], tmp_path: Path) -> None:
    folder = as_files("yolo")(answers, tmp_path)
    with pytest.raises(UserError, match=r"a\.txt is there already"):
        Prelabels("yolo", folder, [file for file, _ in answers], NAMES)
    with pytest.raises(UserError, match=r"a\.jpg and .*a\.png would share"):
        Prelabels("voc", tmp_path / "new", [tmp_path / "a.jpg", tmp_path / "a.png"], NAMES)
    assert not (tmp_path / "new").exists()
