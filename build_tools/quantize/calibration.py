"""The pictures a quantization is calibrated with: drawn from the whole set, prepared as they are served.

    pictures = draw_pictures(Path("train/"), spec, count=300, seed=0)     # or a COCO JSON
    pictures.images, pictures.unreadable, pictures.digest

Every picture goes through the serving pipeline at the graph's size. Files that can't be read are named and
replaced by others of the set; a set without a readable picture is refused. Nothing is ever made up.
"""

import hashlib
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from retinaserve.build_tools.preprocess import BadImage, Preprocessor
from retinaserve.training.coco import read_coco
from retinaserve.training.errors import UserError
from retinaserve.training.images import SUFFIXES
from retinaserve.training.spec import DetectorSpec

DECODED_AT_ONCE = 16
SHOWN = 3


@dataclass(frozen=True)
class Picture:
    """A file of the set: its name within the set, and the hash of its bytes."""

    name: str
    sha256: str


@dataclass(frozen=True, eq=False)
class Pictures:
    """What was drawn: `images` uint8 (N, 3, H, W) RGB, letterboxed; `drawn` names them in the same order."""

    source: Path
    seed: int
    available: int  # files of the set
    images: npt.NDArray[np.uint8]
    drawn: tuple[Picture, ...]
    unreadable: dict[str, str]  # name: why

    @property
    def digest(self) -> str:
        """The hash of the prepared pictures, whatever their names and their order on disk."""
        return hashlib.sha256(self.images.tobytes()).hexdigest()

    def record(self) -> dict[str, Any]:
        """Return the list for JSON, with its hash."""
        return {
            "source": str(self.source),
            "available": self.available,
            "seed": self.seed,
            "count": len(self.drawn),
            "sha256": self.digest,
            "images": [{"file": picture.name, "sha256": picture.sha256} for picture in self.drawn],
            "unreadable": [{"file": name, "reason": reason} for name, reason in self.unreadable.items()],
        }


def draw_pictures(source: Path, spec: DetectorSpec, *, count: int, seed: int = 0) -> Pictures:
    """Return `count` pictures of a folder or a COCO JSON at the spec's size, or all where there are fewer.

    Raises UserError where there are none, or none of them can be read.
    """
    files = picture_files(source)
    names = sorted(files)
    random.Random(seed).shuffle(names)  # before the cut: the first files of a folder are often of one kind
    preprocessor = Preprocessor(spec.size, spec.pad_value, max_batch=DECODED_AT_ONCE)
    images: list[npt.NDArray[np.uint8]] = []
    drawn: list[Picture] = []
    unreadable: dict[str, str] = {}
    rest = iter(names)
    while len(drawn) < count and (chunk := list(islice(rest, min(DECODED_AT_ONCE, count - len(drawn))))):
        for name, sha256, prepared in _prepare(preprocessor, files, chunk, unreadable):
            images.append(prepared)
            drawn.append(Picture(name, sha256))
    if not drawn:
        first = [f"{name}: {reason}" for name, reason in islice(unreadable.items(), SHOWN)]
        raise UserError(
            f"{source}: none of its {len(files)} pictures can be read", f"the first are: {'; '.join(first)}"
        )
    return Pictures(source, seed, len(files), np.stack(images), tuple(drawn), unreadable)


def picture_files(source: Path) -> dict[str, Path]:
    """Return the picture files of a folder, with all below it, or of a COCO JSON, by name. Raises UserError.

    The pictures of a JSON lie beside it, in `images` beside it, or in `images` beside its folder.
    """
    if source.is_dir():
        found = (path for path in source.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
        files = {path.relative_to(source).as_posix(): path for path in found}
        if not files:
            raise UserError(
                f"{source}: no pictures to calibrate with in this folder",
                f"suffixes: {' '.join(sorted(SUFFIXES))}",
            )
        return files
    if not source.is_file():
        raise UserError(
            f"{source}: no such folder or file",
            "quantization needs real pictures: a folder of them, or a COCO JSON that names them",
        )
    names = _coco_names(source)
    folders = (source.parent, source.parent / "images", source.parent.parent / "images")
    for folder in folders:
        files = {name: folder / name for name in names if (folder / name).is_file()}
        if files:
            return files
    raise UserError(
        f"{source}: none of the {len(names)} pictures it names is there",
        f"looked in {', '.join(map(str, dict.fromkeys(folders)))}; pictures elsewhere: name their folder instead",
    )


def _coco_names(source: Path) -> list[str]:
    names = [image.file_name for image in read_coco(source, lists=("images",), convert=True).images]
    if not names or None in names:
        raise UserError(f"{source} names no images", "`images` that have a `file_name` are expected")
    return [name for name in names if name]


def _prepare(
    preprocessor: Preprocessor, files: dict[str, Path], names: Iterable[str], unreadable: dict[str, str]
) -> Iterator[tuple[str, str, npt.NDArray[np.uint8]]]:
    """Yield name, hash and image of the readable ones, and add the others to `unreadable`."""
    encoded: dict[str, bytes] = {}
    for name in names:
        try:
            encoded[name] = files[name].read_bytes()
        except OSError as error:
            unreadable[name] = f"the file can't be read: {error.strerror}"
    for (name, data), result in zip(encoded.items(), preprocessor.run(list(encoded.values())), strict=True):
        if isinstance(result, BadImage):
            unreadable[name] = result.message
        else:
            yield name, hashlib.sha256(data).hexdigest(), result.image
