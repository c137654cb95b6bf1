"""The rules for the entries of an annotation file: what is taken as it is, put right with a finding, or refused.

    finds = Finds()
    images = read_images(content["images"], finds)
    boxes = read_boxes(content["annotations"], images.names, categories, finds)

Every verb gets its labels through these functions. Nothing here looks at image files.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypedDict

from retinaserve.training.check.findings import Finds

LARGEST = 1e7  # pixels; no box reaches further, and squares of it stay exact
BREAKS = re.compile(r"\s*[\x00-\x1f\x7f]+\s*")
FLAGS = {"0": 0, "1": 1, "false": 0, "true": 1, "no": 0, "yes": 1, "": 0}

Xywh = tuple[float, float, float, float]


class Box(TypedDict):
    """A COCO annotation: bbox is x, y, width, height; area is what COCO's ranges of areas go by."""

    id: int  # from 1, in the file's order: COCOeval takes an id of 0 for no match
    image_id: int
    category_id: int
    bbox: list[float]
    area: float
    iscrowd: int
    entry: str  # what a finding calls it


def read_images(entries: Iterable[Any], finds: Finds) -> tuple[dict[int, str], dict[int, tuple[int, int]]]:
    """Return the file names by id, "" where there is none, and the listed sizes (w, h) of those that have one."""
    names, sizes, repeated = dict[int, str](), dict[int, tuple[int, int]](), Counter[int]()
    for entry in entries:
        fields = entry if isinstance(entry, Mapping) else {}
        name = fields.get("file_name")
        if isinstance(name, int) and not isinstance(name, bool):
            name = str(name)
        number = integer(fields.get("id"))
        if number is None or not isinstance(name, str) or not name.strip():
            finds.add("image-entry", "id {!r}, file_name {!r}", fields.get("id"), fields.get("file_name"))
            if number is not None:
                names.setdefault(number, "")
            continue
        _note_text(finds, f"image {number}", fields, ("id", "width", "height"))
        clean = BREAKS.sub("", name).replace("\\", "/")
        if clean != name:
            finds.add("image-name", "{!r}", name)
        if number in names:
            repeated[number] += 1
            continue
        names[number] = clean
        listed = fields.get("width"), fields.get("height")
        width, height = (integer(side) for side in listed)
        if width and height and min(width, height) > 0:
            sizes[number] = width, height
        elif any(side is not None for side in listed):
            finds.add("image-size-unknown", "{}: {!r} x {!r}", clean, *listed)
    for number, count in repeated.items():
        finds.add("image-id-repeated", "id {}: {} times", number, count + 1)
    return names, sizes


def read_categories(entries: Iterable[Any], finds: Finds) -> dict[int, str]:
    """Return the names by id, in the file's order, "" where there is none."""
    categories, ids, names = dict[int, str](), Counter[int](), Counter[str]()
    for entry in entries:
        fields = entry if isinstance(entry, Mapping) else {}
        number, found = integer(fields.get("id")), fields.get("name")
        name = str(found) if isinstance(found, int | float) and not isinstance(found, bool) else found
        clean = BREAKS.sub(" ", name).strip() if isinstance(name, str) else ""
        if number is None or not clean:
            finds.add("category-entry", "id {!r}, name {!r}", fields.get("id"), found)
            if number is not None:
                categories.setdefault(number, "")
            continue
        _note_text(finds, f"category {number}", fields, ("id",))
        if clean != name:
            finds.add("category-name", "{!r}", name)
        elif name is not found:
            finds.add("value-text", "category {}: name {!r}", number, found)
        ids[number] += 1
        names[clean] += 1
        categories.setdefault(number, clean)
    for what, counts in (("id {!r}", ids), ("{!r}", names)):
        for each, count in counts.items():
            if count > 1:
                finds.add("category-repeated", f"{what}: {{}} times", each, count)
    return categories


def read_boxes(
    entries: list[Any], images: Mapping[int, str], categories: Mapping[int, str], finds: Finds
) -> list[Box]:
    """Return the boxes that have an area, their ids from 1. The list of entries is emptied, as it may be large."""
    boxes: list[Box] = []
    ids = Counter[int]()
    entries.reverse()
    for place in range(len(entries)):
        fields = entries.pop()
        if not isinstance(fields, Mapping):
            finds.add("annotation-entry", "number {}: {!r}", place, fields)
            continue
        own = fields.get("id")
        name = f"annotation {own}" if own is not None else f"annotation number {place}"
        number = integer(own)
        if number is not None:
            ids[number] += 1
        image_id, category_id = integer(fields.get("image_id")), integer(fields.get("category_id"))
        if image_id not in images:
            finds.add("annotation-image", "{}: image_id {!r}", name, fields.get("image_id"))
        if category_id not in categories:
            finds.add("annotation-category", "{}: category_id {!r}", name, fields.get("category_id"))
        crowd = flag(fields.get("iscrowd"))
        if crowd is None:
            finds.add("annotation-entry", "{}: iscrowd {!r}", name, fields.get("iscrowd"))
        else:
            _note_text(finds, name, fields, ("image_id", "category_id", "iscrowd", "area"))
        bbox = _rectangle(fields, name, finds)
        if bbox is None or crowd is None or image_id is None or category_id is None:
            continue
        if not (images.get(image_id) and categories.get(category_id)):
            continue
        area = number_of(fields.get("area"))
        boxes.append(
            {
                "id": len(boxes) + 1,
                "image_id": image_id,
                "category_id": category_id,
                "bbox": list(bbox),
                "area": bbox[2] * bbox[3] if area is None else area,
                "iscrowd": crowd,
                "entry": name,
            }
        )
    for number, count in ids.items():
        if count > 1:
            finds.add("annotation-id-repeated", "id {}: {} times", number, count)
    _correct_areas(boxes, finds)
    return boxes


def drop_copies(names: dict[int, str], boxes: list[Box], finds: Finds) -> list[Box]:
    """Take entries of the same file with the same boxes out of `names`; return the boxes of those that stay."""
    ids = defaultdict[str, list[int]](list)
    for number, name in names.items():
        # Without what leads nowhere: ./a.jpg is a.jpg.
        ids["/".join(part for part in name.split("/") if part not in ("", "."))].append(number)
    several = {number: path for path, same in ids.items() if len(same) > 1 for number in same}
    if not several:
        return boxes
    drawn = defaultdict[int, Counter[tuple[Any, ...]]](Counter)
    for box in boxes:
        if box["image_id"] in several:
            drawn[box["image_id"]][box["category_id"], *box["bbox"], box["iscrowd"]] += 1
    copies = set[int]()
    for first, *rest in (ids[path] for path in dict.fromkeys(several.values())):
        split = any(drawn[number] != drawn[first] for number in rest)
        counts = ", ".join(str(drawn[number].total()) for number in (first, *rest[:9]))
        code = "image-file-split" if split else "image-file-repeated"
        finds.add(code, "{}: {} times, with {} boxes", names[first], len(rest) + 1, counts)
        copies.update(rest)
    for number in copies:
        del names[number]
    return [box for box in boxes if box["image_id"] not in copies]


def integer(value: Any) -> int | None:
    """Return a whole number, also one that is written as text or with a fraction of zero."""
    if type(value) is int:
        return value if abs(value) < 2**63 else None
    number = number_of(value)
    return int(number) if number is not None and number.is_integer() and abs(number) < 2**53 else None


def number_of(value: Any) -> float | None:
    """Return a finite number, also one that is written as text."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def numbers_of(values: Iterable[Any]) -> list[float] | None:
    """Return finite numbers, or None where one of them is none."""
    numbers = [number_of(value) for value in values]
    return None if None in numbers else [number for number in numbers if number is not None]


def flag(value: Any) -> int | None:
    """Return 0 or 1: absent, null and empty are 0, and any other number than 0 is 1, as pycocotools has it."""
    if value is None or isinstance(value, bool):
        return int(bool(value))
    if isinstance(value, str) and value.strip().lower() in FLAGS:
        return FLAGS[value.strip().lower()]
    number = number_of(value)
    return None if number is None else int(number != 0)


def _note_text(finds: Finds, name: str, fields: Mapping[str, Any], keys: Sequence[str]) -> None:
    """Tell of the numbers of an entry that are written as text, and of ids that are written as fractions."""
    for key in keys:
        value = fields.get(key)
        if isinstance(value, str) or (isinstance(value, float) and key.endswith("id")):
            finds.add("value-text", "{}: {} {!r}", name, key, value)


def _rectangle(fields: Mapping[str, Any], name: str, finds: Finds) -> Xywh | None:
    """Return an annotation's box with positive sides, or None with a find that says why not."""
    found = fields.get("bbox")
    drawn = _four(found)
    if drawn is None or not (drawn[2] and drawn[3]):
        shape = around(fields.get("segmentation")) if not found or drawn else None
        if shape is not None and shape[2] and shape[3]:
            finds.add("box-derived", "{}: {}", name, [round(value, 2) for value in shape])
            return shape
    if drawn is None:
        finds.add("box-malformed", "{}: the bbox {!r}", name, found)
        return None
    if found and any(isinstance(value, str) for value in found):
        finds.add("value-text", "{}: bbox {!r}", name, found)
    x, y, w, h = drawn
    if w < 0 or h < 0:
        finds.add("box-flipped", "{}: {}", name, list(drawn))
        x, y, w, h = min(x, x + w), min(y, y + h), abs(w), abs(h)
    if not (w and h):
        finds.add("box-degenerate", "{}: {}", name, list(drawn))
        return None
    attributes = fields.get("attributes")  # CVAT and Datumaro put the angle there, and leave the box unrotated
    angle = number_of(attributes.get("rotation")) if isinstance(attributes, Mapping) else None
    if angle and angle % 360:
        finds.add("box-rotated", "{}: {} by {:g} degrees", name, [x, y, w, h], angle)
        return rotated((x, y, w, h), angle, (x + w / 2, y + h / 2))
    return x, y, w, h


def _four(found: Any) -> Xywh | None:
    if not isinstance(found, list | tuple) or len(found) != 4:
        return None
    values = numbers_of(found)
    if values is None or max(map(abs, values)) > LARGEST:
        return None
    x, y, w, h = values
    return x, y, w, h


def rotated(box: Xywh, degrees: float, centre: tuple[float, float]) -> Xywh:
    """Return the upright box (x, y, w, h) around one that is turned about a point, clockwise to the eye."""
    x, y, w, h = box
    turn = math.radians(degrees % 360)
    cos, sin = round(math.cos(turn), 12), round(math.sin(turn), 12)
    corners = [(px - centre[0], py - centre[1]) for px in (x, x + w) for py in (y, y + h)]
    xs = [centre[0] + cos * px - sin * py for px, py in corners]
    ys = [centre[1] + sin * px + cos * py for px, py in corners]
    return min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)


def around(segmentation: Any) -> Xywh | None:
    """Return the box around COCO's polygons or run lengths, None for what is neither."""
    if isinstance(segmentation, Mapping):
        return _around_runs(segmentation)
    if not isinstance(segmentation, list):
        return None
    polygons = segmentation if all(isinstance(each, list) for each in segmentation) else [segmentation]
    if any(len(each) % 2 for each in polygons):
        return None
    box = hull(*([value for each in polygons for value in each[axis::2]] for axis in (0, 1)))
    return box if box and max(map(abs, box)) <= LARGEST else None


def hull(xs: Iterable[Any], ys: Iterable[Any]) -> Xywh | None:
    """Return the box (x, y, w, h) around points, None where a coordinate is no number or there is none."""
    across, down = numbers_of(xs), numbers_of(ys)
    if not across or not down:
        return None
    return min(across), min(down), max(across) - min(across), max(down) - min(down)


def _around_runs(runs: Mapping[str, Any]) -> Xywh | None:
    from pycocotools import mask

    size, counts = runs.get("size"), runs.get("counts")
    if not isinstance(size, list) or len(size) != 2 or not all(type(side) is int and side > 0 for side in size):
        return None
    try:
        if isinstance(counts, list):
            if sum(counts) != size[0] * size[1] or min(counts) < 0:
                return None
            runs = mask.frPyObjects({"size": size, "counts": counts}, *size)
        elif not isinstance(counts, str):
            return None
        x, y, w, h = mask.toBbox({**runs, "size": size}).tolist()
    except (TypeError, ValueError, OverflowError, UnicodeError):
        return None
    return x, y, w, h


def _correct_areas(boxes: Sequence[Box], finds: Finds) -> None:
    """Put width x height in place of areas that no shape in the box can have.

    A shape that touches all sides of its box has at least as many pixels as the longer side is long, and no more
    than the box. A set whose boxes differ and whose areas do not has no areas.
    """
    sizes = [(box["bbox"][2], box["bbox"][3]) for box in boxes]
    constant = len(boxes) > 2 and len({box["area"] for box in boxes}) == 1 and len({w * h for w, h in sizes}) > 1
    for box, (w, h) in zip(boxes, sizes, strict=True):
        possible = max(w, h) / 2 <= box["area"] <= (w + 1) * (h + 1)  # boxes may be rounded
        if box["area"] != w * h and (constant or not possible):
            finds.add("area-contradicts", "{}: {:g} in {:g} x {:g}", box["entry"], box["area"], w, h)
            box["area"] = w * h
