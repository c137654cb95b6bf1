"""Which detection found which box: what pycocotools decided while it scored, flattened for everything beyond AP.

    scores = evaluate(truth, results, category_ids)
    scores.matches.of_class[0].matched[IOU_50]      # which of the class's detections are right at IoU 0.5

Nothing is matched here; COCOeval did (all areas, 100 detections an image). Places, not ids: the n-th image in the
order of ids, the n-th category of the file, the n-th row of the result list.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, eq=False)
class ClassMatches:
    """One category's detections, best score first as COCOeval orders them, and where its boxes are."""

    row: npt.NDArray[np.int64]  # (D,) place in the result list
    image: npt.NDArray[np.int64]  # (D,) place of the image
    score: npt.NDArray[np.float64]  # (D,)
    matched: npt.NDArray[np.bool_]  # (10, D) at each IoU: found a box nobody had found
    ignored: npt.NDArray[np.bool_]  # (10, D) neither right nor wrong: it lies on a crowd
    truth_id: npt.NDArray[np.int64]  # (D,) annotation found at IoU 0.5, 0 for none
    instances: npt.NDArray[np.int64]  # (N,) boxes in each image, crowds left out


@dataclass(frozen=True, eq=False)
class Matches:
    """All categories' matches, in the file's order of categories."""

    image_ids: tuple[int, ...]  # sorted
    of_class: tuple[ClassMatches, ...]

    @classmethod
    def of(cls, judge: Any, order: Sequence[int]) -> Self:
        """Read them from a COCOeval after `evaluate()`; `order` is each category's place in COCOeval's list."""
        image_ids = tuple(int(image_id) for image_id in judge.params.imgIds)
        areas, count = len(judge.params.areaRng), len(image_ids)
        starts = [place * areas * count for place in order]  # evalImgs is (K, A, N), "all" the first area
        classes = (_class_matches(judge.evalImgs[start : start + count]) for start in starts)
        return cls(image_ids, tuple(classes))


def _class_matches(images: Sequence[dict[str, Any] | None]) -> ClassMatches:
    known = [(place, item) for place, item in enumerate(images) if item is not None]
    score = _joined([np.asarray(item["dtScores"], np.float64) for _, item in known], np.float64)
    order = np.argsort(-score, kind="mergesort")  # as COCOeval.accumulate, so that ties fall alike
    instances = np.zeros(len(images), np.int64)
    for place, item in known:
        instances[place] = np.count_nonzero(np.asarray(item["gtIgnore"]) == 0)
    found = _joined([item["dtMatches"] for _, item in known], np.float64, rows=10)[:, order]
    ignored = _joined([item["dtIgnore"] for _, item in known], np.bool_, rows=10)[:, order]
    return ClassMatches(
        row=_joined([np.asarray(item["dtIds"], np.int64) - 1 for _, item in known], np.int64)[order],
        image=_joined([np.full(len(item["dtIds"]), place) for place, item in known], np.int64)[order],
        score=score[order],
        matched=(found > 0) & ~ignored,
        ignored=ignored,
        truth_id=found[0].astype(np.int64),
        instances=instances,
    )


def _joined(parts: Sequence[npt.NDArray[Any]], kind: type, *, rows: int = 0) -> npt.NDArray[Any]:
    empty: npt.NDArray[Any] = np.empty((rows, 0) if rows else 0, kind)
    return np.concatenate([empty, *(part.astype(kind) for part in parts)], axis=-1)
