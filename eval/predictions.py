"""Detections in the forms a user takes away: JSON lines, a COCO file, GeoJSON, annotated images.

    print(json_line(path, detections, class_names))
    coco_results([(path, detections)], class_names, category_ids)

The COCO file is a data set, images and categories included, so that labelling tools open it; a bare result
list for pycocotools is training/scores.py's.
"""

import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, count
from pathlib import Path
from typing import Any

from retinaserve.training.detections import Detections
from retinaserve.training.errors import Exit, UserError
from retinaserve.training.raster import open_raster

KEPT_SUFFIXES = frozenset({".jpg", ".jpeg", ".png"})  # other images become JPEG when annotated


def json_line(file: Path, found: Detections, class_names: Sequence[str]) -> str:
    """Return one image's detections as a line of JSON; boxes are x1 y1 x2 y2, numbers of tracks from 1."""
    height, width = found.size or (None, None)
    detections: list[dict[str, Any]] = [
        {"class": class_names[index], "score": score, "box": box} for box, score, index in rows_of(found)
    ]
    for entry, number in zip(
        detections, [] if found.track_ids is None else found.track_ids.tolist(), strict=False
    ):
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
            raise UserError(
                f"{targets[place]} would be overwritten", "choose another output directory", code=Exit.USAGE
            )
    return targets


def rows_of(found: Detections) -> Iterator[tuple[list[float], float, int]]:
    """Yield box, score and class; more than hundredths of a pixel would only be noise."""
    for box, score, index in zip(found.boxes.tolist(), found.scores.tolist(), found.classes.tolist(), strict=True):
        yield [round(value, 2) for value in box], round(score, 4), index
