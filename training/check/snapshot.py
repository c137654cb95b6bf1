"""A split as it lies on disk, read once: the annotation file's entries as they are, and facts on every image.

    split = read_split("train", Path("images"), Path("train.json"), on_image=bar.update)
    split.images[0].file.size, split.boxes[0].bbox

What is wrong with them raises no error here: it is for the checks to find.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from retinaserve.training.coco import CocoBox, CocoCategory, CocoImage, NotCoco, read_coco
from retinaserve.training.letterbox import UNREADABLE, is_sideways

# Images are compared by the signs of their horizontal and vertical gradients, 16 x 16 of each.
LOOK = 16


@dataclass(frozen=True)
class ImageFile:
    """What is known of a file: (w, h) upright, and what its content looks like where it was decoded."""

    exists: bool
    error: str = ""
    size: tuple[int, int] | None = None
    turned: bool = False  # EXIF swaps its sides
    digest: str = ""  # of the file's bytes
    look: int | None = None  # bits, equal for images that look the same; None for flat ones


@dataclass(frozen=True)
class ListedImage:
    """An image of the annotation file, and the file that it names."""

    entry: CocoImage
    file: ImageFile

    @property
    def name(self) -> str:
        """The file's name, as an example of a finding has it."""
        return str(self.entry.file_name)


@dataclass(frozen=True)
class Split:
    """An annotation file and its images; with a `problem`, everything else is empty."""

    name: str
    path: Path
    problem: str = ""
    images: tuple[ListedImage, ...] = ()
    boxes: tuple[CocoBox, ...] = ()
    categories: tuple[CocoCategory, ...] = ()

    @cached_property
    def image_of(self) -> Mapping[int, ListedImage]:
        """The images by their ids, as far as these can be used."""
        return {image.entry.id: image for image in self.images if image.entry.id is not None}

    @cached_property
    def name_of(self) -> Mapping[int, str]:
        """The categories' names by their ids, as far as these can be used."""
        return {entry.id: str(entry.raw.get("name")) for entry in self.categories if entry.id is not None}

    @cached_property
    def boxes_per_category(self) -> Counter[int]:
        """The numbers of boxes that can be learnt, those with an area, crowds apart."""
        return Counter(
            box.category_id
            for box in self.boxes
            if box.bbox and min(box.bbox[2:]) > 0 and not box.crowd
            if box.category_id is not None and box.category_id in self.name_of
        )

    @cached_property
    def empty_images(self) -> tuple[ListedImage, ...]:
        """The images with a usable id that no annotation belongs to."""
        not_empty = {None, *(box.image_id for box in self.boxes)}
        return tuple(image for image in self.images if image.entry.id not in not_empty)


def read_split(
    name: str,
    images: Path,
    annotations: Path,
    *,
    decode: bool = True,
    on_image: Callable[[], object] = lambda: None,
) -> Split:
    """Read an annotation file and its images, several at a time; without `decode` their headers alone."""
    try:
        content = read_coco(annotations)
    except NotCoco as error:
        return Split(name, annotations, error.problem)
    empty = [key for key in ("images", "categories") if not getattr(content, key)]
    if empty:
        return Split(name, annotations, f"no {' and no '.join(empty)} in it")

    def read(entry: CocoImage) -> ListedImage:
        file = read_image(images / entry.file_name, decode=decode) if entry.file_name else ImageFile(False)
        on_image()
        return ListedImage(entry, file)

    # Pillow lets go of the interpreter's lock while it decodes.
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        listed = tuple(pool.map(read, content.images))
    return Split(name, annotations, "", listed, content.boxes, content.categories)


def read_image(path: Path, *, decode: bool) -> ImageFile:
    """Return what is known of a file; whatever is wrong with it becomes its `error`."""
    try:
        data = path.read_bytes() if decode else b""
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return ImageFile(False)
    except OSError as error:
        return ImageFile(True, str(error.strerror))
    if not path.is_file():
        return ImageFile(False)
    try:
        with Image.open(path) as image:
            size, turned = image.size, is_sideways(image)
            upright = (size[1], size[0]) if turned else size
            if not decode:
                return ImageFile(True, "", upright, turned)
            # An eighth of the size is decoded as strictly as the whole, in a fraction of the time.
            image.draft("RGB", (4 * LOOK, 4 * LOOK))
            small = ImageOps.exif_transpose(image.convert("L").resize((LOOK + 1, LOOK + 1)))
            return ImageFile(
                True, "", upright, turned, hashlib.blake2b(data, digest_size=16).hexdigest(), _look(small)
            )
    except UNREADABLE as error:
        return ImageFile(True, str(error).replace(str(path), path.name))


def _look(small: Image.Image) -> int | None:
    grey = np.asarray(small, np.int16)
    steps = np.concatenate((np.diff(grey[:LOOK], axis=1), np.diff(grey[:, :LOOK], axis=0).T))
    if np.median(np.abs(steps)) < 2:
        return None  # too flat: its signs are noise
    return int.from_bytes(np.packbits(steps > 0).tobytes(), "big")
