"""What the readers of formats share: the lists of a COCO file as they grow, and the images that labels are for.

scene = Scene(Path("images"))
image = scene.image("a.jpg", size=(640, 480))
scene.box(image, "cat", (10, 20, 30, 40), "a.xml, object 1")
"""

import os
import re
from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from retinaserve.training.check.entries import Xywh, rotated
from retinaserve.training.check.findings import Finds
from retinaserve.training.errors import UserError
from retinaserve.training.images.letterbox import SUFFIXES, upright_size

UPLOADED = re.compile(r"^[0-9a-f]{8}-")  # what Label Studio puts before the names of uploaded files


class Scene:
    """Images, boxes and categories by name, in the order they are met."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.finds = Finds()
        self.images: list[dict[str, Any]] = []
        self.boxes: list[dict[str, Any]] = []
        self.ids: dict[str, int] = {}  # of categories
        self.used: set[str] = set()  # names of images in the folder

    def content(self) -> dict[str, Any]:
        """Return the lists of a COCO file. Categories that no list numbered count from 1 by the alphabet."""
        fixed = max(self.ids.values(), default=0)
        names = sorted({box["category_id"] for box in self.boxes} - self.ids.keys() - {None})
        ids = {**self.ids, **{name: fixed + place for place, name in enumerate(names, 1)}}
        annotations = []
        for box in self.boxes:
            # A name of None is every class's: a region that nobody labelled.
            for name in ids if box["category_id"] is None else [box["category_id"]]:
                annotations.append({**box, "category_id": ids[name]})
        return {
            "images": self.images,
            "annotations": annotations,
            "categories": [{"id": number, "name": name} for name, number in ids.items()],
        }

    def image(self, name: str, size: tuple[Any, Any] = (None, None)) -> int:
        """Add an image by the name that a label file has for it; return its id."""
        found = self.resolve(name)
        self.used.add(found)
        self.images.append({"id": len(self.images) + 1, "file_name": found, "width": size[0], "height": size[1]})
        return len(self.images)

    def box(
        self, image: int, name: str | None, box: Sequence[float | None], entry: str, *, crowd: bool = False
    ) -> None:
        """Add x, y, width, height in pixels."""
        self.boxes.append(
            {"id": entry, "image_id": image, "category_id": name, "bbox": list(box), "iscrowd": int(crowd)}
        )

    def turned(
        self, image: int, name: str, box: Xywh, degrees: float, about: tuple[float, float], entry: str
    ) -> None:
        """Add the upright box around one that is turned about a point."""
        if degrees % 360:
            shown = [round(value, 2) for value in box]
            self.finds.add("box-rotated", "{}: {} by {:g} degrees", entry, shown, degrees)
            box = rotated(box, degrees, about)
        self.box(image, name, box, entry)

    def size(self, image: int) -> tuple[int, int] | None:
        """Return the (w, h) of an image's file, None with a find where there is none to read."""
        name = self.images[image - 1]["file_name"]
        file = (self.folder or Path()) / name
        try:
            height, width = upright_size(file)
        except UserError:
            if file.is_file():  # the check of files tells of one that is not there
                self.finds.add("image-unsized", "{}", name)
            return None
        return width, height

    def resolve(self, name: str) -> str:
        """Return the name below the folder of the image that a label file names: the one it ends like."""
        inside = ".." not in name.split("/") and not name.startswith("/")
        if self.folder is None or (inside and (self.folder / name).is_file()):
            return name
        parts = [part for part in unquote(name).replace("\\", "/").split("/") if part not in ("", ".", "..")]
        for last in (parts[-1], UPLOADED.sub("", parts[-1])) if parts else ():
            same = self.by_name[last]
            best = max((_shared(other, parts) for other in same), default=0)
            fitting = [other for other in same if _shared(other, parts) == best]
            if len(fitting) > 1:
                self.finds.add("image-ambiguous", "{}: {}", name, " or ".join(fitting[:3]))
            if fitting:
                return fitting[0]
        return name

    def of_stem(self, stem: str) -> str | None:
        """Return the image of a name without its suffix, such as that of a text file."""
        if (found := self.by_stem.get(stem)) is not None:
            return found
        ending = [name for key, name in self.by_stem.items() if key.rsplit("/", 1)[-1] == stem.rsplit("/", 1)[-1]]
        return ending[0] if len(ending) == 1 else None

    @cached_property
    def names(self) -> list[str]:
        """The images of the folder, with all below it."""
        found = []
        for place, _, files in os.walk(self.folder or Path()):
            below = Path(place).relative_to(self.folder or Path())
            found += [(below / file).as_posix() for file in files if Path(file).suffix.lower() in SUFFIXES]
        return sorted(found)

    @cached_property
    def by_name(self) -> dict[str, list[str]]:
        """The images by the last part of their names."""
        names = defaultdict[str, list[str]](list)
        for name in self.names:
            names[name.rsplit("/", 1)[-1]].append(name)
        return names

    @cached_property
    def by_stem(self) -> dict[str, str]:
        """The images by their names without the suffix."""
        return {name.rsplit(".", 1)[0]: name for name in reversed(self.names)}

    def named_or_called(self, name: str, stem: str) -> str:
        """Return the image that a label file names, or is called like.

        Renamed images keep the names of their files: the stem is the better witness.
        """
        found = self.resolve(name) if name else ""
        if self.folder and not (found and (self.folder / found).is_file()):
            found = self.of_stem(stem) or found
        return found or f"{stem}.jpg"

    def note_unlabelled(self) -> None:
        """Tell of the images of the folder that no label file is about: nobody said that they are empty."""
        for name in self.names if self.folder is not None else ():
            if name not in self.used:
                self.finds.add("image-unlabelled", "{}", name)


def _shared(name: str, parts: list[str]) -> int:
    """Return how many parts two names have in common at their ends."""
    count = 0
    for one, other in zip(reversed(name.split("/")), reversed(parts), strict=False):
        if one != other and (count or UPLOADED.sub("", other) != one):
            break
        count += 1
    return count
