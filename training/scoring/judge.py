"""The judges of detections: hotcoco, and pycocotools, which it is held to and which stands in for it.

    judge = Judge(labels, found, image_ids, category_ids)
    judge.curves().precision                # (10, 101, K, 4, 3): IoU, recall, category, area, limit
    judge.matches()[3].matched              # (10, D) of the fourth category

Boxes name images and categories by their places in the two lists of ids; images are sorted, because ties fall by
their order. hotcoco takes columns and decides in Rust. Its curves are pycocotools' to the last bit, which a test
holds; its own means are not, so they are not used.
"""

import contextlib
import importlib.util
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import chain
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

JudgeName = Literal["hotcoco", "pycocotools"]
MAX_DETECTIONS = (1, 10, 100)  # of COCO: of each category in an image, the best scores first
AREAS = {"all": (0.0, 1e10), "small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}
IOUS = 10  # of COCO: 0.50, 0.55 ... 0.95
BLOCK = 500  # images whose matches are Python's objects at a time: 100 MB at 100 detections each

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Boxes:
    """Boxes as columns."""

    image: Ints  # (N,) places
    category: Ints  # (N,) places
    boxes: Floats  # (N, 4) x, y, width, height

    def __len__(self) -> int:
        return len(self.image)

    def at(self, places: Ints | Bools) -> Self:
        """Return some of them."""
        return replace(self, **{item.name: getattr(self, item.name)[places] for item in fields(self)})


@dataclass(frozen=True, eq=False)
class Labels(Boxes):
    """The labelled boxes, in the order of the file."""

    area: Floats  # (N,)
    crowd: Bools  # (N,)


@dataclass(frozen=True, eq=False)
class Found(Boxes):
    """The detections, in the order of the result list."""

    score: Floats  # (N,)


@dataclass(frozen=True, eq=False)
class Curves:
    """What COCOeval accumulates, -1 where there is nothing to find."""

    precision: Floats  # (T, 101, K, A, M)
    recall: Floats  # (T, K, A, M)


@dataclass(frozen=True, eq=False)
class ClassMatches:
    """One category's detections, best score first as COCOeval orders them, and where its boxes are."""

    row: Ints  # (D,) place in the result list
    image: Ints  # (D,) place of the image
    score: Floats  # (D,)
    matched: Bools  # (10, D) at each IoU: found a box nobody had found
    ignored: Bools  # (10, D) neither right nor wrong: it lies on a crowd
    label: Ints  # (D,) place of the box found at IoU 0.5, -1 for none
    instances: Ints  # (N,) boxes in each image, crowds left out


@dataclass(frozen=True, eq=False)
class Judge:
    """Labels and detections before a judge; `name` None is hotcoco where it is installed."""

    labels: Labels
    found: Found
    image_ids: tuple[int, ...]  # sorted
    category_ids: tuple[int, ...]  # in the file's order
    name: JudgeName | None = None

    def curves(
        self,
        *,
        limits: Sequence[int] = MAX_DETECTIONS,
        ious: Sequence[float] = (),
        areas: Sequence[str] = tuple(AREAS),
    ) -> Curves:
        """Return the curves at limits of detections, IoUs (COCO's ten where none are given) and areas."""
        evaluator = self._evaluator(self.labels, self.found, range(len(self.image_ids)))
        params = evaluator.params
        params.maxDets = list(limits)
        params.areaRng, params.areaRngLbl = [list(AREAS[name]) for name in areas], list(areas)
        if ious:
            params.iouThrs = np.array(ious)
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
            evaluator.evaluate()
            evaluator.accumulate()
        return Curves(np.asarray(evaluator.eval["precision"]), np.asarray(evaluator.eval["recall"]))

    def mean(self, values: Floats) -> float | None:
        """Return the mean (..., K) of what is known, added up as COCOeval does: categories in the order of ids."""
        known = values[..., np.argsort(self.category_ids)]
        known = known[known > -1]
        return float(known.mean()) if known.size else None

    def ap50(self) -> float | None:
        """Return AP at IoU 0.50 alone."""
        curves = self.curves(limits=MAX_DETECTIONS[-1:], ious=[0.5], areas=["all"])
        return self.mean(curves.precision[..., 0, 0])

    def matches(self) -> tuple[ClassMatches, ...]:
        """Return which detection found which box at COCO's ten IoUs, all areas, by category."""
        limit = MAX_DETECTIONS[-1]
        found, labels = self.found, self.labels
        group, labelled = self._groups(found), self._groups(labels)
        counted = _ranks(group, found.score) < limit
        label, ignored = np.full((IOUS, len(found)), -1), np.zeros((IOUS, len(found)), np.bool_)
        objects = np.zeros(len(labels), np.bool_)
        askable = counted & np.isin(group, labelled)  # where nothing is labelled, nothing is found
        for start in range(0, len(self.image_ids), BLOCK):
            images = range(start, min(start + BLOCK, len(self.image_ids)))
            mine = np.flatnonzero((labels.image >= images.start) & (labels.image < images.stop))
            theirs = np.flatnonzero(askable & (found.image >= images.start) & (found.image < images.stop))
            evaluator = self._evaluator(labels.at(mine), found.at(theirs), images)
            params = evaluator.params
            params.maxDets, params.areaRng, params.areaRngLbl = [limit], [list(AREAS["all"])], ["all"]
            with contextlib.redirect_stdout(io.StringIO()):
                evaluator.evaluate()
            verdicts = [item for item in evaluator.evalImgs if item is not None]
            # Ids are numbers from 1 in what the evaluator was given; as a match, 0 is none.
            rows = theirs[_column(item["dtIds"] for item in verdicts) - 1]
            label[:, rows] = np.append(mine, -1)[_table(verdicts, "dtMatches") - 1]
            ignored[:, rows] = _table(verdicts, "dtIgnore")
            ids, no_object = (_column(item[key] for item in verdicts) for key in ("gtIds", "gtIgnore"))
            objects[mine[ids[no_object == 0] - 1]] = True
        matches = []
        for category in range(len(self.category_ids)):
            rows = np.flatnonzero(counted & (found.category == category))
            rows = rows[np.lexsort((found.image[rows], -found.score[rows]))]  # as COCOeval: ties fall alike
            matched = (label[:, rows] >= 0) & ~ignored[:, rows]
            images_of = labels.image[objects & (labels.category == category)]
            matches.append(
                ClassMatches(
                    row=rows,
                    image=found.image[rows],
                    score=found.score[rows],
                    matched=matched,
                    ignored=ignored[:, rows],
                    label=np.where(matched[0], label[0, rows], -1),
                    instances=np.bincount(images_of, minlength=len(self.image_ids)),
                )
            )
        return tuple(matches)

    def most(self) -> int:
        """Return how many detections a category has in an image, at most."""
        return int(np.unique(self._groups(self.found), return_counts=True)[1].max(initial=0))

    def _groups(self, side: Boxes) -> Ints:
        return side.image * len(self.category_ids) + side.category

    def _evaluator(self, labels: Labels, found: Found, images: range) -> Any:
        make = _hotcoco if (self.name or default_judge()) == "hotcoco" else _pycocotools
        evaluator = make(labels, found, list(images), list(range(len(self.category_ids))))
        evaluator.params.imgIds, evaluator.params.catIds = list(images), list(range(len(self.category_ids)))
        return evaluator


def default_judge() -> JudgeName:
    """Return hotcoco where it is installed, pycocotools elsewhere."""
    return "hotcoco" if importlib.util.find_spec("hotcoco") else "pycocotools"


def _hotcoco(labels: Labels, found: Found, images: list[int], categories: list[int]) -> Any:
    from hotcoco import COCO, COCOeval

    truth = COCO.from_arrays(
        [{"id": place} for place in images],
        [{"id": place, "name": str(place)} for place in categories],
        labels.image,
        labels.category,
        labels.boxes,
        ids=np.arange(1, len(labels) + 1),
        area=labels.area,
        iscrowd=labels.crowd.astype(np.int64),
    )
    results = truth.load_res(np.column_stack([found.image, found.boxes, found.score, found.category]))
    return COCOeval(truth, results, "bbox")


def _pycocotools(labels: Labels, found: Found, images: list[int], categories: list[int]) -> Any:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    found_area = found.boxes[:, 2] * found.boxes[:, 3]
    sides: list[tuple[Boxes, dict[str, list[Any]]]] = [
        (labels, {"area": labels.area.tolist(), "iscrowd": labels.crowd.astype(int).tolist()}),
        (found, {"area": found_area.tolist(), "iscrowd": [0] * len(found), "score": found.score.tolist()}),
    ]
    indexed = []
    for side, more in sides:
        columns = {
            "id": range(1, len(side) + 1),  # COCOeval takes an id of 0 for no match
            "image_id": side.image.tolist(),
            "category_id": side.category.tolist(),
            "bbox": side.boxes.tolist(),
            **more,
        }
        coco = COCO()
        coco.dataset = {
            "images": [{"id": place} for place in images],
            "categories": [{"id": place} for place in categories],
            "annotations": [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)],
        }
        with contextlib.redirect_stdout(io.StringIO()):
            coco.createIndex()
        indexed.append(coco)
    with contextlib.redirect_stdout(io.StringIO()):
        return COCOeval(*indexed, "bbox")


def _ranks(group: Ints, score: Floats) -> Ints:
    """Return the place of each in its group by score, the first of equal ones first."""
    order = np.lexsort((-score, group))
    start = np.searchsorted(group[order], group[order])
    ranks = np.empty(len(group), np.int64)
    ranks[order] = np.arange(len(group)) - start
    return ranks


def _column(parts: Iterable[Iterable[Any]]) -> Ints:
    """Return lists and arrays of numbers as one column."""
    return np.fromiter(chain.from_iterable(parts), np.int64)


def _table(verdicts: Sequence[Mapping[str, Any]], key: str) -> Ints:
    """Return what evalImgs have at each IoU (10, D)."""
    return np.stack([_column(item[key][iou] for item in verdicts) for iou in range(IOUS)])
