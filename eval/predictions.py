"""Detections in the forms a user takes away: JSON lines, a COCO file, annotated pictures.

    print(json_line(path, detections, class_names))
    book = CocoBook(class_names, category_ids); book.add(path, detections); book.to_dict()

The COCO file is a data set, pictures and categories included, so that labelling tools open it; a bare result
list for pycocotools is training/scores.py's.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from retinaserve.training.detections import Detections
from retinaserve.training.errors import Exit, UserError

KEPT_SUFFIXES = frozenset({".jpg", ".jpeg", ".png"})  # other pictures become JPEG when annotated


def json_line(file: Path, found: Detections, class_names: Sequence[str]) -> str:
    """Return one picture's detections as a line of JSON; boxes are x1 y1 x2 y2."""
    height, width = found.size or (None, None)
    detections = [
        {"class": class_names[index], "score": score, "box": box}
        for box, score, index in zip(_rounded(found), _scores(found), found.classes.tolist(), strict=True)
    ]
    line = {"file": str(file), "width": width, "height": height, "detections": detections}
    return json.dumps(line, ensure_ascii=False)


class CocoBook:
    """Gathers detections picture by picture into one COCO data set."""

    def __init__(self, class_names: Sequence[str], category_ids: Sequence[int]) -> None:
        self._ids = category_ids
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []
        self._categories = [{"id": i, "name": name} for i, name in zip(category_ids, class_names, strict=True)]

    def add(self, file: Path, found: Detections) -> None:
        """Add a picture; its id is its number."""
        height, width = found.size or (None, None)
        image_id = len(self._images) + 1
        self._images.append({"id": image_id, "file_name": str(file), "width": width, "height": height})
        for box, score, index in zip(_rounded(found), _scores(found), found.classes.tolist(), strict=True):
            x, y, extent = box[0], box[1], (round(box[2] - box[0], 2), round(box[3] - box[1], 2))
            self._annotations.append(
                {
                    "id": len(self._annotations) + 1,
                    "image_id": image_id,
                    "category_id": self._ids[index],
                    "bbox": [x, y, *extent],
                    "area": round(extent[0] * extent[1], 2),
                    "iscrowd": 0,
                    "score": score,
                }
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the data set."""
        return {"images": self._images, "categories": self._categories, "annotations": self._annotations}


def annotated_paths(files: Sequence[Path], folder: Path) -> list[Path]:
    """Return where each annotated picture goes: the tree of the files below what they have in common.

    Raises UserError where that would overwrite one of the files.
    """
    common = Path(os.path.commonpath([file.absolute().parent for file in files]))
    targets = []
    for file in files:
        target = folder / file.absolute().relative_to(common)
        if target.suffix.lower() not in KEPT_SUFFIXES:
            target = target.with_name(f"{target.name}.jpg")
        if target.exists() and target.samefile(file):
            raise UserError(f"{target} would be overwritten", "choose another output directory", code=Exit.USAGE)
        targets.append(target)
    return targets


def _rounded(found: Detections) -> list[list[float]]:
    """Hundredths of a pixel: more digits would only be noise."""
    return [[round(value, 2) for value in box] for box in found.boxes.tolist()]


def _scores(found: Detections) -> list[float]:
    return [round(score, 4) for score in found.scores.tolist()]
