"""Detections as the labels of other tools, so that a detector helps to label the next images.

    labels = Prelabels("yolo", folder, files, class_names)      # raises UserError before the first question
    labels.write(file, found)                                  # yolo, voc: a file an image
    csv_text(answers, class_names), label_studio(answers, class_names)

What is lost: by yolo scores, and digits beyond a millionth of the side; by voc scores and parts of pixels; by csv
images without a box. Label Studio's tasks lose nothing: the boxes are predictions, for a person to accept.
"""

import csv
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from retinaserve.eval.predictions import below_common, rows_of
from retinaserve.training.detections import Detections
from retinaserve.training.errors import Exit, UserError
from retinaserve.training.files import write_text
from retinaserve.training.letterbox import upright_size

Answers = Iterable[tuple[Path, Detections]]
SUFFIXES = {"yolo": ".txt", "voc": ".xml"}
COLUMNS = ("file", "width", "height", "class", "score", "x1", "y1", "x2", "y2")


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
        for (x1, y1, x2, y2), score, index in rows_of(found):
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
    for (x1, y1, x2, y2), _, index in rows_of(found):
        centre = (x1 + x2) / 2 / width, (y1 + y2) / 2 / height
        shares = (*centre, (x2 - x1) / width, (y2 - y1) / height)
        lines.append(" ".join([str(index), *(f"{share:.6f}" for share in shares)]))
    return "".join(f"{line}\n" for line in lines)


def _voc(file: Path, found: Detections, class_names: Sequence[str]) -> str:
    """Return the XML that LabelImg writes: corners in whole pixels from 0, the last one not included."""
    height, width = _size(file, found)
    root = ElementTree.Element("annotation")
    for tag, text in (("folder", file.parent.name), ("filename", file.name), ("path", str(file))):
        ElementTree.SubElement(root, tag).text = text
    ElementTree.SubElement(ElementTree.SubElement(root, "source"), "database").text = "Unknown"
    size = ElementTree.SubElement(root, "size")
    for tag, number in (("width", width), ("height", height), ("depth", 3)):
        ElementTree.SubElement(size, tag).text = str(number)
    ElementTree.SubElement(root, "segmented").text = "0"
    for (x1, y1, x2, y2), _, index in rows_of(found):
        thing = ElementTree.SubElement(root, "object")
        fields = {"name": class_names[index], "pose": "Unspecified", "truncated": "0", "difficult": "0"}
        for tag, text in fields.items():
            ElementTree.SubElement(thing, tag).text = text
        box = ElementTree.SubElement(thing, "bndbox")
        left, top = round(x1), round(y1)
        corners = {"xmin": left, "ymin": top, "xmax": max(round(x2), left + 1), "ymax": max(round(y2), top + 1)}
        for tag, number in corners.items():
            ElementTree.SubElement(box, tag).text = str(number)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def _size(file: Path, found: Detections) -> tuple[int, int]:
    """Return an image's (h, w), from its file where the answer does not have it."""
    return found.size or upright_size(file)
