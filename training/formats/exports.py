"""Formats in JSON: Label Studio, labelme (a file an image), VIA 2 and CreateML.

    read_label_studio(tasks, scene)
    read_labelme(sorted(Path("labels").glob("*.json")), scene)

Label Studio: hundredths of the upright image's sides; a rotation turns about the top left corner. Of a task's
annotations the one marked as ground truth counts, else the last. A task nobody has annotated is left out.

labelme: points in pixels. Shapes of a name with the same group_id are one object, as in its own converter to COCO.

VIA 2: pixels. The class is the region's attribute called class, label, name, type or category, or the only one.

CreateML: the centre and the size in pixels, counted from the top left corner.
"""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeGuard

from retinaserve.training.check.entries import Xywh, hull, integer, number_of, numbers_of
from retinaserve.training.errors import UserError
from retinaserve.training.formats.scene import Scene
from retinaserve.training.images.letterbox import SUFFIXES

CLASS_KEYS = ("class", "label", "name", "type", "category")


def is_label_studio(content: list[Any]) -> bool:
    """Return whether a list is one of tasks, in full or as JSON-MIN."""
    return all(
        isinstance(task, dict)
        and (
            isinstance(task.get("data"), dict)
            or ("annotation_id" in task and any(_file_of({key: value}) for key, value in task.items()))
        )
        for task in content
    )


def read_label_studio(tasks: list[dict[str, Any]], scene: Scene) -> None:
    """Read Label Studio's JSON or JSON-MIN."""
    for place, task in enumerate(tasks):
        name = _file_of(task["data"] if isinstance(task.get("data"), dict) else task)
        which = f"task {task.get('id', place)}"
        if name is None:
            scene.finds.add("image-entry", "{}: no file of an image", which)
            continue
        if "data" in task:
            made = [each for each in task.get("annotations") or task.get("completions") or () if _is(each)]
            valid = [each for each in made if not each.get("was_cancelled")]
            if not valid:
                scene.used.add(scene.resolve(name))
                scene.finds.add("image-unlabelled", "{}: {}", which, name)
                continue
            best = max(valid, key=lambda each: (bool(each.get("ground_truth")), str(each.get("updated_at") or "")))
            if len(valid) > 1:
                scene.finds.add("label-overruled", "{}: {} annotations", which, len(valid))
            results = best.get("result") or []
        else:
            results = [
                {"value": each, "original_width": each.get("original_width"), **each}
                for value in task.values()
                if isinstance(value, list)
                for each in value
                if _is(each) and not ({"x", "points"}.isdisjoint(each))
            ]
        results = [each for each in results if _is(each) and _is(each.get("value"))]
        size = next(
            ((integer(each.get("original_width")), integer(each.get("original_height"))) for each in results),
            (None, None),
        )
        image = scene.image(name, size)
        whole = size if all(size) else (scene.size(image) if results else None)
        names = _labels_by_region(results)
        for number, each in enumerate(results, 1):
            entry = f"{which}, region {number}"
            value, labels = each["value"], names.get(str(each.get("id") or id(each)), [])
            if each.get("type") in ("labels", "choices", "textarea", "rating", "number", "taxonomy"):
                continue  # of a region or of the whole image, which has its own entry
            shape = _of_shares(value, whole)
            if shape is None or not labels:
                scene.finds.add("shape-skipped", "{}: {}", entry, each.get("type") or "without a label")
                continue
            for label in labels:
                scene.turned(image, label, shape[0], number_of(value.get("rotation")) or 0.0, shape[1], entry)
    scene.note_unlabelled()


def _labels_by_region(results: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Return the labels of each region: in its own result, or in one of the same id."""
    names: dict[str, list[str]] = {}
    for each in results:
        for key, found in each["value"].items():
            if key.endswith("labels") and isinstance(found, list):
                mine = names.setdefault(str(each.get("id") or id(each)), [])
                mine += [str(label) for label in found if str(label) not in mine]
    return names


def _of_shares(value: Mapping[str, Any], size: tuple[Any, Any] | None) -> tuple[Xywh, tuple[float, float]] | None:
    """Return a region's box in pixels, and the point that it is turned about."""
    if size is None:
        return None
    width, height = size[0] / 100, size[1] / 100
    if isinstance(value.get("points"), list):
        points = [point for point in value["points"] if isinstance(point, list) and len(point) == 2]
        around = hull((point[0] for point in points), (point[1] for point in points))
        if around is None or "keypointlabels" in value:
            return None
        x, y, w, h = around
        return (x * width, y * height, w * width, h * height), (0.0, 0.0)
    x, y = ((number_of(value.get(key)) or 0.0) * side for key, side in (("x", width), ("y", height)))
    if radii := numbers_of(value.get(key) for key in ("radiusX", "radiusY")):
        rx, ry = radii[0] * width, radii[1] * height
        return (x - rx, y - ry, 2 * rx, 2 * ry), (x, y)
    sides = numbers_of(value.get(key) for key in ("width", "height", "x", "y"))
    if sides is None or "keypointlabels" in value:
        return None
    return (x, y, sides[0] * width, sides[1] * height), (x, y)


def _file_of(fields: Mapping[str, Any]) -> str | None:
    """Return the field that names a file of an image, without the address of its server."""
    for value in fields.values():
        if isinstance(value, str):
            name = value.split("?d=")[-1].split("?")[0]
            if Path(name).suffix.lower() in SUFFIXES:
                return name.split("://")[-1]
    return None


def read_labelme(files: Iterable[Path], scene: Scene) -> None:
    """Read labelme's files; the image of each is named in it, or called like it."""
    for path in files:
        try:
            content = json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError):
            raise UserError(f"{path}: not JSON [file-unreadable]", "labelme's files are expected") from None
        if not _is(content) or not isinstance(content.get("shapes"), list):
            raise UserError(f"{path}: no list of shapes [file-unreadable]", "labelme's files are expected")
        found = scene.named_or_called(str(content.get("imagePath") or "").replace("\\", "/"), path.stem)
        image = scene.image(found, (content.get("imageWidth"), content.get("imageHeight")))
        grouped: dict[tuple[str, Any], tuple[str, list[Xywh]]] = {}
        for number, shape in enumerate(content["shapes"], 1):
            entry = f"{path.name}, shape {number}"
            box = _labelme_box(shape) if _is(shape) else None
            if box is None or not shape.get("label"):
                kind = shape.get("shape_type") if _is(shape) else "no shape"
                scene.finds.add("shape-skipped", "{}: {}", entry, kind or "polygon")
                continue
            group = shape.get("group_id")
            key = str(shape["label"]), entry if group is None else f"group {group}"
            grouped.setdefault(key, (entry, []))[1].append(box)
        for (label, _), (entry, boxes) in grouped.items():
            around = hull(
                [value for x, _, w, _ in boxes for value in (x, x + w)],
                [value for _, y, _, h in boxes for value in (y, y + h)],
            )
            assert around is not None
            scene.box(image, label, around, entry)
    scene.note_unlabelled()


def _labelme_box(shape: Mapping[str, Any]) -> Xywh | None:
    points = [each for each in shape.get("points") or () if isinstance(each, list) and len(each) == 2]
    kind = shape.get("shape_type") or "polygon"
    around = hull((point[0] for point in points), (point[1] for point in points))
    if around is None or kind not in ("rectangle", "polygon", "circle", "mask", "oriented_rectangle"):
        return None
    if kind != "circle":
        return around
    (x, y), (px, py) = ((float(a), float(b)) for a, b in points[:2]) if len(points) == 2 else ((0.0, 0.0),) * 2
    radius = math.hypot(px - x, py - y)
    return x - radius, y - radius, 2 * radius, 2 * radius


def read_via(content: dict[str, Any], scene: Scene) -> None:
    """Read the project or the annotations of VIA 2."""
    listed = content.get("_via_img_metadata", content)
    files = [each for each in (listed.values() if _is(listed) else ()) if _is(each)]
    regions = [(each, _regions(each)) for each in files]
    attributes = [region.get("region_attributes") for _, mine in regions for region in mine]
    keys = list(dict.fromkeys(key for each in attributes if _is(each) for key in each))
    class_key = next((key for key in CLASS_KEYS if key in keys), keys[0] if len(keys) == 1 else None)
    if class_key is None and regions:
        scene.finds.add("category-unnamed", "attributes {}", ", ".join(keys) or "none")
    for each, mine in regions:
        name = str(each.get("filename") or "")
        image = scene.image(name.split("://")[-1])
        for number, region in enumerate(mine, 1):
            entry = f"{name}, region {number}"
            found = (region.get("region_attributes") or {}).get(class_key, "object" if class_key is None else None)
            chosen = [key for key, on in found.items() if on] if _is(found) else [found]
            box = _via_box(region.get("shape_attributes"))
            if box is None or not all(chosen) or not chosen:
                shape = (region.get("shape_attributes") or {}).get("name")
                scene.finds.add("shape-skipped", "{}: {} called {!r}", entry, shape, found)
                continue
            for label in chosen:
                scene.box(image, str(label), box, entry)
    scene.note_unlabelled()


def _regions(each: Mapping[str, Any]) -> list[dict[str, Any]]:
    regions = each.get("regions") or []
    found = list(regions.values()) if _is(regions) else regions  # VIA 1 numbers them
    return [region for region in found if _is(region)]


def _via_box(shape: Any) -> Xywh | None:
    if not _is(shape):
        return None
    if shape.get("name") in ("polygon", "polyline"):
        xs, ys = shape.get("all_points_x"), shape.get("all_points_y")
        return hull(xs, ys) if isinstance(xs, list) and isinstance(ys, list) else None
    keys: dict[Any, tuple[str, ...]] = {
        "rect": ("x", "y", "width", "height"),
        "circle": ("cx", "cy", "r", "r"),
        "ellipse": ("cx", "cy", "rx", "ry"),
    }
    values = numbers_of(shape.get(key) for key in keys.get(shape.get("name"), ()))
    if not values or (shape.get("name") == "ellipse" and number_of(shape.get("theta"))):
        return None
    x, y, w, h = values
    return (x, y, w, h) if shape["name"] == "rect" else (x - w, y - h, 2 * w, 2 * h)


def is_createml(content: list[Any]) -> bool:
    """Return whether a list is one of images with labels at coordinates."""
    return all(_is(each) and _createml(each) is not None for each in content)


def read_createml(content: list[dict[str, Any]], scene: Scene) -> None:
    """Read CreateML's list."""
    for each in content:
        name = str(each.get("image") or each.get("imagefilename") or each.get("imageName") or "")
        image = scene.image(name)
        for number, entry in enumerate(_createml(each) or [], 1):
            which = f"{name}, annotation {number}"
            fields = entry if _is(entry) else {}
            place, label = fields.get("coordinates"), fields.get("label")
            values = numbers_of(place.get(key) for key in ("x", "y", "width", "height")) if _is(place) else None
            if values is None or not label:
                scene.finds.add("label-line", "{}: {!r}", which, entry)
                continue
            x, y, w, h = values
            scene.box(image, str(label), (x - w / 2, y - h / 2, w, h), which)
    scene.note_unlabelled()


def _createml(each: Mapping[str, Any]) -> list[Any] | None:
    if not {"image", "imagefilename", "imageName"} & each.keys():
        return None
    found = each.get("annotations", each.get("annotation"))
    return found if isinstance(found, list) else None


def _is(value: Any) -> TypeGuard[dict[str, Any]]:
    return isinstance(value, dict)
