"""The image files of an evaluation: those that an annotation file names, and what is in them.

files = annotated_files(Annotations.load(path), Path("val/images"))
answers = detector.predict_many(read_files(files.values()))
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from retinaserve.training.coco import Annotations
from retinaserve.training.detections import ImageError
from retinaserve.training.errors import UserError

T = TypeVar("T")


def annotated_files(truth: Annotations, folder: Path) -> dict[int, Path]:
    """Return the file of each image of an annotation file, by id. Raises UserError when some are not there."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such directory", f"the images that {truth.path} names are expected there")
    files = {image_id: folder / name for image_id, name in truth.images.items()}
    if not files:
        raise UserError(f"{truth.path} names no images")
    missing = [name for image_id, name in truth.images.items() if not files[image_id].is_file()]
    if missing:
        raise UserError(
            f"{len(missing)} of the {len(files)} images named in {truth.path} are not in {folder}",
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
