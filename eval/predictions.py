"""Detections in the forms a user takes away: JSON lines, a COCO file, GeoJSON, annotated images, labels for tools.

    print(json_line(path, detections, class_names))
    coco_results([(path, detections)], class_names, category_ids)
    Prelabels("yolo", folder, files, class_names).write(file, found)        # yolo, voc: a file an image
    csv_text(answers, class_names), label_studio(answers, class_names)

The COCO file is a data set, images and categories included, so that labelling tools open it; a bare result list
for pycocotools is training/scoring/scores.py's. What is lost: by yolo scores, and digits beyond a millionth of
the side; by voc scores and parts of pixels; by csv images without a box. Label Studio's tasks lose nothing: the
boxes are predictions, for a person to accept.
"""

import csv
import io
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, count
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from retinaserve.training.detections import Detections
from retinaserve.training.errors import Exit, UserError
from retinaserve.training.files import write_text
from retinaserve.training.images.letterbox import upright_size
from retinaserve.training.images.raster import open_raster

Answers = Iterable[tuple[Path, Detections]]
KEPT_SUFFIXES = frozenset({".jpg", ".jpeg", ".png"})  # other images become JPEG when annotated
SUFFIXES = {"yolo": ".txt", "voc": ".xml"}  # of labels
COLUMNS = ("file", "width", "height", "class", "score", "x1", "y1", "x2", "y2")  # of the CSV


def json_line(file: Path, found: Detections, class_names: Sequence[str]) -> str:
    """Return one image's detections as a line of JSON; boxes are x1 y1 x2 y2, numbers of tracks from 1."""
    height, width = found.size or (None, None)
    detections: list[dict[str, Any]] = [
        {"class": class_names[index], "score": score, "box": box} for box, score, index in rows_of(found)
    ]
    numbers = [] if found.track_ids is None else found.track_ids.tolist()
    for entry, number in zip(detections, numbers, strict=False):
        entry["track_id"] = number if number > 0 else None
    line = {"file": str(file), "width": width, "height": height, "detections": detections}
    return json.dumps(line, ensure_ascii=False)


def coco_results(
    answers: Iterable[tuple[Path, Detections]], class_names: Sequence[str], category_ids: Sequence[int]
) -> dict[str, Any]:
    """Return images with their detections as one COCO data set; an image's id is its number."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, (file, found) in enumerate(answers, 1):
        height, width = found.size or (None, None)
        images.append({"id": image_id, "file_name": str(file), "width": width, "height": height})
        for (x1, y1, x2, y2), score, index in rows_of(found):
            extent = round(x2 - x1, 2), round(y2 - y1, 2)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": category_ids[index],
                    "bbox": [x1, y1, *extent],
                    "area": round(extent[0] * extent[1], 2),
                    "iscrowd": 0,
                    "score": score,
                }
            )
    categories = [{"id": i, "name": name} for i, name in zip(category_ids, class_names, strict=True)]
    return {"images": images, "categories": categories, "annotations": annotations}


def geojson(answers: Iterable[tuple[Path, Detections]], class_names: Sequence[str]) -> dict[str, Any]:
    """Return all boxes as one FeatureCollection, in the coordinates of their rasters, or in pixels without any.

    RFC 7946 knows one coordinate system only; another is named as GDAL does, by its predecessor's member `crs`.
    Raises UserError for rasters of different systems.
    """
    features: list[dict[str, Any]] = []
    systems: dict[str, Path] = {}
    for file, found in answers:
        with open_raster(file) as raster:
            place = raster.georeference
        systems.setdefault(place.crs if place else "", file)
        if len(systems) > 1:
            raise UserError(
                f"{file} has another coordinate system than {next(iter(systems.values()))}",
                "one GeoJSON has one: ask for them separately",
            )
        a, b, c, d, e, f = place.transform if place else (1, 0, 0, 0, 1, 0)
        for (x1, y1, x2, y2), score, index in rows_of(found):
            corners = ((x1, y1), (x1, y2), (x2, y2), (x2, y1), (x1, y1))
            ring = [[a * x + b * y + c, d * x + e * y + f] for x, y in corners]
            properties = {"file": str(file), "class": class_names[index], "score": score}
            geometry = {"type": "Polygon", "coordinates": [ring]}
            features.append({"type": "Feature", "properties": properties, "geometry": geometry})
    collection: dict[str, Any] = {"type": "FeatureCollection"}
    crs = next(iter(systems), "")
    if crs:
        name = re.sub(r"^(\w+):(\w+)$", r"urn:ogc:def:crs:\1::\2", crs)
        collection["crs"] = {"type": "name", "properties": {"name": name}}
    return {**collection, "features": features}


def below_common(files: Sequence[Path]) -> list[Path]:
    """Return the files' names below the folder that holds all of them."""
    absolute = [Path(os.path.normpath(file.absolute())) for file in files]
    common = os.path.commonpath([file.parent for file in absolute]) if files else ""
    return [file.relative_to(common) for file in absolute]


def annotated_paths(files: Sequence[Path], folder: Path) -> list[Path]:
    """Return where each annotated image goes: the tree of the files below what they have in common.

    Those that become JPEG get a number where another image has that name. Raises UserError where one of the files
    would be overwritten.
    """
    targets = [folder / below for below in below_common(files)]
    taken = {target for target in targets if target.suffix.lower() in KEPT_SUFFIXES}
    for place, (file, target) in enumerate(zip(files, targets, strict=True)):
        if target.suffix.lower() not in KEPT_SUFFIXES:
            names = chain([f"{target.name}.jpg"], (f"{target.name}.{number}.jpg" for number in count(2)))
            targets[place] = next(free for name in names if (free := target.with_name(name)) not in taken)
            taken.add(targets[place])
        if targets[place].exists() and targets[place].samefile(file):
            problem = f"{targets[place]} would be overwritten"
            raise UserError(problem, "choose another output directory", code=Exit.USAGE)
    return targets


def rows_of(found: Detections, within: tuple[int, int] | None = None) -> Iterator[tuple[list[float], float, int]]:
    """Yield box, score and class; more than hundredths of a pixel would only be noise.

    within: (h, w) that boxes are cut at, for labels, which end with the image.
    """
    boxes = found.boxes if within is None else found.boxes.clip(0, [*within[::-1], *within[::-1]])
    for box, score, index in zip(boxes.tolist(), found.scores.tolist(), found.classes.tolist(), strict=True):
        yield [round(value, 2) for value in box], round(score, 4), index


class Prelabels:
    """A folder with a file of labels for each image, in the images' own tree."""

    def __init__(self, style: str, folder: Path, files: Sequence[Path], class_names: Sequence[str]) -> None:
        self._style, self._names = style, class_names
        self._targets = {
            file: (folder / below).with_suffix(SUFFIXES[style])
            for file, below in zip(files, below_common(files), strict=True)
        }
        owners: dict[Path, Path] = {}
        for file, target in self._targets.items():
            if target in owners:
                raise UserError(
                    f"{owners[target]} and {file} would share {target}",
                    f"{style} names labels by an image without its suffix: ask for them separately",
                    code=Exit.USAGE,
                )
            if target.exists():
                raise UserError(f"{target} is there already", "name a new folder", code=Exit.USAGE)
            owners[target] = file
        if style == "yolo":  # each tool looks for the names in another place
            write_text(folder / "classes.txt", "".join(f"{name}\n" for name in class_names))
            names = "".join(f"  {place}: {json.dumps(name)}\n" for place, name in enumerate(class_names))
            write_text(folder / "data.yaml", f"path: .\ntrain: images\nval: images\nnames:\n{names}")

    def write(self, file: Path, found: Detections) -> None:
        """Write an image's labels; one without detections gets a file without boxes."""
        content = _yolo(file, found) if self._style == "yolo" else _voc(file, found, self._names)
        write_text(self._targets[file], content)


def csv_text(answers: Answers, class_names: Sequence[str]) -> str:
    """Return a line a detection, corners in pixels, below a line of names."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    for file, found in answers:
        height, width = _size(file, found)
        for box, score, index in rows_of(found):
            table.writerow([file, width, height, class_names[index], score, *box])
    return text.getvalue()


def label_studio(answers: Answers, class_names: Sequence[str]) -> list[dict[str, Any]]:
    """Return tasks with predictions, for a labelling setup with <RectangleLabels name="label" toName="image">.

    Images are named as Label Studio's local storage serves them: from the folder that holds all of them.
    """
    kept = list(answers)
    tasks = []
    for (file, found), below in zip(kept, below_common([file for file, _ in kept]), strict=True):
        height, width = _size(file, found)
        results = []
        for (x1, y1, x2, y2), score, index in rows_of(found, (height, width)):
            shares = {"x": x1 / width, "y": y1 / height, "width": (x2 - x1) / width, "height": (y2 - y1) / height}
            value = {name: 100 * share for name, share in shares.items()}
            results.append(
                {
                    "type": "rectanglelabels",
                    "from_name": "label",
                    "to_name": "image",
                    "original_width": width,
                    "original_height": height,
                    "image_rotation": 0,
                    "score": score,
                    "value": {**value, "rotation": 0, "rectanglelabels": [class_names[index]]},
                }
            )
        best = float(found.scores.max(initial=0))
        prediction = {"model_version": "retinaserve", "score": round(best, 4), "result": results}
        image = f"/data/local-files/?d={below.as_posix()}"
        tasks.append({"data": {"image": image}, "predictions": [prediction]})
    return tasks


def _yolo(file: Path, found: Detections) -> str:
    height, width = _size(file, found)
    lines = []
    for (x1, y1, x2, y2), _, index in rows_of(found, (height, width)):
        centre = (x1 + x2) / 2 / width, (y1 + y2) / 2 / height
        shares = (*centre, (x2 - x1) / width, (y2 - y1) / height)
        lines.append(" ".join([str(index), *(f"{share:.6f}" for share in shares)]))
    return "".join(f"{line}\n" for line in lines)


def _voc(file: Path, found: Detections, class_names: Sequence[str]) -> str:
    """Return the XML that LabelImg writes: corners in whole pixels from 0, the last one not included."""
    height, width = _size(file, found)
    root = ElementTree.Element("annotation")

    def add(parent: ElementTree.Element, **fields: Any) -> None:
        for tag, value in fields.items():
            ElementTree.SubElement(parent, tag).text = str(value)

    add(root, folder=file.parent.name, filename=file.name, path=file)
    add(ElementTree.SubElement(root, "source"), database="Unknown")
    add(ElementTree.SubElement(root, "size"), width=width, height=height, depth=3)
    add(root, segmented=0)
    for (x1, y1, x2, y2), _, index in rows_of(found, (height, width)):
        thing = ElementTree.SubElement(root, "object")
        add(thing, name=class_names[index], pose="Unspecified", truncated=0, difficult=0)
        left, top = round(x1), round(y1)
        right, bottom = max(round(x2), left + 1), max(round(y2), top + 1)
        add(ElementTree.SubElement(thing, "bndbox"), xmin=left, ymin=top, xmax=right, ymax=bottom)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def _size(file: Path, found: Detections) -> tuple[int, int]:
    """Return an image's (h, w), from its file where the answer does not have it."""
    return found.size or upright_size(file)
