"""Formats in XML: Pascal VOC, a file an image, and CVAT, for images or a video.

    read_voc(sorted(Path("Annotations").glob("*.xml")), scene)
    read_cvat(root, scene)

VOC's own files, and Roboflow's and supervision's, count pixels from 1, the last one included: x = xmin - 1,
w = xmax - xmin + 1. Other tools (LabelImg, CVAT, labelformat, globox) do not: w = xmax - xmin. Source and database
say whose a file is.
What is marked difficult is a crowd: VOC's protocol neither learns nor counts it.

CVAT's corners are in pixels; a rotation turns a box about its centre. A video's frames are images called by their
number, as CVAT exports them (frame_000012.png); boxes that are outside are not there.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from xml.etree import ElementTree

from retinaserve.training.check.entries import Xywh, flag, hull, integer, number_of, numbers_of
from retinaserve.training.errors import UserError
from retinaserve.training.formats.scene import Scene

Element = ElementTree.Element
FROM_ONE = re.compile(r"\bvoc ?20(0[5-9]|1[0-2])\b|\broboflow\b", re.IGNORECASE)


def parse(path: Path) -> Element:
    """Return a file's root. Raises UserError for what is no XML."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or 'it cannot be read'} [file-unreadable]") from None
    if b"<!ENTITY" in content:
        raise UserError(f"{path}: XML with entities [file-unreadable]", "no labelling tool writes them")
    try:
        return ElementTree.fromstring(content)
    except (ElementTree.ParseError, ValueError, LookupError):
        raise UserError(f"{path}: not XML [file-unreadable]", "Pascal VOC or CVAT is expected") from None


def read_voc(files: Iterable[Path], scene: Scene) -> None:
    """Read Pascal VOC's files; the image of each is named in it, or called like it."""
    for path in files:
        root = parse(path)
        found = scene.named_or_called((root.findtext("filename") or "").strip(), path.stem)
        width, height = (integer(root.findtext(f"size/{side}")) for side in ("width", "height"))
        image = scene.image(found, (width, height))
        said = " ".join(root.findtext(key) or "" for key in ("source/database", "source/annotation"))
        rim = 1 if FROM_ONE.search(said) else 0
        for number, element in enumerate(root.iter("object"), 1):
            entry = f"{path.name}, object {number}"
            name = (element.findtext("name") or "").strip()
            texts = [element.findtext(f"bndbox/{key}") for key in ("xmin", "ymin", "xmax", "ymax")]
            corners = numbers_of(texts)
            if not name or corners is None:
                scene.finds.add("label-line", "{}: name {!r}, bndbox {}", entry, name, list(map(number_of, texts)))
                continue
            x1, y1, x2, y2 = corners
            box = x1 - rim, y1 - rim, x2 - x1 + rim, y2 - y1 + rim
            scene.box(image, name, box, entry, crowd=bool(flag(element.findtext("difficult"))))
    scene.note_unlabelled()


def read_cvat(root: Element, scene: Scene) -> None:
    """Read CVAT's file for images or for a video."""
    for label in root.iter("label"):
        name = (label.findtext("name") or "").strip()
        if name and (label.findtext("type") or "any") not in ("tag", "skeleton"):
            scene.ids.setdefault(name, len(scene.ids) + 1)
    for element in root.iter("image"):
        size = integer(element.get("width")), integer(element.get("height"))
        image = scene.image(element.get("name") or "", size)
        for number, shape in enumerate(element, 1):
            if shape.tag != "tag":
                entry = f"{element.get('name')}, shape {number}"
                _add(scene, image, shape, shape.get("label") or "", entry)
    frames: dict[int, int] = {}
    for track in root.iter("track"):
        for shape in track:
            frame = integer(shape.get("frame"))
            if frame is None or flag(shape.get("outside")):
                continue
            if frame not in frames:
                name = f"frame_{frame:06d}"
                frames[frame] = scene.image((scene.of_stem(name) if scene.folder else None) or f"{name}.png")
            entry = f"track {track.get('id')}, frame {frame}"
            _add(scene, frames[frame], shape, track.get("label") or "", entry)
    if frames:
        for name in scene.names:  # a frame that no track is on shows nothing
            if re.fullmatch(r"frame_\d{6}", Path(name).stem) and name not in scene.used:
                scene.image(name)
    scene.note_unlabelled()


def _add(scene: Scene, image: int, shape: Element, name: str, entry: str) -> None:
    box = _box(shape)
    if box is None or not name:
        wanted = shape.tag in ("box", "polygon", "mask", "ellipse")
        code = "label-line" if wanted else "shape-skipped"
        scene.finds.add(code, "{}: {}", entry, shape.tag)
        return
    x, y, w, h = box
    turn = (number_of(shape.get("rotation")) or 0.0) if shape.tag in ("box", "ellipse") else 0.0
    scene.turned(image, name, box, turn, (x + w / 2, y + h / 2), entry)


def _box(shape: Element) -> Xywh | None:
    if shape.tag == "box":
        return hull((shape.get("xtl"), shape.get("xbr")), (shape.get("ytl"), shape.get("ybr")))
    if shape.tag == "polygon":
        points = [point.split(",") for point in (shape.get("points") or "").split(";") if point]
        return hull((point[0] for point in points), (point[-1] for point in points))
    keys = {"mask": ("left", "top", "width", "height"), "ellipse": ("cx", "cy", "rx", "ry")}.get(shape.tag, ())
    values = numbers_of(shape.get(key) for key in keys)
    if not values:
        return None
    x, y, w, h = values
    return (x, y, w, h) if shape.tag == "mask" else (x - w, y - h, 2 * w, 2 * h)
