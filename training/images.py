"""From what a user types to the image files it means.

    find_images(["photos", "more/*.jpg", "one.png"])

Files are taken as they are named; directories (with all below them) and patterns give the files with the
suffix of an image. Nothing is opened.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from glob import glob, has_magic
from pathlib import Path

from retinaserve.training.errors import UserError

SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp", ".tif", ".tiff"})


def find_images(places: Sequence[str | Path]) -> list[Path]:
    """Return the images that files, directories and patterns mean, each once, in natural order.

    The order of `places` is kept. Raises UserError for a place that does not exist or has no images.
    """
    found: dict[Path, None] = {}
    for place in places:
        found.update(dict.fromkeys(_images_of(str(place))))
    if not found:
        raise UserError("no images are given", "files, directories or patterns like 'photos/**/*.jpg'")
    return list(found)


def natural_key(path: Path) -> list[tuple[int, int, str]]:
    """Return a sort key that puts 2.jpg before 10.jpg."""
    parts = re.split(r"(\d+)", str(path).casefold())
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts]


def _images_of(place: str) -> Iterable[Path]:
    path = Path(place).expanduser()
    if path.is_file():  # also one whose name has the brackets of a pattern
        return [path]
    if path.is_dir():
        images = _images(path.rglob("*"))
        if not images:
            raise UserError(f"{place}: no images in this directory", f"suffixes: {_suffixes()}")
        return images
    if not has_magic(place):
        raise UserError(f"{place}: no such file or directory")
    # Path.glob takes no pattern that starts at the root.
    matches = glob(str(path), recursive=True)  # noqa: PTH207
    images = _images(Path(match) for match in matches)
    if not images:
        raise UserError(f"{place}: the pattern matches no images", f"suffixes: {_suffixes()}")
    return images


def _images(paths: Iterator[Path]) -> list[Path]:
    images = (path for path in paths if path.suffix.lower() in SUFFIXES and path.is_file())
    return sorted(images, key=natural_key)


def _suffixes() -> str:
    return " ".join(sorted(SUFFIXES))
