"""The one type at every boundary: what a detector answers for one picture.

Detections(boxes, scores, classes)      # arrays of N rows, best score first
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, eq=False)
class Detections:
    """One picture's boxes: (N, 4) float32 xyxy in its own pixels, with scores (N,) and classes (N,)."""

    boxes: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]
    classes: npt.NDArray[np.int32]

    def __post_init__(self) -> None:
        count = len(self.scores)
        if self.boxes.shape != (count, 4) or self.classes.shape != (count,):
            shapes = f"{self.boxes.shape}, {self.scores.shape}, {self.classes.shape}"
            raise ValueError(f"boxes, scores, classes of shape {shapes} do not belong together")

    def __len__(self) -> int:
        return len(self.scores)

    def above(self, score: float) -> Self:
        """Return the detections whose score is at least `score`."""
        keep = self.scores >= score
        return type(self)(self.boxes[keep], self.scores[keep], self.classes[keep])

    @classmethod
    def from_slots(
        cls, count: int, boxes: npt.ArrayLike, scores: npt.ArrayLike, classes: npt.ArrayLike
    ) -> Self:
        """Cut a model's fixed-size slots (K, 4), (K,), (K,) to the `count` that are filled."""
        return cls(
            np.asarray(boxes, np.float32)[:count],
            np.asarray(scores, np.float32)[:count],
            np.asarray(classes, np.int32)[:count],
        )


class Detector(Protocol):
    """Anything that answers boxes for encoded pictures: torch, ONNX, TensorRT or a Triton server."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """The name of each class index."""

    @property
    def category_ids(self) -> tuple[int, ...]:
        """The COCO category of each class index."""

    def predict(self, images: Sequence[bytes]) -> list[Detections]:
        """Return the detections of each encoded picture, in order."""
