"""Detections as labels: what is not written over, and CSV; tests/training/formats reads the other formats back."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retinaserve.eval.predictions import Prelabels, csv_text, json_line, label_studio
from retinaserve.training.detections import Detections
from retinaserve.training.errors import UserError
from tests.images import checker, encode

NAMES = ("stop sign", "étoile")
SIZES = {"a.jpg": (97, 61), "more/b c.png": (40, 120)}  # height, width


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


def test_labels_end_with_the_image(answers: list[tuple[Path, Detections]], tmp_path: Path) -> None:
    (file, found), names = answers[0], ("a", "b")
    found.boxes[:] = [[-3, 10, 70, 40], [10, 20, 30, 110]]  # of 61 x 97, as an import with --clip canvas answers
    for style in ("yolo", "voc"):
        Prelabels(style, tmp_path / style, [file], names).write(file, found)
    assert (tmp_path / "yolo" / "a.txt").read_text().splitlines() == [
        f"1 0.500000 {25 / 97:.6f} 1.000000 {30 / 97:.6f}",
        f"0 {20 / 61:.6f} {58.5 / 97:.6f} {20 / 61:.6f} {77 / 97:.6f}",
    ]
    assert "<xmax>61</xmax>" in (tmp_path / "voc" / "a.xml").read_text()
    (task,) = label_studio([(file, found)], names)
    shares = [each["value"] for each in task["predictions"][0]["result"]]
    assert shares[0]["width"] == 100 and shares[1]["height"] == pytest.approx(7700 / 97)
    assert json.loads(json_line(file, found, names))["detections"][0]["box"] == [-3, 10, 70, 40]


def test_no_file_is_written_over(answers: list[tuple[Path, Detections]], tmp_path: Path) -> None:
    folder, files = tmp_path / "yolo", [file for file, _ in answers]
    Prelabels("yolo", folder, files, NAMES).write(*answers[0])
    with pytest.raises(UserError, match=r"a\.txt is there already"):
        Prelabels("yolo", folder, files, NAMES)
    with pytest.raises(UserError, match=r"a\.jpg and .*a\.png would share"):
        Prelabels("voc", tmp_path / "new", [tmp_path / "a.jpg", tmp_path / "a.png"], NAMES)
    assert not (tmp_path / "new").exists()
