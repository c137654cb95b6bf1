"""Label files of other tools, read into the lists of a COCO file; check/entries.py has the rules for them.

    content, finds = read_format(path, images, split="train")       # which it is, is found out by what is in it

A reader states its convention of coordinates where it takes them. All give boxes in pixels of the upright image.
"""

from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from retinaserve.training.check.findings import Finds
from retinaserve.training.errors import UserError
from retinaserve.training.formats.exports import (
    is_createml,
    is_label_studio,
    read_createml,
    read_label_studio,
    read_labelme,
    read_via,
)
from retinaserve.training.formats.lines import is_kitti, read_kitti, read_open_images, read_yolo, text_files
from retinaserve.training.formats.scene import Scene
from retinaserve.training.formats.xml import parse, read_cvat, read_voc

KNOWN = (
    "COCO JSON, YOLO (a folder or data.yaml), Pascal VOC (a folder), CVAT XML, Label Studio JSON, "
    "labelme (a folder), VIA 2 JSON, CreateML JSON, Open Images CSV, KITTI (a folder)"
)
VIA3 = "the project of VIA 3"


def read_format(path: Path, images: Path | None, split: str) -> tuple[dict[str, Any], Finds]:
    """Read a folder, or a file that is no JSON. Raises UserError for what is of no known format."""
    scene = Scene(images)
    try:
        _read(path, scene, split)
    except OSError as error:  # also of a folder that others change while it is read
        raise UserError(f"{path}: {error.filename}: {error.strerror} [file-unreadable]") from None
    return scene.content(), scene.finds


def _read(path: Path, scene: Scene, split: str) -> None:
    suffix = path.suffix.lower()
    if not path.exists():
        raise UserError(f"{path}: no such file or folder [file-unreadable]")
    if path.is_dir():
        _read_folder(path, scene, split)
    elif suffix in (".yaml", ".yml"):
        read_yolo(path, scene, split)
    elif suffix == ".csv":
        read_open_images(path, scene)
    elif suffix == ".xml":
        root = parse(path)
        if root.tag == "annotations":
            read_cvat(root, scene)
        elif root.tag == "annotation":
            read_voc([path], scene)
        else:
            raise UserError(f"{path}: XML of <{root.tag}> [file-unreadable]", f"known are {KNOWN}")
    else:
        hint = "unpack it, and name the folder or file inside" if suffix == ".zip" else f"known are {KNOWN}"
        raise UserError(f"{path}: no label file that is known [file-unreadable]", hint)


def read_json(path: Path, content: Any, images: Path | None) -> tuple[Any, Finds]:
    """Return the lists of a COCO file for JSON of another tool; what is none comes back as it is."""
    scene = Scene(images)
    if isinstance(content, list) and content and is_label_studio(content):
        read_label_studio(content, scene)
    elif isinstance(content, list) and content and is_createml(content):
        read_createml(content, scene)
    elif isinstance(content, Mapping) and isinstance(content.get("shapes"), list):
        read_labelme([path], scene)
    elif isinstance(content, Mapping) and {"project", "metadata", "view"} <= content.keys():
        raise UserError(f"{path}: {VIA3} [file-unreadable]", "export it as COCO, or label in VIA 2")
    elif isinstance(content, Mapping) and (
        "_via_img_metadata" in content
        or (content and all(isinstance(each, Mapping) and "regions" in each for each in content.values()))
    ):
        read_via(dict(content), scene)
    else:
        return content, scene.finds
    return scene.content(), scene.finds


def _read_folder(path: Path, scene: Scene, split: str) -> None:
    xml, json = (sorted(path.rglob(f"*.{suffix}")) for suffix in ("xml", "json"))
    text = next(chain(text_files(path), ()), None)
    if sum(map(bool, (xml, json, text))) > 1:
        kinds = ", ".join(name for name, found in (("xml", xml), ("json", json), ("txt", text)) if found)
        raise UserError(
            f"{path}: label files of several formats: {kinds} [file-unreadable]", "name one folder each"
        )
    if xml:
        read_voc(xml, scene)
    elif json:
        try:
            read_labelme(json, scene)
        except UserError as error:
            raise UserError(
                error.message, "a folder of JSON is read as labelme's; name another file itself"
            ) from None
    elif text is None:
        raise UserError(f"{path}: no label files in this folder [file-unreadable]", f"known are {KNOWN}")
    elif is_kitti(path):
        read_kitti(path, scene)
    else:
        read_yolo(path, scene, split)
