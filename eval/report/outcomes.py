"""What became of every detection and of every labelled box, at IoU 0.5.

    outcomes = judge_boxes(truth, results, category_ids, scores.matches)
    outcomes.kind[0], outcomes.found[0]

Right or wrong is pycocotools' decision. The kinds of wrong are those of TIDE (Bolya et al., "TIDE: A General
Toolbox for Identifying Object Detection Errors", ECCV 2020, section 2.2), asked in the order of its code: with t_f
= 0.5 and t_b = 0.1, a wrong detection is of the kind `localisation` when the best IoU with a box of its class lies
between t_b and t_f; `class` when it has t_f with a box of another class; `duplicate` when it has t_f with a box of
its class, which a better detection found already; `background` when it has at most t_b with any box; and `both`
(badly placed and of the wrong class) otherwise. Nothing here depends on a threshold: see thresholds.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from retinaserve.training.coco import Annotations
from retinaserve.training.detections import Detections
from retinaserve.training.scores import Matches, to_coco

CORRECT, LOCALISATION, CLASS, BOTH, DUPLICATE, BACKGROUND = range(6)
KINDS = ("correct", "localisation", "class", "both", "duplicate", "background")
IGNORED = -1  # lies on a crowd: neither right nor wrong
FOREGROUND_IOU, BACKGROUND_IOU = 0.5, 0.1  # t_f and t_b of TIDE
NEVER = -1.0  # the score of a detection that does not exist: below every threshold

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Outcomes:
    """Detections in the order of the result list, boxes in the order of the file without its crowds.

    Images and categories are places: in `image_ids`, and in the file's categories.
    """

    image_ids: tuple[int, ...]
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    rows: list[dict[str, Any]]  # the COCO result list
    # (D,) the detections
    image: Ints
    category: Ints
    score: Floats
    boxes: Floats  # (D, 4) xyxy
    kind: Ints
    target: Ints  # the labelled box it found, missed narrowly, or called by another name; -1 for none
    # (G,) the labelled boxes
    truth_image: Ints
    truth_category: Ints
    truth_boxes: Floats  # (G, 4) xyxy
    truth_id: Ints
    found: Floats  # score of the detection that found it, or NEVER
    claim: Floats  # score of the best detection that calls it by another name, or NEVER
    claimant: Ints  # that detection, or -1
    covered: Floats  # score of the best localisation or class error on it, or NEVER


def judge_boxes(
    truth: Annotations, results: Mapping[int, Detections], category_ids: Sequence[int | None], matches: Matches
) -> Outcomes:
    """Sort out every detection of `results` (by image id), which `matches` must be the matches of."""
    rows = to_coco(results, category_ids)
    place_of_image = {image_id: place for place, image_id in enumerate(matches.image_ids)}
    place_of_category = {category_id: place for place, category_id in enumerate(truth.categories)}
    labelled = [box for box in truth.boxes if not box["iscrowd"]]
    place_of_truth = {box["id"]: place for place, box in enumerate(labelled)}

    image = np.array([place_of_image[row["image_id"]] for row in rows], np.int64)
    category = np.array([place_of_category[row["category_id"]] for row in rows], np.int64)
    score = np.array([row["score"] for row in rows], np.float64)
    truth_image = np.array([place_of_image[box["image_id"]] for box in labelled], np.int64)
    truth_category = np.array([place_of_category[box["category_id"]] for box in labelled], np.int64)
    boxes, truth_boxes = _corners(rows), _corners(labelled)

    kind = np.full(len(rows), IGNORED, np.int64)  # also what COCOeval left out: beyond 100 of an image and class
    target = np.full(len(rows), -1, np.int64)
    found = np.full(len(labelled), NEVER)
    for of_class in matches.of_class:
        right, ignored = of_class.matched[0], of_class.ignored[0]
        kind[of_class.row[~ignored]] = BACKGROUND  # for now
        kind[of_class.row[right]] = CORRECT
        places = np.array([place_of_truth[int(number)] for number in of_class.truth_id[right]], np.int64)
        target[of_class.row[right]] = places
        found[places] = of_class.score[right]

    for place in np.unique(image):
        mine, theirs = np.flatnonzero(image == place), np.flatnonzero(truth_image == place)
        wrong = mine[kind[mine] == BACKGROUND]
        if not len(wrong) or not len(theirs):
            continue
        overlap = iou(boxes[wrong], truth_boxes[theirs])
        kinds, places = _kinds(overlap, category[wrong][:, None] == truth_category[theirs])
        kind[wrong] = kinds
        target[wrong] = np.where(places >= 0, theirs[places], -1)

    claim, claimant, covered = (np.full(len(labelled), value) for value in (NEVER, -1, NEVER))
    for row in np.flatnonzero((kind == CLASS) | (kind == LOCALISATION)):
        covered[target[row]] = max(covered[target[row]], score[row])
        if kind[row] == CLASS and score[row] > claim[target[row]]:
            claim[target[row]], claimant[target[row]] = score[row], row
    return Outcomes(
        image_ids=matches.image_ids,
        class_names=tuple(truth.categories.values()),
        category_ids=tuple(truth.categories),
        rows=rows,
        image=image,
        category=category,
        score=score,
        boxes=boxes,
        kind=kind,
        target=target,
        truth_image=truth_image,
        truth_category=truth_category,
        truth_boxes=truth_boxes,
        truth_id=np.array([box["id"] for box in labelled], np.int64),
        found=found,
        claim=claim,
        claimant=claimant.astype(np.int64),
        covered=covered,
    )


def iou(one: Floats, other: Floats) -> Floats:
    """Return the IoU (N, M) of xyxy boxes (N, 4) and (M, 4), half-open; that of empty boxes is 0."""
    corners = np.minimum(one[:, None, 2:], other[:, 2:]) - np.maximum(one[:, None, :2], other[:, :2])
    common = corners.clip(0).prod(axis=2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (one, other)]
    ratio: Floats = common / np.maximum(areas[0][:, None] + areas[1] - common, np.finfo(np.float64).tiny)
    return ratio


def _kinds(overlap: Floats, same: npt.NDArray[np.bool_]) -> tuple[Ints, Ints]:
    """Return the kind of each wrong detection and the column of the box it is about, -1 for none."""
    of_same, of_other = np.where(same, overlap, -1.0), np.where(same, -1.0, overlap)
    best, best_same, best_other = (values.max(axis=1) for values in (overlap, of_same, of_other))
    localisation = (best_same >= BACKGROUND_IOU) & (best_same < FOREGROUND_IOU)
    cases = [
        localisation,
        best_other >= FOREGROUND_IOU,
        best_same >= FOREGROUND_IOU,
        best <= BACKGROUND_IOU,
    ]
    kinds = np.select(cases, [LOCALISATION, CLASS, DUPLICATE, BACKGROUND], BOTH)
    columns = [of_same.argmax(axis=1), of_other.argmax(axis=1), of_same.argmax(axis=1), np.full(len(overlap), -1)]
    return kinds.astype(np.int64), np.select(cases, columns, -1).astype(np.int64)


def _corners(rows: Sequence[Mapping[str, Any]]) -> Floats:
    boxes = np.array([row["bbox"] for row in rows], np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]  # xywh -> xyxy
    return boxes
