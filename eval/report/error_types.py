"""Which detections are wrong and how, which labelled boxes are missed, and what each type of error costs in AP50.

    classified = classify_boxes(truth, results, category_ids, scores.matches)
    classified.kind[0], classified.found[0]
    ap50_gains(truth, classified)["localisation"]     # 0.042: AP50 would be 4.2 points higher

Right or wrong, at IoU 0.5, is pycocotools' decision. The types of errors are those of TIDE (Bolya et al., "TIDE: A
General Toolbox for Identifying Object Detection Errors", ECCV 2020, section 2.2), asked in the order of its code.
With t_f = 0.5 and t_b = 0.1, a wrong detection is
- `localisation` when the best IoU with a box of its class lies between t_b and t_f,
- `class` when it has t_f with a box of another class,
- `duplicate` when it has t_f with a box of its class, which a better detection found already,
- `background` when it has at most t_b with any box,
- `both` (badly placed and of the wrong class) otherwise.

The gains are TIDE's oracles (section 2.3), which correct one type of error at a time: a localisation error gets
the box it missed, a class error the class of the box it found; where that box is found already, or several errors
are about one box, only the best detection of it stays. Duplicates, background and `both` errors go; a missed box
is taken from the labels. The gains do not add up, as the errors hide each other. pycocotools computes each AP.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from retinaserve.plugins.reference import iou_matrix
from retinaserve.training.coco import Annotations
from retinaserve.training.detections import Detections
from retinaserve.training.scores import Matches, ap50, to_coco

CORRECT, LOCALISATION, CLASS, BOTH, DUPLICATE, BACKGROUND = range(6)
KINDS = ("correct", "localisation", "class", "both", "duplicate", "background")
IGNORED = -1  # lies on a crowd: neither right nor wrong
FOREGROUND_IOU, BACKGROUND_IOU = 0.5, 0.1  # t_f and t_b of TIDE
NEVER = -1.0  # the score of a detection that does not exist: below every threshold

Rows = list[dict[str, Any]]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class ClassifiedBoxes:
    """Detections in the order of the result list, boxes in the order of the file without its crowds.

    Images and categories are places: in `image_ids`, and in the file's categories.
    """

    image_ids: tuple[int, ...]
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    rows: Rows  # the COCO result list
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


def classify_boxes(
    truth: Annotations, results: Mapping[int, Detections], category_ids: Sequence[int | None], matches: Matches
) -> ClassifiedBoxes:
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
        overlap = iou_matrix(boxes[wrong], truth_boxes[theirs])
        kinds, places = _kinds(overlap, category[wrong][:, None] == truth_category[theirs])
        kind[wrong] = kinds
        target[wrong] = np.where(places >= 0, theirs[places], -1)

    claim, claimant, covered = (np.full(len(labelled), value) for value in (NEVER, -1, NEVER))
    for row in np.flatnonzero((kind == CLASS) | (kind == LOCALISATION)):
        covered[target[row]] = max(covered[target[row]], score[row])
        if kind[row] == CLASS and score[row] > claim[target[row]]:
            claim[target[row]], claimant[target[row]] = score[row], row
    return ClassifiedBoxes(
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


def ap50_gains(truth: Annotations, classified: ClassifiedBoxes) -> dict[str, float | None]:
    """Return the gain in AP50 of correcting each type of error, `missed` too; None without labelled boxes."""
    before = ap50(truth, classified.rows)
    if before is None:
        return dict.fromkeys((*KINDS[1:], "missed"))
    gains: dict[str, float | None] = {}
    for kind in range(1, len(KINDS)):
        after = ap50(truth, _corrected(classified, kind)) if (classified.kind == kind).any() else before
        gains[KINDS[kind]] = (after or 0.0) - before
    without_missed = ap50(_without_missed(truth, classified), classified.rows)
    # A set whose every box is missed has no AP left without them: all of it is the gain.
    gains["missed"] = (1.0 if without_missed is None else without_missed) - before
    return gains


def _corrected(classified: ClassifiedBoxes, kind: int) -> Rows:
    """Return the rows without the errors of a kind; of those about one box not found, the best is put right."""
    errors = np.flatnonzero(classified.kind == kind)
    corrected: dict[int, int] = {}  # labelled box: the row that gets it
    for row in errors[np.argsort(-classified.score[errors], kind="stable")]:
        target = int(classified.target[row])
        if kind in (LOCALISATION, CLASS) and classified.found[target] == NEVER:
            corrected.setdefault(target, int(row))
    target_of = {row: target for target, row in corrected.items()}
    rows: Rows = []
    for place, row in enumerate(classified.rows):
        if classified.kind[place] != kind:
            rows.append(row)
        elif place in target_of:
            target = target_of[place]
            x1, y1, x2, y2 = classified.truth_boxes[target].tolist()
            category = classified.category_ids[classified.truth_category[target]]
            rows.append({**row, "category_id": category, "bbox": [x1, y1, x2 - x1, y2 - y1]})
    return rows


def _without_missed(truth: Annotations, classified: ClassifiedBoxes) -> Annotations:
    """Return the labels without the boxes that are missed."""
    missed = (classified.found == NEVER) & (classified.covered == NEVER)
    gone = set(classified.truth_id[missed].tolist())
    return replace(truth, boxes=tuple(box for box in truth.boxes if box["id"] not in gone))


def _kinds(overlap: Floats, same: npt.NDArray[np.bool_]) -> tuple[Ints, Ints]:
    """Return the kind of each wrong detection and the column of the box it is about, -1 for none."""
    of_same, of_other = np.where(same, overlap, -1.0), np.where(same, -1.0, overlap)
    best, best_same, best_other = (values.max(axis=1) for values in (overlap, of_same, of_other))
    localisation = (best_same >= BACKGROUND_IOU) & (best_same < FOREGROUND_IOU)
    cases = [localisation, best_other >= FOREGROUND_IOU, best_same >= FOREGROUND_IOU, best <= BACKGROUND_IOU]
    kinds = np.select(cases, [LOCALISATION, CLASS, DUPLICATE, BACKGROUND], BOTH)
    same_column, other_column = of_same.argmax(axis=1), of_other.argmax(axis=1)
    columns = [same_column, other_column, same_column, np.full(len(overlap), -1)]
    return kinds.astype(np.int64), np.select(cases, columns, -1).astype(np.int64)


def _corners(rows: Sequence[Mapping[str, Any]]) -> Floats:
    boxes = np.array([row["bbox"] for row in rows], np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]  # xywh -> xyxy
    return boxes
