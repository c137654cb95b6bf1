"""A split as it lies on disk, read once: its labels, and facts on every image file.

    split = read_split("train", Path("images"), Path("train.json"), on_image=bar.update)
    split.files[7].size, split.labels.boxes[0]["bbox"]

What is wrong with them raises no error here: it is for the checks to find.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from retinaserve.training import pixels
from retinaserve.training.coco import Annotations, read_labels
from retinaserve.training.errors import UserError
from retinaserve.training.images.letterbox import SIDEWAYS, read_header

# Images are compared by the signs of their horizontal and vertical gradients, 16 x 16 of each.
LOOK = 16
NOTHING = Annotations(Path(), {}, {}, ())


@dataclass(frozen=True)
class ImageFile:
    """What is known of a file: (w, h) upright, and what its content looks like where it was decoded."""

    exists: bool
    error: str = ""
    size: tuple[int, int] | None = None
    turned: bool = False  # EXIF swaps its sides
    digest: str = ""  # of the file's bytes
    look: int | None = None  # bits, equal for images that look the same; None for flat ones
    dispute: str = ""  # what its metadata disagrees on about its orientation
    levels: tuple[int, int] | None = None  # the least and the largest of samples of more than 8 bits
    depth: int = 8
    refused: str = ""  # why a server that is built by default would not take it


@dataclass(frozen=True)
class Split:
    """A label file and the image files it names; with a `problem`, everything else is empty."""

    name: str
    path: Path
    problem: str = ""
    hint: str = ""
    labels: Annotations = NOTHING
    files: Mapping[int, ImageFile] = field(default_factory=dict)  # by the image's id

    @cached_property
    def boxes_per_category(self) -> Counter[int]:
        """The numbers of boxes that can be learnt: all but crowds."""
        return Counter(box["category_id"] for box in self.labels.boxes if not box["iscrowd"])

    @cached_property
    def empty_images(self) -> tuple[str, ...]:
        """The names of the images that no box belongs to."""
        not_empty = {box["image_id"] for box in self.labels.boxes}
        return tuple(name for number, name in self.labels.images.items() if number not in not_empty)


def read_split(
    name: str,
    images: Path,
    annotations: Path,
    *,
    split: str = "train",
    decode: bool = True,
    on_image: Callable[[], object] = lambda: None,
) -> Split:
    """Read a label file and its images, several at a time; without `decode` their headers alone."""
    try:
        labels = read_labels(annotations, images, split=split)
    except UserError as error:
        message = error.message.removeprefix(f"{annotations}: ").removesuffix(" [file-unreadable]")
        return Split(name, annotations, message, error.hint)

    def read(file_name: str) -> ImageFile:
        file = read_image(images / file_name, decode=decode)
        on_image()
        return file

    # Pillow lets go of the interpreter's lock while it decodes.
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        files = dict(zip(labels.images, pool.map(read, labels.images.values()), strict=True))
    return Split(name, annotations, labels=labels, files=files)


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
        header = read_header(path)
        size = (header.upright[1], header.upright[0])
        found = ImageFile(
            True,
            size=size,
            turned=header.orientation.value in SIDEWAYS,
            dispute=header.orientation.dispute,
            depth=header.depth,
            refused=_beyond(path.stat().st_size, size),
        )
        if not decode:
            return found
        if header.depth > 8:
            samples = pixels.samples(data)
            found = replace(found, levels=(int(samples.min()), int(samples.max())))
        # A part of the size is decoded as strictly as the whole, in a fraction of the time.
        image = Image.fromarray(np.ascontiguousarray(pixels.decode(data, side=4 * LOOK)))
        look = _look(image.convert("L").resize((LOOK + 1, LOOK + 1)))
        return replace(found, digest=hashlib.blake2b(data, digest_size=16).hexdigest(), look=look)
    except UserError as error:
        return ImageFile(True, error.message.removeprefix(f"{path}: the image can't be read: "))
    except OSError as error:
        return ImageFile(True, str(error))


def _beyond(size: int, sides: tuple[int, int]) -> str:
    if size > pixels.MAX_BYTES:
        return f"{size / 2**20:.1f} MiB"
    return f"{sides[0]} x {sides[1]} pixels" if sides[0] * sides[1] > pixels.MAX_PIXELS else ""


def _look(small: Image.Image) -> int | None:
    grey = np.asarray(small, np.int16)
    steps = np.concatenate((np.diff(grey[:LOOK], axis=1), np.diff(grey[:, :LOOK], axis=0).T))
    if np.median(np.abs(steps)) < 2:
        return None  # too flat: its signs are noise
    return int.from_bytes(np.packbits(steps > 0).tobytes(), "big")
