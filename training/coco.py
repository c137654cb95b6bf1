"""The one reader of COCO annotation files.

    truth = Annotations.load(Path("val.json"))      # raises UserError for the first entry that can't be used
    truth.images[7], truth.categories[3], truth.boxes[0]["bbox"]
    file = read_coco(Path("val.json"))              # every entry as it is, for `retinaserve data check`
    file.images[0].file_name, file.boxes[0].bbox

What counts as usable is decided here alone. In the records of `read_coco` a field that can't be used is None, and
`raw` is the entry as it was found. Segmentations, keypoints and licences are not looked at.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from retinaserve.training.detections import Detections
from retinaserve.training.errors import UserError

Xywh = tuple[float, float, float, float]

LISTS = ("images", "annotations", "categories")

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


class CocoImage(NamedTuple):
    """An entry of `images`."""

    id: int | None
    file_name: str | None
    listed_size: tuple[Any, Any]  # w, h as found, None where the file has none
    raw: Any


class CocoCategory(NamedTuple):
    """An entry of `categories`."""

    id: int | None
    name: str | None
    raw: Any


class CocoBox(NamedTuple):
    """An entry of `annotations`."""

    id: int | None
    image_id: int | None
    category_id: int | None
    bbox: Xywh | None  # four finite numbers: x, y, width, height
    area: float | None  # as the file has it: of the segmentation, for COCO's ranges of areas
    crowd: bool
    raw: Any


class CocoFile(NamedTuple):
    """What an annotation file lists, in its order; `Annotations` is the same without what can't be used."""

    path: Path
    images: tuple[CocoImage, ...]
    boxes: tuple[CocoBox, ...]
    categories: tuple[CocoCategory, ...]
    sha256: str  # of the file


class NotCoco(UserError):
    """The file can't be read, or is none of COCO's; `problem` says why without naming it."""

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(f"{path}: {problem}", f"a COCO JSON file with {', '.join(LISTS)} is expected")
        self.problem = problem


def read_coco(path: Path, *, lists: Sequence[str] = LISTS, convert: bool = False) -> CocoFile:
    """Read a file that must have `lists`. Raises NotCoco.

    With `convert`, numbers and names of another type are taken for what they say: "7" and 7.0 for the id 7.
    """
    try:
        content = path.read_bytes()
        data = json.loads(content)
    except FileNotFoundError:
        raise NotCoco(path, "no such file") from None
    except OSError as error:
        raise NotCoco(path, str(error.strerror or error)) from None
    except ValueError as error:
        raise NotCoco(path, f"not JSON: {error}") from None
    if isinstance(data, list):
        raise NotCoco(path, "a list, as files of detections are")
    missing = [key for key in lists if not isinstance(data, dict) or not isinstance(data.get(key), list)]
    if missing:
        raise NotCoco(path, f"no list of {' or '.join(missing)}")
    images, boxes, categories = (data.get(key) or () for key in LISTS)
    return CocoFile(
        path,
        tuple(_image(entry, convert) for entry in images),
        tuple(_box(entry, convert) for entry in boxes),
        tuple(_category(entry, convert) for entry in categories),
        hashlib.sha256(content).hexdigest(),
    )


@dataclass(frozen=True)
class Annotations:
    """The images, the categories and the boxes somebody drew: what a detector learns from or is scored against."""

    path: Path
    images: Mapping[int, str]  # id: file name
    categories: Mapping[int, str]  # id: name, in the file's order
    boxes: tuple[Mapping[str, Any], ...]  # COCO annotations with bbox, area, iscrowd, ids from 1
    sha256: str = ""  # of the file

    @classmethod
    def load(cls, path: Path, *, strict: bool = False) -> Self:
        """Read a file. Raises UserError naming it and what is missing or wrong in it.

        `strict`, for training, takes no value of another type for what it says, no id or name twice, and no file
        without images or categories.
        """
        file = read_coco(path, convert=not strict)
        images, categories = dict[int, str](), dict[int, str]()
        for image in file.images:
            if image.id is None or image.file_name is None:
                raise _unusable(path, "image", "id" if image.id is None else "file_name", image.raw)
            if strict and image.id in images:
                raise UserError(f"{path}: two images have the id {image.id}")
            images[image.id] = image.file_name
        for category in file.categories:
            if category.id is None or category.name is None:
                raise _unusable(path, "category", "id" if category.id is None else "name", category.raw)
            if strict and category.id in categories:
                raise UserError(f"{path}: two categories have the id {category.id}")
            if strict and category.name in categories.values():
                raise UserError(f"{path}: two categories are named {category.name!r}", "give each its own name")
            categories[category.id] = category.name
        if strict and not categories:
            raise UserError(f"{path}: there are no categories", "a detector needs at least one class")
        if strict and not images:
            raise UserError(f"{path}: there are no images")
        boxes = []
        for place, box in enumerate(file.boxes):
            which = name_of(box, place)
            if box.image_id is None or box.category_id is None or box.bbox is None:
                key = "bbox" if box.category_id is not None else "category_id"
                raise _unusable(path, which, "image_id" if box.image_id is None else key, box.raw)
            if box.image_id not in images:
                raise UserError(f"{path}: {which} is of image {box.image_id}, which is not listed")
            if box.category_id not in categories:
                raise UserError(f"{path}: {which} has category {box.category_id}, which is not listed")
            boxes.append(
                {
                    "id": place + 1,  # anew: COCOeval takes an id of 0 for no match
                    "image_id": box.image_id,
                    "category_id": box.category_id,
                    "bbox": list(box.bbox),
                    "area": box.bbox[2] * box.bbox[3] if box.area is None else box.area,
                    "iscrowd": int(box.crowd),
                }
            )
        return cls(path, images, categories, tuple(boxes), file.sha256)

    def boxes_of(self, image_id: int) -> Detections:
        """Return the boxes drawn in an image as detections of score 1; classes are category ids."""
        mine = [box for box in self.boxes if box["image_id"] == image_id and not box["iscrowd"]]
        corners = np.array([box["bbox"] for box in mine], np.float32).reshape(-1, 4)
        corners[:, 2:] += corners[:, :2]  # xywh -> xyxy
        ids = [box["category_id"] for box in mine]
        return Detections(corners, np.ones(len(mine), np.float32), np.array(ids, np.int32))


def name_of(box: CocoBox, place: int) -> str:
    """Return what an error calls the entry at a place of `annotations`."""
    has_id = isinstance(box.raw, Mapping) and "id" in box.raw
    return f"annotation {box.raw['id']}" if has_id else f"annotation number {place}"


def _unusable(path: Path, which: str, key: str, entry: Any) -> UserError:
    value = entry.get(key) if isinstance(entry, Mapping) else None
    expected = {"bbox": "[x, y, width, height]", "name": "a string", "file_name": "a string"}.get(
        key, "an integer"
    )
    return UserError(
        f"{path}: {which} has the {key} {value!r}: {str(entry)[:80]}",
        f"{expected} is expected; `retinaserve data check` lists everything that is wrong",
    )


def _image(entry: Any, convert: bool) -> CocoImage:
    fields = entry if isinstance(entry, Mapping) else {}
    name = _text(fields.get("file_name"), convert)
    return CocoImage(_integer(fields.get("id"), convert), name, (fields.get("width"), fields.get("height")), entry)


def _category(entry: Any, convert: bool) -> CocoCategory:
    fields = entry if isinstance(entry, Mapping) else {}
    return CocoCategory(_integer(fields.get("id"), convert), _text(fields.get("name"), convert), entry)


def _box(entry: Any, convert: bool) -> CocoBox:
    fields = entry if isinstance(entry, Mapping) else {}
    area = _numbers([fields["area"]], convert) if "area" in fields else None
    bbox = _numbers(fields.get("bbox"), convert)
    crowd = fields.get("iscrowd")
    return CocoBox(
        _integer(fields.get("id"), convert),
        _integer(fields.get("image_id"), convert),
        _integer(fields.get("category_id"), convert),
        (bbox[0], bbox[1], bbox[2], bbox[3]) if bbox and len(bbox) == 4 else None,
        area[0] if area else None,
        bool(_integer(crowd, convert) if convert else crowd),
        entry,
    )


def _integer(value: Any, convert: bool) -> int | None:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    try:
        return int(value) if convert else None
    except (TypeError, ValueError, OverflowError):
        return None


def _text(value: Any, convert: bool) -> str | None:
    if isinstance(value, str):
        return value
    return str(value) if convert and value is not None else None


def _numbers(values: Any, convert: bool) -> list[float] | None:
    """Return finite numbers, None if one is something else."""
    if not isinstance(values, list):
        return None
    if not convert and not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return None
    try:
        numbers = [float(value) for value in values]
    except (TypeError, ValueError, OverflowError):
        return None
    return numbers if all(map(math.isfinite, numbers)) else None
