"""From a COCO file to each format and back: what comes back, and what is lost."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import numpy as np
import pytest
from PIL import Image

from retinaserve.eval.prelabels import Prelabels, label_studio
from retinaserve.training.coco import Annotations, coco_of, read_labels
from retinaserve.training.detections import Detections

NAMES = {3: "traffic light", 5: "Ampel & <Schild>", 9: "猫"}
Boxes = dict[str, list[tuple[str, tuple[float, float, float, float], int]]]
Writer = Callable[[Annotations, Path, Path], Path]


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Annotations:
    """Five images of 80 boxes, the last without one, and ids with gaps."""
    folder, rng = tmp_path_factory.mktemp("coco"), random.Random(0)
    images, annotations = [], []
    for number in range(5):
        size = rng.randint(100, 900), rng.randint(100, 900)
        name = f"{'sub/' if number % 2 else ''}image {number}.{'png' if number else 'jpg'}"
        (folder / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size).save(folder / "images" / name)
        images.append({"id": 10 * number + 7, "file_name": name, "width": size[0], "height": size[1]})
        for _ in range(20 if number < 4 else 0):
            x, y = rng.uniform(0, size[0] - 20), rng.uniform(0, size[1] - 20)
            box = [x, y, rng.uniform(5, size[0] - x), rng.uniform(5, size[1] - y)]
            entry = {"image_id": images[-1]["id"], "category_id": rng.choice(list(NAMES)), "bbox": box}
            annotations.append(entry | {"iscrowd": int(rng.random() < 0.1), "area": box[2] * box[3] / 2})
    categories = [{"id": number, "name": name} for number, name in NAMES.items()]
    path = folder / "coco.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return Annotations.load(path)


def boxes_of(labels: Annotations) -> Boxes:
    found: Boxes = {name: [] for name in labels.images.values()}
    for box in labels.boxes:
        x, y, w, h = box["bbox"]
        found[labels.images[box["image_id"]]].append(
            (labels.categories[box["category_id"]], (x, y, w, h), box["iscrowd"])
        )
    return found


def by_image(labels: Annotations) -> Any:
    for number, name in labels.images.items():
        mine = [box for box in labels.boxes if box["image_id"] == number]
        yield name, labels.sizes[number], [(NAMES[b["category_id"]], *b["bbox"], b["iscrowd"]) for b in mine]


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


def cvat(labels: Annotations, images: Path, out: Path) -> Path:
    parts = []
    for name, (width, height), drawn in by_image(labels):
        shapes = "".join(
            f'<box label={quoteattr(c)} xtl="{x:.2f}" ytl="{y:.2f}" xbr="{x + w:.2f}" ybr="{y + h:.2f}"/>'
            for c, x, y, w, h, _ in drawn
        )
        parts.append(f'<image name="{name}" width="{width}" height="{height}">{shapes}</image>')
    return dump(out / "cvat.xml", f"<annotations>{''.join(parts)}</annotations>")


def labelme(labels: Annotations, images: Path, out: Path) -> Path:
    for name, (width, height), drawn in by_image(labels):
        shapes = [
            {"label": c, "points": [[x, y], [x + w, y + h]], "group_id": None, "shape_type": "rectangle"}
            for c, x, y, w, h, _ in drawn
        ]
        content = {"shapes": shapes, "imagePath": name, "imageWidth": width, "imageHeight": height}
        dump(out / "labelme" / f"{name}.json", content)
    return out / "labelme"


def via(labels: Annotations, images: Path, out: Path) -> Path:
    content = {}
    for name, _, drawn in by_image(labels):
        regions = [
            {
                "shape_attributes": {"name": "rect", "x": x, "y": y, "width": w, "height": h},
                "region_attributes": {"class": c},
            }
            for c, x, y, w, h, _ in drawn
        ]
        content[f"{name}1"] = {"filename": name, "size": 1, "regions": regions, "file_attributes": {}}
    return dump(out / "via.json", content)


def createml(labels: Annotations, images: Path, out: Path) -> Path:
    return dump(
        out / "createml.json",
        [
            {
                "image": name,
                "annotations": [
                    {"label": c, "coordinates": {"x": x + w / 2, "y": y + h / 2, "width": w, "height": h}}
                    for c, x, y, w, h, _ in drawn
                ],
            }
            for name, _, drawn in by_image(labels)
        ],
    )


def open_images(labels: Annotations, images: Path, out: Path) -> Path:
    lines = ["ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf"]
    codes = {name: f"/m/{number}" for number, name in NAMES.items()}
    dump(out / "class-descriptions.csv", "".join(f'{code},"{name}"\n' for name, code in codes.items()))
    for name, (width, height), drawn in by_image(labels):
        lines += [
            f"{Path(name).stem},x,{codes[c]},1,{x / width:.6f},{(x + w) / width:.6f},"
            f"{y / height:.6f},{(y + h) / height:.6f},-1,-1,{crowd}"
            for c, x, y, w, h, crowd in drawn
        ]
    return dump(out / "open.csv", "\n".join(lines))


def kitti(labels: Annotations, images: Path, out: Path) -> Path:
    for name, _, drawn in by_image(labels):
        lines = [
            f"{c.replace(' ', '_')} 0.00 0 -10 {x:.2f} {y:.2f} {x + w:.2f} {y + h:.2f} -1 -1 -1 0 0 0 -10"
            for c, x, y, w, h, _ in drawn
        ]
        dump((out / "kitti" / name).with_suffix(".txt"), "\n".join(lines))
    return out / "kitti"


# How to write it; pixels that a side may be off; what does not come back.
FORMATS: dict[str, tuple[Writer, float, set[str]]] = {
    "coco": (lambda labels, images, out: dump(out / "coco.json", coco_of(labels)), 0, set()),
    "yolo": (prelabels("yolo"), 0.013, {"crowds"}),
    "voc": (prelabels("voc"), 1.01, {"crowds"}),
    "label studio": (studio, 0.03, {"crowds"}),
    "cvat": (cvat, 0.011, {"crowds"}),
    "labelme": (labelme, 1e-9, {"crowds"}),
    "via": (via, 0, {"crowds"}),
    "createml": (createml, 1e-9, {"crowds"}),
    "open images": (open_images, 2e-3, {"empty images"}),
    "kitti": (kitti, 0.011, {"crowds", "spaces"}),
}


@pytest.mark.parametrize("name", FORMATS)
def test_what_comes_back(coco: Annotations, tmp_path: Path, name: str) -> None:
    write, off, lost = FORMATS[name]
    images = coco.path.parent / "images"
    again = read_labels(write(coco, images, tmp_path), images)
    expected, found = boxes_of(coco), boxes_of(again)
    if "empty images" in lost:
        expected = {image: drawn for image, drawn in expected.items() if drawn}
    if "spaces" in lost:
        expected = {
            image: [(c.replace(" ", "_"), *rest) for c, *rest in drawn] for image, drawn in expected.items()
        }
    assert found.keys() == expected.keys()
    for image, drawn in expected.items():
        assert [each[0] for each in found[image]] == [each[0] for each in drawn]
        pairs = zip(found[image], drawn, strict=True)
        worst = max((abs(a - b) for one, other in pairs for a, b in zip(one[1], other[1], strict=True)), default=0)
        assert worst <= off, image
        crowds = [0 if "crowds" in lost else each[2] for each in drawn]
        assert [each[2] for each in found[image]] == crowds
    assert not [finding for finding in again.findings if finding.severity == "error"]
    assert (again.sizes == coco.sizes) == (name == "coco")  # ids are the file's in COCO alone
