"""A split as it lies on disk, read once: the annotation file's entries as they are, and facts on every picture.

    split = read_split("train", Path("images"), Path("train.json"), on_image=bar.update)
    split.images[0].file.size, split.annotations[0]["bbox"]

It judges nothing and raises for nothing that a check should tell.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

EXIF_ORIENTATION = 0x0112
TURNED = (5, 6, 7, 8)  # orientations that swap height and width
# Pictures are compared by the signs of their horizontal and vertical gradients, 16 x 16 of each.
LOOK = 16


@dataclass(frozen=True)
class PictureFile:
    """What is known of a file: (w, h) upright, and what its content looks like where it was decoded."""

    exists: bool
    error: str = ""
    size: tuple[int, int] | None = None
    turned: bool = False  # EXIF swaps its sides
    digest: str = ""  # of the file's bytes
    look: int | None = None  # bits, equal for pictures that look the same; None for flat ones


@dataclass(frozen=True)
class ImageEntry:
    """An image of the annotation file. `id` and `name` are as they were found, whatever their type."""

    id: Any
    name: Any
    listed_size: tuple[Any, Any]  # w, h
    file: PictureFile


@dataclass(frozen=True)
class Split:
    """An annotation file and its pictures; with a `problem`, everything else is empty."""

    name: str
    path: Path
    problem: str = ""
    images: tuple[ImageEntry, ...] = ()
    annotations: tuple[Any, ...] = ()
    categories: tuple[Any, ...] = ()

    @cached_property
    def image_of(self) -> Mapping[Any, ImageEntry]:
        """The images by their ids, as far as these can be used."""
        return {image.id: image for image in self.images if is_id(image.id)}

    @cached_property
    def name_of(self) -> Mapping[int, str]:
        """The categories' names by their ids, as far as these can be used."""
        found = (entry for entry in self.categories if isinstance(entry, Mapping) and is_id(entry.get("id")))
        return {entry["id"]: str(entry.get("name")) for entry in found}


def is_id(value: Any) -> bool:
    """Return whether a value is an integer."""
    return isinstance(value, int) and not isinstance(value, bool)


def read_split(
    name: str,
    images: Path,
    annotations: Path,
    *,
    decode: bool = True,
    on_image: Callable[[], object] = lambda: None,
) -> Split:
    """Read an annotation file and its pictures, several at a time; without `decode` their headers alone."""
    try:
        content = json.loads(annotations.read_bytes())
    except FileNotFoundError:
        return Split(name, annotations, "no such file")
    except OSError as error:
        return Split(name, annotations, str(error.strerror))
    except ValueError as error:
        return Split(name, annotations, f"not JSON: {error}")
    keys = ("images", "annotations", "categories")
    if not isinstance(content, Mapping):
        return Split(name, annotations, "a list, as files of detections are")
    missing = [key for key in keys if not isinstance(content.get(key), list)]
    if missing:
        return Split(name, annotations, f"no list of {' or '.join(missing)}")
    empty = [key for key in ("images", "categories") if not content[key]]
    if empty:
        return Split(name, annotations, f"no {' and no '.join(empty)} in it")

    def read(entry: Any) -> ImageEntry:
        entry = entry if isinstance(entry, Mapping) else {}
        file_name = entry.get("file_name")
        file = PictureFile(False)
        if isinstance(file_name, str) and file_name:
            file = read_picture(images / file_name, decode=decode)
        on_image()
        return ImageEntry(entry.get("id"), file_name, (entry.get("width"), entry.get("height")), file)

    # Pillow lets go of the interpreter's lock while it decodes.
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        entries = tuple(pool.map(read, content["images"]))
    return Split(name, annotations, "", entries, tuple(content["annotations"]), tuple(content["categories"]))


def read_picture(path: Path, *, decode: bool) -> PictureFile:
    """Return what is known of a file; whatever is wrong with it becomes its `error`."""
    try:
        data = path.read_bytes() if decode else b""
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return PictureFile(False)
    except OSError as error:
        return PictureFile(True, str(error.strerror))
    if not path.is_file():
        return PictureFile(False)
    try:
        with Image.open(path) as picture:
            size, turned = picture.size, picture.getexif().get(EXIF_ORIENTATION) in TURNED
            upright = (size[1], size[0]) if turned else size
            if not decode:
                return PictureFile(True, "", upright, turned)
            # An eighth of the size is decoded as strictly as the whole, in a fraction of the time.
            picture.draft("RGB", (4 * LOOK, 4 * LOOK))
            small = ImageOps.exif_transpose(picture.convert("L").resize((LOOK + 1, LOOK + 1)))
            return PictureFile(
                True, "", upright, turned, hashlib.blake2b(data, digest_size=16).hexdigest(), _look(small)
            )
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return PictureFile(True, str(error).replace(str(path), path.name))


def _look(small: Image.Image) -> int | None:
    grey = np.asarray(small, np.int16)
    steps = np.concatenate((np.diff(grey[:LOOK], axis=1), np.diff(grey[:, :LOOK], axis=0).T))
    if np.median(np.abs(steps)) < 2:
        return None  # too flat: its signs are noise
    return int.from_bytes(np.packbits(steps > 0).tobytes(), "big")


def entries_of(items: Iterable[Any]) -> list[Mapping[str, Any]]:
    """Return those of a list's items that are objects."""
    return [item for item in items if isinstance(item, Mapping)]
