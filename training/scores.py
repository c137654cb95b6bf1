"""COCO scores by pycocotools: this feeds it and names what it answers.

    truth = Annotations.load(Path("val.json"))
    match = match_classes(detector.class_names, truth.categories)
    scores = evaluate(truth, {image_id: detections}, match.category_ids)
    scores.ap, scores.per_class[0].ap50

pycocotools prints; nothing of that gets out. A score that has no ground truth to stand on is None, not -1.
"""

import contextlib
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from retinaserve.training.coco import Annotations
from retinaserve.training.detections import Detections

MAX_DETECTIONS = (1, 10, 100)  # of COCO; AP counts the best hundred of an image
IOUS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
IOU_50, IOU_75 = 0, 5  # places in COCO's thresholds 0.50, 0.55 ... 0.95
AREA_ALL = 0
# The 12 numbers, in the order COCOeval summarizes them, and what each one counts.
NUMBERS: Mapping[str, str] = {
    "ap": "IoU 0.50:0.95, all areas, 100 detections",
    "ap50": "IoU 0.50",
    "ap75": "IoU 0.75",
    "ap_small": "area under 32 x 32 px",
    "ap_medium": "area 32 x 32 to 96 x 96 px",
    "ap_large": "area over 96 x 96 px",
    "ar_1": "1 detection an image",
    "ar_10": "10 detections an image",
    "ar_100": "100 detections an image",
    "ar_small": "area under 32 x 32 px",
    "ar_medium": "area 32 x 32 to 96 x 96 px",
    "ar_large": "area over 96 x 96 px",
}


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
    """Which detection found which box, as COCOeval decided (all areas, 100 detections an image).

    By category, in the file's order. Places, not ids: the n-th image in the order of ids, the n-th row of the
    result list.
    """

    image_ids: tuple[int, ...]  # sorted
    of_class: tuple[ClassMatches, ...]

    @classmethod
    def of(cls, coco: Any, order: Sequence[int]) -> Self:
        """Read them from a COCOeval after `evaluate()`; `order` is each category's place in COCOeval's list."""
        image_ids = tuple(int(image_id) for image_id in coco.params.imgIds)
        areas, count = len(coco.params.areaRng), len(image_ids)
        starts = [place * areas * count for place in order]  # evalImgs is (K, A, N), "all" the first area
        classes = (_class_matches(coco.evalImgs[start : start + count]) for start in starts)
        return cls(image_ids, tuple(classes))


@dataclass(frozen=True)
class ClassMatch:
    """Which category each class of a detector means, None where the file has no such category."""

    category_ids: tuple[int | None, ...]
    warning: str = ""


@dataclass(frozen=True)
class ClassScore:
    """One category's share of the scores."""

    name: str
    category_id: int
    instances: int
    detections: int
    ap: float | None
    ap50: float | None
    ar: float | None


@dataclass(frozen=True)
class CocoScores:
    """The 12 numbers of COCO, and each category's."""

    ap: float | None
    ap50: float | None
    ap75: float | None
    ap_small: float | None
    ap_medium: float | None
    ap_large: float | None
    ar_1: float | None
    ar_10: float | None
    ar_100: float | None
    ar_small: float | None
    ar_medium: float | None
    ar_large: float | None
    images: int
    instances: int
    detections: int
    per_class: tuple[ClassScore, ...]
    # (10 IoU, 101 recall, K categories), -1 where there is no ground truth
    precision: npt.NDArray[np.float64] = field(repr=False, compare=False)
    matches: Matches = field(repr=False, compare=False)  # which detection found what, for the report beyond AP

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the curves and the matches, for JSON."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        del values["precision"], values["matches"]
        return {**values, "per_class": [asdict(score) for score in self.per_class]}


def match_classes(class_names: Sequence[str], categories: Mapping[int, str]) -> ClassMatch:
    """Match a detector's classes to a file's categories: by name, or by position where no name is shared."""
    ids = {_key(name): category_id for category_id, name in categories.items()}
    by_name = tuple(ids.get(_key(name)) for name in class_names)
    matched = set(by_name) - {None}
    if not matched:
        by_position = tuple(categories)[: len(class_names)]
        rest = (None,) * (len(class_names) - len(by_position))
        return ClassMatch(
            (*by_position, *rest),
            "NO class of the detector is in the annotation file; classes are matched BY POSITION, and the "
            f"scores mean little. Detector: {_listed(class_names)}. File: {_listed(categories.values())}",
        )
    unknown = [name for name, found in zip(class_names, by_name, strict=True) if found is None]
    missing = [name for category_id, name in categories.items() if category_id not in matched]
    parts = []
    if unknown:
        parts.append(f"classes the file does not have, left out: {_listed(unknown)}")
    if missing:
        parts.append(f"categories the detector does not know, never found: {_listed(missing)}")
    return ClassMatch(by_name, "; ".join(parts))


def to_coco(results: Mapping[int, Detections], category_ids: Sequence[int | None]) -> list[dict[str, Any]]:
    """Return detections as a COCO result list: xywh boxes, category ids; unmatched classes are left out."""
    rows: list[dict[str, Any]] = []
    for image_id, found in results.items():
        corners = found.boxes.astype(np.float64)
        sizes = corners[:, 2:] - corners[:, :2]
        for (x, y), (width, height), score, index in zip(
            corners[:, :2], sizes, found.scores, found.classes, strict=True
        ):
            category_id = category_ids[index]
            if category_id is None:
                continue
            rows.append(
                {
                    "image_id": image_id,
                    "category_id": category_id,
                    "bbox": [float(x), float(y), float(width), float(height)],
                    "score": float(score),
                }
            )
    return rows


def evaluate(
    truth: Annotations, results: Mapping[int, Detections], category_ids: Sequence[int | None]
) -> CocoScores:
    """Score detections against all images of the file; one without an entry in `results` has none.

    `results`: image id to detections; `category_ids`: the category of each class, from `match_classes`.
    """
    rows = to_coco(results, category_ids)
    stats, precision, recall, matches = _coco_scores(truth, rows)
    instances = Counter(box["category_id"] for box in truth.boxes if not box["iscrowd"])
    found = Counter(row["category_id"] for row in rows)
    per_class = tuple(
        ClassScore(
            name=name,
            category_id=category_id,
            instances=instances[category_id],
            detections=found[category_id],
            ap=_mean(precision[:, :, place]),
            ap50=_mean(precision[IOU_50, :, place]),
            ar=_mean(recall[:, place]),
        )
        for place, (category_id, name) in enumerate(truth.categories.items())
    )
    numbers: dict[str, Any] = {
        name: None if value < 0 else float(value) for name, value in zip(NUMBERS, stats, strict=True)
    }
    return CocoScores(
        **numbers,
        images=len(truth.images),
        instances=sum(instances.values()),
        detections=len(rows),
        per_class=per_class,
        precision=precision,
        matches=matches,
    )


def ap50(truth: Annotations, rows: Sequence[Mapping[str, Any]]) -> float | None:
    """Return AP at IoU 0.50 alone, of a COCO result list: a fraction of the work of `evaluate`."""
    coco = _cocoeval(truth, rows)
    coco.params.iouThrs = np.array([0.5])
    coco.params.areaRng, coco.params.areaRngLbl = [coco.params.areaRng[AREA_ALL]], ["all"]
    coco.params.maxDets = [MAX_DETECTIONS[-1]]
    with contextlib.redirect_stdout(io.StringIO()):
        coco.evaluate()
        coco.accumulate()
    return _mean(coco.eval["precision"])


def _coco_scores(
    truth: Annotations, rows: Sequence[Mapping[str, Any]]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64], Matches]:
    """Return the 12 numbers, precision (10, 101, K) and recall (10, K), K in the file's order, and the matches."""
    coco = _cocoeval(truth, rows)
    with contextlib.redirect_stdout(io.StringIO()):
        coco.evaluate()
        coco.accumulate()
        coco.summarize()
    # COCOeval sorts and makes unique what it is given: bring its categories back into the file's order.
    order = [list(coco.params.catIds).index(category_id) for category_id in truth.categories]
    precision = coco.eval["precision"][:, :, order, AREA_ALL, -1]
    recall = coco.eval["recall"][:, order, AREA_ALL, -1]
    return coco.stats, precision, recall, Matches.of(coco, order)


def _cocoeval(truth: Annotations, rows: Sequence[Mapping[str, Any]]) -> Any:
    from pycocotools.cocoeval import COCOeval

    # Numbered from 1 in the order of `rows`: COCOeval takes an id of 0 for no match.
    detections = [
        {**row, "id": number, "iscrowd": 0, "area": row["bbox"][2] * row["bbox"][3]}
        for number, row in enumerate(rows, 1)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        # COCO.loadRes fails on an empty list, so both sides are indexed the same way.
        coco = COCOeval(
            _index(truth, [dict(box) for box in truth.boxes]),  # COCOeval writes into them
            _index(truth, detections),
            "bbox",
        )
    coco.params.catIds = list(truth.categories)
    coco.params.imgIds = list(truth.images)
    coco.params.maxDets = list(MAX_DETECTIONS)
    return coco


def _index(truth: Annotations, annotations: list[dict[str, Any]]) -> Any:
    from pycocotools.coco import COCO

    index = COCO()
    index.dataset = {
        "images": [{"id": image_id} for image_id in truth.images],
        "categories": [{"id": category_id, "name": name} for category_id, name in truth.categories.items()],
        "annotations": annotations,
    }
    index.createIndex()
    return index


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


def _mean(values: npt.NDArray[np.float64]) -> float | None:
    known = values[values > -1]
    return float(known.mean()) if known.size else None


def _key(name: str) -> str:
    return " ".join(name.replace("_", " ").casefold().split())


def _listed(names: Any, most: int = 8) -> str:
    listed = list(names)
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more
