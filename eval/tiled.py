"""Any detector on images larger than its input: cut into tiles, asked for many at a time, merged into one answer.

    with Client("localhost:8001") as client:
        detector = TiledDetector(client, Tiling(tile=(640, 640)))
        (found,) = detector.predict([Path("survey.tif")])       # the same: client.predict([path], tile=(640, 640))

It is a Detector itself, of paths as well as of bytes. Tiles are read as the detector asks for them and are sent as
uncompressed BMP, so that no pixel changes on the way. The rule of the merge is in plugins/tiles.py.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from retinaserve.plugins.tiles import OVERLAP, encode_bmp, merge_tiles, tile_windows
from retinaserve.training.detections import Detections, Detector, ImageError, answered
from retinaserve.training.errors import Exit, UserError
from retinaserve.training.images.raster import Windows, open_raster
from retinaserve.training.images.sources import read_files

__all__ = ["TiledDetector", "Tiling"]

Source = Path | bytes | ImageError
SMALLEST = 32  # px, the side of a tile
MOST_OVERLAP = 0.9


class Sized(Detector, Protocol):
    """A detector that knows its input."""

    @property
    def tile_size(self) -> tuple[int, int]:
        """(h, w) of the tiles it was trained on, or of its input. Raises UserError where that is not known."""


@dataclass(frozen=True)
class Tiling:
    """How images are cut.

    tile: (h, w) in the image's pixels, None for the detector's own size; overlap: the share of its side that two
    neighbours have in common, at least as large as the objects; whole: ask for the whole image too, for objects
    larger than a tile.
    """

    tile: tuple[int, int] | None = None
    overlap: float = OVERLAP
    whole: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.overlap <= MOST_OVERLAP:
            raise UserError(f"an overlap of {self.overlap:g} is not in 0 to {MOST_OVERLAP}", code=Exit.USAGE)
        if self.tile and min(self.tile) < SMALLEST:
            message = f"a tile of {self.tile[0]} x {self.tile[1]} pixels is too small"
            raise UserError(message, f"a side has at least {SMALLEST}", code=Exit.USAGE)


def answers_of(detector: Detector, files: Iterable[Path]) -> Iterator[Detections | ImageError]:
    """Yield a detector's answer for each file; a tiled one reads them itself, a recorded one does not need to."""
    if getattr(detector, "of_files", False):
        return detector.predict_many(files)  # type: ignore[arg-type]
    return detector.predict_many(read_files(files))


@dataclass
class _Job:
    """One image under way: its windows, and what was answered for them."""

    answer: ImageError | None = None  # why it has none
    size: tuple[int, int] = (0, 0)
    windows: Windows = field(default_factory=lambda: np.empty((0, 4), np.int64))
    parts: list[tuple[int, Detections]] = field(default_factory=list)  # by window
    asked: int = 0
    answered: int = 0
    complete: bool = False  # all of it was read

    def take(self, window: int, answer: Detections | ImageError) -> None:
        self.answered += 1
        if isinstance(answer, Detections):
            self.parts.append((window, answer))
        elif self.answer is None:
            x, y = self.windows[window, :2]
            self.answer = ImageError(f"the tile at x {x}, y {y}: {answer.message}", answer.kind)

    def merged(self) -> Detections | ImageError:
        if self.answer is not None:
            return self.answer
        if not self.parts:
            return replace(Detections.none(), size=self.size)
        placed = []
        for window, part in self.parts:
            x1, y1, x2, y2 = self.windows[window]
            height, width = part.size or (y2 - y1, x2 - x1)  # the whole image was sent smaller than it is
            scale = np.array([(x2 - x1) / width, (y2 - y1) / height] * 2, np.float32)
            placed.append(part.boxes * scale + np.array([x1, y1, x1, y1], np.float32))
        boxes, scores, classes = merge_tiles(
            self.windows,
            np.concatenate(placed),
            np.concatenate([part.scores for _, part in self.parts]),
            np.concatenate([part.classes for _, part in self.parts]),
            np.repeat([window for window, _ in self.parts], [len(part) for _, part in self.parts]),
            size=self.size,
        )
        return Detections(boxes, scores, classes, self.size)


class TiledDetector:
    """A Detector of images of any size; `on_tile(answered, known)` is called after each tile."""

    of_files = True  # answers paths as well as bytes

    def __init__(
        self, detector: Sized, tiling: Tiling | None = None, *, on_tile: Callable[[int, int], object] | None = None
    ) -> None:
        """Raises UserError where the tile is left to a detector that does not know its size."""
        self.detector = detector
        self.tiling = tiling or Tiling()
        self.tile = self.tiling.tile or detector.tile_size
        self.on_tile = on_tile or (lambda answered, known: None)
        self._known = self._answered = 0

    @property
    def class_names(self) -> tuple[str, ...]:
        """The name of each class index."""
        return self.detector.class_names

    @property
    def category_ids(self) -> tuple[int, ...]:
        """The COCO category of each class index."""
        return self.detector.category_ids

    def predict(self, images: Sequence[Path | bytes]) -> list[Detections]:
        """Return the detections of each image, in order. Raises UserError for the first bad one."""
        return [answered(answer, number) for number, answer in enumerate(self.predict_many(images), 1)]

    def predict_many(self, images: Iterable[Source]) -> Iterator[Detections | ImageError]:
        """Yield an answer per image, in order; tiles of the next are sent before all of one are answered."""
        jobs: deque[_Job] = deque()
        sent: deque[tuple[_Job, int]] = deque()

        def tiles() -> Iterator[bytes]:
            for image in images:
                job = _Job(answer=image if isinstance(image, ImageError) else None)
                jobs.append(job)
                if not isinstance(image, ImageError):
                    for window, encoded in self._tiles(image, job):
                        sent.append((job, window))
                        job.asked += 1
                        yield encoded
                job.complete = True

        for answer in self.detector.predict_many(tiles()):
            job, window = sent.popleft()
            job.take(window, answer)
            self._answered += 1
            self.on_tile(self._answered, self._known)
            while jobs and jobs[0].complete and jobs[0].answered == jobs[0].asked:
                yield jobs.popleft().merged()
        while jobs:
            yield jobs.popleft().merged()

    def _tiles(self, image: Path | bytes, job: _Job) -> Iterator[tuple[int, bytes]]:
        """Yield the encoded windows of an image by their number; what can't be read becomes the job's answer."""
        try:
            with open_raster(image) as raster:
                job.size = raster.size
                job.windows = tile_windows(raster.size, self.tile, self.tiling.overlap)
                count = len(job.windows)
                if count == 1:  # as it is
                    self._known += 1
                    yield 0, image.read_bytes() if isinstance(image, Path) else image
                    return
                whole = self.tiling.whole
                self._known += count + whole
                if whole:
                    job.windows = np.concatenate((job.windows, [[0, 0, raster.size[1], raster.size[0]]]))
                    yield count, encode_bmp(np.asarray(raster.reduced()))
                for number, pixels in enumerate(raster.windows(job.windows[:count])):
                    if pixels is None:  # no data there
                        self._known -= 1
                    else:
                        yield number, encode_bmp(pixels)
        except UserError as error:
            message = error.message.removeprefix(f"{image}: ") if isinstance(image, Path) else error.message
            job.answer = ImageError(message)
