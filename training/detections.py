"""The types at every boundary: what a detector answers for one image, and what it is.

Detections(boxes, scores, classes)      # arrays of N rows, best score first
ImageError("truncated JPEG", "bad_image")
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, Self

import numpy as np
import numpy.typing as npt

from retinaserve.training.errors import UserError
from retinaserve.training.spec import BOXES, CLASSES, LETTERBOX, NUM_DETECTIONS, SCORES

__all__ = ["Detections", "Detector", "ImageError"]

TAKEN = (NUM_DETECTIONS, BOXES, SCORES, CLASSES, LETTERBOX)  # what Detections are made from
ErrorKind = Literal["bad_image", "overloaded", "timeout", "server"]


@dataclass(frozen=True, eq=False)
class Detections:
    """An image's boxes: (N, 4) float32 xyxy in its own pixels, with scores (N,) and classes (N,)."""

    boxes: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]
    classes: npt.NDArray[np.int32]
    size: tuple[int, int] | None = None  # height, width of the image after its EXIF orientation
    track_ids: npt.NDArray[np.int64] | None = None  # (N,), of a video's frame: its objects, -1 where not known

    def __post_init__(self) -> None:
        count = len(self.scores)
        if self.boxes.shape != (count, 4) or self.classes.shape != (count,):
            shapes = f"{self.boxes.shape}, {self.scores.shape}, {self.classes.shape}"
            raise ValueError(f"boxes, scores, classes of shape {shapes} do not belong together")

    def __len__(self) -> int:
        return len(self.scores)

    def above(self, score: float) -> Self:
        """Return the detections whose score is at least `score`."""
        return self.keep(self.scores >= score)

    def keep(self, rows: npt.NDArray[np.bool_]) -> Self:
        """Return the detections of a mask (N,)."""
        ids = None if self.track_ids is None else self.track_ids[rows]
        return replace(
            self, boxes=self.boxes[rows], scores=self.scores[rows], classes=self.classes[rows], track_ids=ids
        )

    @classmethod
    def from_slots(
        cls,
        count: int,
        boxes: npt.ArrayLike,
        scores: npt.ArrayLike,
        classes: npt.ArrayLike,
        *,
        size: tuple[int, int] | None = None,
    ) -> Self:
        """Cut a model's fixed-size slots (K, 4), (K,), (K,) to the `count` that are filled."""
        return cls(
            np.asarray(boxes, np.float32)[:count],
            np.asarray(scores, np.float32)[:count],
            np.asarray(classes, np.int32)[:count],
            size,
        )

    @classmethod
    def of_outputs(cls, row: Mapping[str, npt.NDArray[Any]]) -> Self:
        """Return an image's detections of its row of each tensor of TAKEN."""
        size = (int(row[LETTERBOX][0]), int(row[LETTERBOX][1]))
        return cls.from_slots(int(row[NUM_DETECTIONS][0]), row[BOXES], row[SCORES], row[CLASSES], size=size)

    @classmethod
    def none(cls) -> Self:
        """Return the answer without a box: what scoring takes an image for that could not be answered."""
        return cls.from_slots(0, np.empty((0, 4)), [], [])


@dataclass(frozen=True)
class ImageError:
    """Why one image has no detections: a value, so that one bad image never loses the others."""

    message: str
    kind: ErrorKind = "bad_image"


def answered(answer: Detections | ImageError, number: int) -> Detections:
    """Return an answer that has to be one. Raises UserError, by the image's number counted from 1."""
    if isinstance(answer, ImageError):
        raise UserError(f"image {number}: {answer.message}")
    return answer


class Detector(Protocol):
    """Anything that answers boxes for encoded images: torch, ONNX, TensorRT or a Triton server."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """The name of each class index."""

    @property
    def category_ids(self) -> tuple[int, ...]:
        """The COCO category of each class index."""

    def predict(self, images: Sequence[bytes]) -> list[Detections]:
        """Return the detections of each encoded image, in order. Raises UserError for a bad image."""

    def predict_many(self, images: Iterable[bytes | ImageError]) -> Iterator[Detections | ImageError]:
        """Yield an answer an image, in order, reading `images` only as far as needed.

        An ImageError among `images` (a file that could not be read) is passed on in its place.
        """
