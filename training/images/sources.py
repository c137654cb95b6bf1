"""Image files: those that a user's words mean, or that an annotation file names, and what is in them.

files = find_images(["photos", "more/*.jpg", "one.png"])
files = annotated_files(Annotations.load(path), Path("val/images"))
answers = detector.predict_many(read_files(files.values()))
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from glob import glob, has_magic
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from retinaserve.training.detections import ImageError
from retinaserve.training.errors import UserError
from retinaserve.training.images.letterbox import SUFFIXES

if TYPE_CHECKING:
    # A client reads no labels, and need not wait for their readers.
    from retinaserve.training.coco import Annotations

T = TypeVar("T")
SHOWN = 4  # kinds of files that were left out
NAMED = f"suffixes: {' '.join(sorted(SUFFIXES))}"


def find_images(places: Sequence[str | Path], *, left_out: Callable[[str], object] = lambda _: None) -> list[Path]:
    """Return the images that files, directories and patterns mean, each once, in natural order.

    Files are taken as they are named; directories (with all below them) and patterns give the files with the
    suffix of an image; `left_out` is told in a line of others that are there. The order of `places` stays. Raises
    UserError for a place that does not exist or has no images.
    """
    found: dict[Path, None] = {}
    others: Counter[str] = Counter()
    for place in places:
        found.update(dict.fromkeys(_images_of(str(place), others)))
    if others:
        kinds = [f"{count} {suffix}" for suffix, count in others.most_common(SHOWN)]
        rest = f" and {others.total() - sum(count for _, count in others.most_common(SHOWN))} more"
        names = ", ".join(kinds) + rest * (len(others) > SHOWN)
        left_out(f"files left out, by their names no images: {names}")
    if not found:
        raise UserError("no images are given", "files, directories or patterns like 'photos/**/*.jpg'")
    return list(found)


def annotated_files(truth: "Annotations", folder: Path) -> dict[int, Path]:
    """Return the file of each image of an annotation file, by id. Raises UserError when some are not there."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such directory", f"the images that {truth.path} names are expected there")
    files = {image_id: folder / name for image_id, name in truth.images.items()}
    if not files:
        raise UserError(f"{truth.path} names no images")
    missing = [name for image_id, name in truth.images.items() if not files[image_id].is_file()]
    if missing:
        raise UserError(
            f"{len(missing)} of the {len(files)} images named in {truth.path} are not in {folder} [image-missing]",
            f"the first are: {', '.join(missing[:3])}",
        )
    return files


def read_files(files: Iterable[Path]) -> Iterator[bytes | ImageError]:
    """Yield what is in the files, one at a time; a file that can't be read gives its ImageError."""
    for path in files:
        try:
            yield path.read_bytes()
        except OSError as error:
            yield ImageError(f"the file can't be read: {error.strerror or error}")


def spread(items: Sequence[T], most: int) -> list[T]:
    """Return at most `most` of the items, evenly spread and always the same."""
    count = min(most, len(items))
    return [items[index * len(items) // count] for index in range(count)]


def natural_key(path: Path) -> list[tuple[int, int, str]]:
    """Return a sort key that puts 2.jpg before 10.jpg."""
    parts = re.split(r"(\d+)", str(path).casefold())
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts]


def _images_of(place: str, others: Counter[str]) -> Iterable[Path]:
    path = Path(place).expanduser()
    if path.is_file():  # also one whose name has the brackets of a pattern
        return [path]
    if path.is_dir():
        images = _images(path.rglob("*"), others)
        if not images:
            raise UserError(f"{place}: no images in this directory", NAMED)
        return images
    if not has_magic(place):
        raise UserError(f"{place}: no such file or directory")
    # Path.glob takes no pattern that starts at the root.
    matches = glob(str(path), recursive=True)  # noqa: PTH207
    images = _images((Path(match) for match in matches), others)
    if not images:
        raise UserError(f"{place}: the pattern matches no images", NAMED)
    return images


def _images(paths: Iterator[Path], others: Counter[str]) -> list[Path]:
    images = []
    for path in paths:
        if not path.is_file():
            continue
        if path.suffix.lower() in SUFFIXES:
            images.append(path)
        else:
            others[path.suffix.lower() or "without a suffix"] += 1
    return sorted(images, key=natural_key)
