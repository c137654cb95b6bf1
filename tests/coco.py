"""Annotation files of a few lines.

path = write_coco(folder / "a.json", {1: "a.jpg"}, [(1, 7, [10, 20, 30, 40])], {7: "cat"})
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def write_coco(
    path: Path, images: Mapping[int, Any], boxes: Iterable[Any] = (), categories: Mapping[int, str] | None = None
) -> Path:
    """Write a file and return it.

    images: {id: name, or (name, width, height)}; boxes: (image id, category id, xywh) and a dict of more fields.
    """
    files = {number: (file,) if isinstance(file, str) else file for number, file in images.items()}
    content = {
        "images": [
            {"id": number, **dict(zip(("file_name", "width", "height"), file, strict=False))}
            for number, file in files.items()
        ],
        "annotations": [
            {"id": number, "image_id": image, "category_id": category, "bbox": list(box)} | dict(*more)
            for number, (image, category, box, *more) in enumerate(boxes, 1)
        ],
        "categories": [{"id": number, "name": name} for number, name in (categories or {1: "a"}).items()],
    }
    path.write_text(json.dumps(content))
    return path
