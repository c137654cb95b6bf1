"""Which detections are wrong and how, which labelled boxes are missed, and what each type of error costs in AP50.

    classified = classify_boxes(truth, scores)
    classified.kind[0], classified.found[0]
    ap50_gains(classified)["localisation"]     # 0.042: AP50 would be 4.2 points higher

Right or wrong, at IoU 0.5, is the judge's decision. The types of errors are those of TIDE (Bolya et al., "TIDE: A
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
is taken from the labels. The gains do not add up, as the errors hide each other. The judge computes each AP.
"""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from retinaserve.plugins.reference import iou_matrix
from retinaserve.training.coco import Annotations
from retinaserve.training.scoring.judge import Found, Judge, Labels
from retinaserve.training.scoring.scores import CocoScores

CORRECT, LOCALISATION, CLASS, BOTH, DUPLICATE, BACKGROUND = range(6)
KINDS = ("correct", "localisation", "class", "both", "duplicate", "background")
IGNORED = -1  # lies on a crowd: neither right nor wrong
FOREGROUND_IOU, BACKGROUND_IOU = 0.5, 0.1  # t_f and t_b of TIDE
NEVER = -1.0  # the score of a detection that does not exist: below every threshold

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class ClassifiedBoxes:
    """Detections in the order of the result list, boxes in the order of the file without its crowds.

    Images and categories are places: in `image_ids`, and in the file's categories.
    """

    class_names: tuple[str, ...]
    judge: Judge  # the columns below are of its `found` and of its `labels`
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
    found: Floats  # score of the detection that found it, or NEVER
    claim: Floats  # score of the best detection that calls it by another name, or NEVER
    claimant: Ints  # that detection, or -1
    covered: Floats  # score of the best localisation or class error on it, or NEVER

    @property
    def image_ids(self) -> tuple[int, ...]:
        """The images' ids by their places."""
        return self.judge.image_ids


def classify_boxes(truth: Annotations, scores: CocoScores) -> ClassifiedBoxes:
    """Sort out every detection that was scored."""
    found, labels = scores.judge.found, scores.judge.labels
    labelled = labels.at(~labels.crowd)
    place_of_label = np.cumsum(~labels.crowd) - 1  # among those that are no crowds
    boxes, truth_boxes = _corners(found.boxes), _corners(labelled.boxes)

    kind = np.full(len(found), IGNORED, np.int64)  # also what COCOeval left out: beyond 100 of an image and class
    target = np.full(len(found), -1, np.int64)
    found_by = np.full(len(labelled), NEVER)
    for of_class in scores.matches.of_class:
        right, ignored = of_class.matched[0], of_class.ignored[0]
        kind[of_class.row[~ignored]] = BACKGROUND  # for now
        kind[of_class.row[right]] = CORRECT
        places = place_of_label[of_class.label[right]]
        target[of_class.row[right]] = places
        found_by[places] = of_class.score[right]

    rows, columns = (_by_image(side.image, len(scores.judge.image_ids)) for side in (found, labelled))
    for mine, theirs in zip(rows, columns, strict=True):
        wrong = mine[kind[mine] == BACKGROUND]
        if not len(wrong) or not len(theirs):
            continue
        overlap = iou_matrix(boxes[wrong], truth_boxes[theirs])
        kinds, places = _kinds(overlap, found.category[wrong][:, None] == labelled.category[theirs])
        kind[wrong] = kinds
        target[wrong] = np.where(places >= 0, theirs[places], -1)

    claim, claimant, covered = (np.full(len(labelled), value) for value in (NEVER, -1, NEVER))
    about = np.flatnonzero((kind == CLASS) | (kind == LOCALISATION))
    np.maximum.at(covered, target[about], found.score[about])
    claims = np.flatnonzero(kind == CLASS)
    # Of several values for one place the last counts: the best score, the first row of equal ones.
    claims = claims[np.lexsort((-claims, found.score[claims]))]
    claim[target[claims]], claimant[target[claims]] = found.score[claims], claims
    return ClassifiedBoxes(
        class_names=tuple(truth.categories.values()),
        judge=scores.judge,
        image=found.image,
        category=found.category,
        score=found.score,
        boxes=boxes,
        kind=kind,
        target=target,
        truth_image=labelled.image,
        truth_category=labelled.category,
        truth_boxes=truth_boxes,
        found=found_by,
        claim=claim,
        claimant=claimant.astype(np.int64),
        covered=covered,
    )


def ap50_gains(classified: ClassifiedBoxes) -> dict[str, float | None]:
    """Return the gain in AP50 of correcting each type of error, `missed` too; None without labelled boxes."""
    judge = classified.judge
    before = judge.ap50()
    if before is None:
        return dict.fromkeys((*KINDS[1:], "missed"))
    gains: dict[str, float | None] = {}
    for kind in range(1, len(KINDS)):
        wrong = (classified.kind == kind).any()
        after = replace(judge, found=_corrected(classified, kind)).ap50() if wrong else before
        gains[KINDS[kind]] = (after or 0.0) - before
    without_missed = replace(judge, labels=_without_missed(classified)).ap50()
    # A set whose every box is missed has no AP left without them: all of it is the gain.
    gains["missed"] = (1.0 if without_missed is None else without_missed) - before
    return gains


def _corrected(classified: ClassifiedBoxes, kind: int) -> Found:
    """Return what was found without a kind of error; of several about a box not found, the best is put right."""
    found = classified.judge.found
    image, category, boxes, score = found.image, found.category.copy(), found.boxes.copy(), found.score
    errors = np.flatnonzero(classified.kind == kind)
    keep = classified.kind != kind
    if kind in (LOCALISATION, CLASS):
        errors = errors[classified.found[classified.target[errors]] == NEVER]
        errors = errors[np.argsort(-score[errors], kind="stable")]
        targets, first = np.unique(classified.target[errors], return_index=True)
        best = errors[first]
        keep[best] = True
        category[best] = classified.truth_category[targets]
        boxes[best] = classified.truth_boxes[targets]
        boxes[best, 2:] -= boxes[best, :2]  # xyxy -> xywh
    return Found(image, category, boxes, score).at(keep)


def _without_missed(classified: ClassifiedBoxes) -> Labels:
    """Return the labels without the boxes that are missed."""
    labels = classified.judge.labels
    keep = labels.crowd.copy()
    keep[~labels.crowd] = (classified.found != NEVER) | (classified.covered != NEVER)
    return labels.at(keep)


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


def _by_image(image: Ints, count: int) -> list[Ints]:
    """Return the places of each image's boxes, in their order."""
    order = np.argsort(image, kind="stable")
    return np.split(order, np.searchsorted(image[order], np.arange(1, count)))[:count]


def _corners(boxes: Floats) -> Floats:
    return np.hstack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]])  # xywh -> xyxy
