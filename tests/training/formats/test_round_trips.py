"""From a COCO file to each format that is written and back: what comes back, and what is lost."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from retinaserve.eval.predictions import Prelabels, label_studio
from retinaserve.training.coco import Annotations, coco_of, read_labels
from retinaserve.training.detections import Detections
from tests.coco import write_coco

NAMES = {3: "traffic light", 5: "Ampel & <Schild>", 9: "猫"}
Boxes = dict[str, list[tuple[str, tuple[float, float, float, float], int]]]
Writer = Callable[[Annotations, Path, Path], Path]


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Annotations:
    """Five images of 80 boxes, the last without one, and ids with gaps."""
    folder, rng = tmp_path_factory.mktemp("coco"), random.Random(0)
    images, boxes = {}, []
    for number in range(5):
        size = rng.randint(100, 900), rng.randint(100, 900)
        name = f"{'sub/' if number % 2 else ''}image {number}.{'png' if number else 'jpg'}"
        (folder / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size).save(folder / "images" / name)
        images[10 * number + 7] = (name, *size)
        for _ in range(20 if number < 4 else 0):
            x, y = rng.uniform(0, size[0] - 20), rng.uniform(0, size[1] - 20)
            box = [x, y, rng.uniform(5, size[0] - x), rng.uniform(5, size[1] - y)]
            more = {"iscrowd": int(rng.random() < 0.1), "area": box[2] * box[3] / 2}
            boxes.append((10 * number + 7, rng.choice(list(NAMES)), box, more))
    return Annotations.load(write_coco(folder / "coco.json", images, boxes, NAMES))


def boxes_of(labels: Annotations) -> Boxes:
    found: Boxes = {name: [] for name in labels.images.values()}
    for box in labels.boxes:
        x, y, w, h = box["bbox"]
        found[labels.images[box["image_id"]]].append(
            (labels.categories[box["category_id"]], (x, y, w, h), box["iscrowd"])
        )
    return found


def detections(labels: Annotations, number: int) -> Detections:
    mine = [box for box in labels.boxes if box["image_id"] == number]
    boxes = np.array([box["bbox"] for box in mine], np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    classes = np.array([list(NAMES).index(box["category_id"]) for box in mine], np.int32)
    width, height = labels.sizes[number]
    return Detections(boxes, np.ones(len(mine), np.float32), classes, (height, width))


def prelabels(style: str) -> Writer:
    def write(labels: Annotations, images: Path, out: Path) -> Path:
        files = {number: images / name for number, name in labels.images.items()}
        writer = Prelabels(style, out / style, list(files.values()), list(NAMES.values()))
        for number, file in files.items():
            writer.write(file, detections(labels, number))
        return out / style

    return write


def studio(labels: Annotations, images: Path, out: Path) -> Path:
    answers = [(images / name, detections(labels, number)) for number, name in labels.images.items()]
    tasks = label_studio(answers, list(NAMES.values()))
    for task in tasks:  # somebody accepts what was predicted
        task["annotations"] = task.pop("predictions")
    return dump(out / "studio.json", tasks)


def dump(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


# How to write it, and pixels that a side may be off; crowds come back in COCO alone.
FORMATS: dict[str, tuple[Writer, float]] = {
    "coco": (lambda labels, images, out: dump(out / "coco.json", coco_of(labels)), 0),
    "yolo": (prelabels("yolo"), 0.013),
    "voc": (prelabels("voc"), 1.01),
    "label studio": (studio, 0.03),
}


@pytest.mark.parametrize("name", FORMATS)
def test_what_comes_back(coco: Annotations, tmp_path: Path, name: str) -> None:
    write, off = FORMATS[name]
    images = coco.path.parent / "images"
    again = read_labels(write(coco, images, tmp_path), images)
    expected, found = boxes_of(coco), boxes_of(again)
    assert found.keys() == expected.keys()
    for image, drawn in expected.items():
        assert [each[0] for each in found[image]] == [each[0] for each in drawn]
        pairs = zip(found[image], drawn, strict=True)
        worst = max((abs(a - b) for one, other in pairs for a, b in zip(one[1], other[1], strict=True)), default=0)
        assert worst <= off, image
        assert [each[2] for each in found[image]] == [each[2] * (name == "coco") for each in drawn]
    assert not [finding for finding in again.findings if finding.severity == "error"]
    assert (again.sizes == coco.sizes) == (name == "coco")  # ids are the file's in COCO alone
