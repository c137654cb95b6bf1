"""The one reader of label files.

    truth = Annotations.load(Path("val.json"))      # raises UserError for what no verb may use
    truth.images[7], truth.categories[3], truth.boxes[0]["bbox"]
    labels = read_labels(Path("data.yaml"), images)     # raises for an unreadable file only
    labels.findings                                 # what was put right, and what is refused

The rules are in check/entries.py. Keypoints and licences are not looked at; segmentations are where a box is
missing.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np

from retinaserve.training.check.entries import Box, drop_copies, read_boxes, read_categories, read_images
from retinaserve.training.check.findings import Finding, refuse_errors
from retinaserve.training.detections import Detections
from retinaserve.training.errors import UserError
from retinaserve.training.formats import KNOWN, read_format, read_json
from retinaserve.training.images.letterbox import upright_size

LISTS = ("images", "annotations", "categories")
OTHERS = (".xml", ".csv", ".yaml", ".yml", ".zip", ".txt")

# The 80 categories of COCO's instances_val2017.json by their ids, which count to 90 and leave gaps.
_NAMES = """
1 person, 2 bicycle, 3 car, 4 motorcycle, 5 airplane, 6 bus, 7 train, 8 truck, 9 boat, 10 traffic light,
11 fire hydrant, 13 stop sign, 14 parking meter, 15 bench, 16 bird, 17 cat, 18 dog, 19 horse, 20 sheep, 21 cow,
22 elephant, 23 bear, 24 zebra, 25 giraffe, 27 backpack, 28 umbrella, 31 handbag, 32 tie, 33 suitcase,
34 frisbee, 35 skis, 36 snowboard, 37 sports ball, 38 kite, 39 baseball bat, 40 baseball glove, 41 skateboard,
42 surfboard, 43 tennis racket, 44 bottle, 46 wine glass, 47 cup, 48 fork, 49 knife, 50 spoon, 51 bowl,
52 banana, 53 apple, 54 sandwich, 55 orange, 56 broccoli, 57 carrot, 58 hot dog, 59 pizza, 60 donut, 61 cake,
62 chair, 63 couch, 64 potted plant, 65 bed, 67 dining table, 70 toilet, 72 tv, 73 laptop, 74 mouse, 75 remote,
76 keyboard, 77 cell phone, 78 microwave, 79 oven, 80 toaster, 81 sink, 82 refrigerator, 84 book, 85 clock,
86 vase, 87 scissors, 88 teddy bear, 89 hair drier, 90 toothbrush
"""
_PAIRS = (entry.split(maxsplit=1) for entry in _NAMES.replace("\n", " ").split(","))
COCO_NAMES: Mapping[int, str] = {int(number): name.strip() for number, name in _PAIRS}


class Unreadable(UserError):
    """The file can't be read, or is of no known format; `problem` says why without naming it."""

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(f"{path}: {problem} [file-unreadable]", f"known are {KNOWN}")
        self.problem = problem


@dataclass(frozen=True)
class Annotations:
    """The images, the categories and the boxes somebody drew: what a detector learns from or is scored against."""

    path: Path
    images: Mapping[int, str]  # id: file name
    categories: Mapping[int, str]  # id: name, in the file's order
    boxes: tuple[Box, ...]
    sha256: str = ""  # of the file
    sizes: Mapping[int, tuple[int, int]] = field(default_factory=dict)  # id: w, h, where the file has them
    findings: tuple[Finding, ...] = ()

    @classmethod
    def load(cls, path: Path, images: Path | None = None, *, split: str = "train") -> Self:
        """Read labels. Raises UserError naming the file and the first thing in it that no verb may use."""
        labels = read_labels(path, images, split=split)
        refuse_errors(labels.findings, path)
        return cls(**vars(labels))

    def boxes_of(self, image_id: int) -> Detections:
        """Return the boxes drawn in an image as detections of score 1; classes are category ids."""
        mine = [box for box in self.boxes if box["image_id"] == image_id and not box["iscrowd"]]
        corners = np.array([box["bbox"] for box in mine], np.float32).reshape(-1, 4)
        corners[:, 2:] += corners[:, :2]  # xywh -> xyxy
        ids = [box["category_id"] for box in mine]
        return Detections(corners, np.ones(len(mine), np.float32), np.array(ids, np.int32))


def read_labels(
    path: Path, images: Path | None = None, *, split: str = "train", lists: Sequence[str] = LISTS
) -> Annotations:
    """Read a COCO file, which must have `lists`, or another tool's labels. Raises UserError for what is neither.

    Other formats need the folder of the images; of a YOLO data.yaml with several splits in that folder `split` is
    read. What is usable is in the result, also where some of the findings are errors.
    """
    if path.is_dir() or path.suffix.lower() in OTHERS:
        content: Any
        content, finds = read_format(path, images, split)
        sha256 = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    else:
        found, sha256 = _read_json(path)
        content, finds = read_json(path, found, images)
    if isinstance(content, list):
        raise Unreadable(path, "a list, as files of detections are")
    missing = [key for key in lists if not isinstance(content, dict) or not isinstance(content.get(key), list)]
    if missing:
        raise Unreadable(path, f"no list of {' or '.join(missing)}")
    empty = [key for key in lists if key != "annotations" and not content[key]]
    if empty and not finds.errors:
        raise Unreadable(path, f"there are no {' and no '.join(empty)}")
    entries = {key: content.pop(key) if key in lists else [] for key in LISTS}
    if "annotations" not in lists:  # ids are for annotations to refer to
        entries["images"] = [
            {**entry, "id": number} if isinstance(entry, Mapping) else entry
            for number, entry in enumerate(entries["images"])
        ]
    names, sizes = read_images(entries["images"], finds)
    categories = read_categories(entries["categories"], finds)
    boxes = read_boxes(entries["annotations"], names, categories, finds)
    names, categories = ({number: name for number, name in each.items() if name} for each in (names, categories))
    boxes = drop_copies(names, boxes, finds)
    return Annotations(path, names, categories, tuple(boxes), sha256, sizes, tuple(finds.findings()))


def read_results(path: Path, category_ids: Sequence[int]) -> dict[int, Detections]:
    """Return the detections of COCO results by image id; classes are places in `category_ids`.

    https://cocodataset.org/#format-results. Raises UserError for what is no such file, or of other categories.
    """
    content, _ = _read_json(path)
    places = {category: place for place, category in enumerate(category_ids)}
    rows: dict[int, list[Any]] = {}
    try:
        for row in content:
            x, y, w, h, score = map(float, (*row["bbox"], row["score"]))
            rows.setdefault(int(row["image_id"]), []).append((x, y, x + w, y + h, score, row["category_id"]))
        found = {category for each in rows.values() for *_, category in each}
    except (TypeError, ValueError, KeyError):
        expected = "a list of objects with image_id, category_id, bbox (x, y, w, h) and score is expected"
        raise UserError(f"{path}: no COCO results", expected) from None
    if strange := found - places.keys():
        hint = f"it has {', '.join(map(str, category_ids[:10]))}{' ...' * (len(places) > 10)}"
        raise UserError(f"{path}: the detector has no category {min(strange, key=str)}", hint)
    detections = {}
    for image, each in rows.items():
        each.sort(key=lambda row: -row[4])
        *sides, scores, categories = zip(*each, strict=True)
        classes = np.array([places[category] for category in categories], np.int32)
        detections[image] = Detections(np.array(sides, np.float32).T, np.array(scores, np.float32), classes)
    return detections


def coco_of(labels: Annotations, images: Path | None = None) -> dict[str, Any]:
    """Return labels as COCO's lists, with the sizes of image files where the labels have none."""
    entries = []
    for number, name in labels.images.items():
        size = labels.sizes.get(number)
        if size is None and images is not None and (images / name).is_file():
            height, width = upright_size(images / name)
            size = width, height
        entries.append(
            {"id": number, "file_name": name} | (dict(zip(("width", "height"), size, strict=True)) if size else {})
        )
    return {
        "images": entries,
        "annotations": [{key: value for key, value in box.items() if key != "entry"} for box in labels.boxes],
        "categories": [{"id": number, "name": name} for number, name in labels.categories.items()],
    }


def _read_json(path: Path) -> tuple[Any, str]:
    """Return what a file holds, and its SHA-256."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise Unreadable(path, "no such file") from None
    except OSError as error:
        raise Unreadable(path, str(error.strerror or "it can't be read")) from None
    sha256 = hashlib.sha256(content).hexdigest()
    try:
        return json.loads(content), sha256
    except json.JSONDecodeError as error:
        raise Unreadable(path, f"not JSON at line {error.lineno}, column {error.colno}") from None
    except UnicodeDecodeError as error:
        raise Unreadable(path, f"not JSON: byte {error.start} is no text") from None
    except (ValueError, RecursionError):
        raise Unreadable(path, "not JSON that a program could have written") from None
