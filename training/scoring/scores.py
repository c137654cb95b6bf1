"""COCO scores: this feeds the judge and names what it answers.

    truth = Annotations.load(Path("val.json"))
    match = match_classes(detector.class_names, truth.categories)
    scores = evaluate(truth, {image_id: detections}, match.category_ids)
    scores.ap, scores.per_class[0].ap50

A score that has no ground truth to stand on is None, not -1.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from retinaserve.training.coco import Annotations
from retinaserve.training.detections import Detections
from retinaserve.training.scoring.judge import (
    AREAS,
    MAX_DETECTIONS,
    ClassMatches,
    Curves,
    Found,
    Judge,
    JudgeName,
    Labels,
)

AREA_ALL, BEST_100 = 0, 2  # places in AREAS and in MAX_DETECTIONS
IOU_50, IOU_75 = 0, 5  # places in COCO's thresholds 0.50, 0.55 ... 0.95
LISTED = 8  # classes in a warning
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
class Matches:
    """Which detection found which box, as the judge decided (all areas, 100 detections of a class in an image).

    By category, in the file's order. Places, not ids: the n-th image in the order of ids, the n-th row of the
    result list, the n-th box of the file.
    """

    image_ids: tuple[int, ...]  # sorted
    of_class: tuple[ClassMatches, ...]


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
class AtMaximum:
    """The scores without COCO's limit of 100; a class had up to `detections` in an image."""

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
    judge: Judge = field(repr=False, compare=False)
    at_maximum: AtMaximum | None = None  # where a class has more than 100 detections in an image

    @cached_property
    def matches(self) -> Matches:
        """Which detection found what, for the report beyond AP."""
        return Matches(self.judge.image_ids, self.judge.matches())

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the curves and the matches, for JSON."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        del values["precision"], values["judge"], values["at_maximum"]
        more = {"at_maximum": asdict(self.at_maximum)} if self.at_maximum else {}
        return {**values, "per_class": [asdict(score) for score in self.per_class], **more}


def match_classes(class_names: Sequence[str], categories: Mapping[int, str]) -> ClassMatch:
    """Match a detector's classes to a file's categories: by name, or by position where no name is shared.

    What has no namesake is matched without regard to case, spaces and underscores, where that leaves one choice.
    """
    ids = {name: category_id for category_id, name in categories.items()}
    left = defaultdict[str, list[str]](list)
    for name in ids:
        if name not in class_names:
            left[_key(name)].append(name)
    wanted = Counter(_key(name) for name in class_names if name not in ids)
    folded = {
        name: left[_key(name)][0]
        for name in class_names
        if name not in ids and wanted[_key(name)] == len(left[_key(name)]) == 1
    }
    by_name = tuple(ids.get(folded.get(name, name)) for name in class_names)
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
    if folded:
        parts.append(f"taken for the same: {_listed(f'{one!r} and {other!r}' for one, other in folded.items())}")
    if unknown:
        parts.append(f"classes the file does not have, left out: {_listed(unknown)}")
    if missing:
        parts.append(f"categories the detector does not know, never found: {_listed(missing)}")
    return ClassMatch(by_name, "; ".join(parts))


def to_coco(results: Mapping[int, Detections], category_ids: Sequence[int | None]) -> list[dict[str, Any]]:
    """Return detections as a COCO result list: xywh boxes, category ids; unmatched classes are left out."""
    rows: list[dict[str, Any]] = []
    for image_id, found in results.items():
        boxes = found.boxes.astype(np.float64)
        boxes[:, 2:] -= boxes[:, :2]
        for box, score, index in zip(boxes.tolist(), found.scores.tolist(), found.classes.tolist(), strict=True):
            if (category_id := category_ids[index]) is not None:
                rows.append({"image_id": image_id, "category_id": category_id, "bbox": box, "score": score})
    return rows


def labels_of(truth: Annotations) -> Labels:
    """Return the boxes of a file as columns for the judge."""
    places = {category_id: place for place, category_id in enumerate(truth.categories)}
    image_ids = np.array([box["image_id"] for box in truth.boxes], np.int64)
    return Labels(
        image=np.searchsorted(sorted(truth.images), image_ids),
        category=np.array([places[box["category_id"]] for box in truth.boxes], np.int64),
        boxes=np.array([box["bbox"] for box in truth.boxes], np.float64).reshape(-1, 4),
        area=np.array([box["area"] for box in truth.boxes], np.float64),
        crowd=np.array([box["iscrowd"] for box in truth.boxes], np.bool_),
    )


def found_of(truth: Annotations, results: Mapping[int, Detections], category_ids: Sequence[int | None]) -> Found:
    """Return the rows of `to_coco` as columns for the judge."""
    place_of = {image_id: place for place, image_id in enumerate(sorted(truth.images))}
    categories = {category_id: place for place, category_id in enumerate(truth.categories)}
    of_class = np.array([-1 if key is None else categories[key] for key in category_ids], np.int64)
    answers = [Detections.none(), *results.values()]
    corners = np.concatenate([answer.boxes for answer in answers]).astype(np.float64)
    places = np.array([0, *(place_of[image_id] for image_id in results)], np.int64)
    found = Found(
        image=np.repeat(places, [len(answer) for answer in answers]),
        category=of_class[np.concatenate([answer.classes for answer in answers])],
        boxes=np.hstack([corners[:, :2], corners[:, 2:] - corners[:, :2]]),  # xyxy -> xywh
        score=np.concatenate([answer.scores for answer in answers]).astype(np.float64),
    )
    return found.at(found.category >= 0)


def evaluate(
    truth: Annotations,
    results: Mapping[int, Detections],
    category_ids: Sequence[int | None],
    *,
    judge: JudgeName | None = None,
) -> CocoScores:
    """Score detections against all images of the file; one without an entry in `results` has none.

    `results`: image id to detections; `category_ids`: the category of each class, from `match_classes`; `judge`
    None is the fast one where it is installed. The two give the same numbers.
    """
    labels, found = labels_of(truth), found_of(truth, results, category_ids)
    judged = Judge(labels, found, tuple(sorted(truth.images)), tuple(truth.categories), judge)
    most = judged.most()
    curves = judged.curves(limits=(*MAX_DETECTIONS, most) if most > MAX_DETECTIONS[-1] else MAX_DETECTIONS)
    precision, recall = curves.precision[:, :, :, AREA_ALL, BEST_100], curves.recall[:, :, AREA_ALL, BEST_100]
    count = len(truth.categories)
    instances = np.bincount(labels.category[~labels.crowd], minlength=count).tolist()
    detections = np.bincount(found.category, minlength=count).tolist()
    per_class = tuple(
        ClassScore(
            name=name,
            category_id=category_id,
            instances=instances[place],
            detections=detections[place],
            ap=_mean(precision[:, :, place]),
            ap50=_mean(precision[IOU_50, :, place]),
            ar=_mean(recall[:, place]),
        )
        for place, (category_id, name) in enumerate(truth.categories.items())
    )
    return CocoScores(
        **numbers(judged, curves),
        images=len(truth.images),
        instances=sum(instances),
        detections=len(found),
        per_class=per_class,
        precision=precision,
        judge=judged,
        at_maximum=at_maximum(judged, curves, most) if most > MAX_DETECTIONS[-1] else None,
    )


def at_maximum(judge: Judge, curves: Curves, most: int) -> AtMaximum:
    """Return the scores at the last of the limits that curves were made for."""
    precision, recall = curves.precision[..., AREA_ALL, -1], curves.recall[..., AREA_ALL, -1]
    return AtMaximum(most, judge.mean(precision), judge.mean(precision[IOU_50]), judge.mean(recall))


def numbers(judge: Judge, curves: Curves) -> dict[str, Any]:
    """Return the 12 numbers as COCOeval summarizes them."""
    values = [curves.precision[..., AREA_ALL, BEST_100]]
    values += [values[0][iou] for iou in (IOU_50, IOU_75)]
    values += [curves.precision[..., area, BEST_100] for area in range(1, len(AREAS))]
    values += [curves.recall[..., AREA_ALL, limit] for limit in range(len(MAX_DETECTIONS))]
    values += [curves.recall[..., area, BEST_100] for area in range(1, len(AREAS))]
    return {name: judge.mean(value) for name, value in zip(NUMBERS, values, strict=True)}


def _mean(values: npt.NDArray[np.float64]) -> float | None:
    known = values[values > -1]
    return float(known.mean()) if known.size else None


def _key(name: str) -> str:
    return " ".join(name.replace("_", " ").casefold().split())


def _listed(names: Any) -> str:
    listed = list(names)
    more = f" and {len(listed) - LISTED} more" if len(listed) > LISTED else ""
    return ", ".join(listed[:LISTED]) + more
