import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retinaserve.training.coco import Annotations
from retinaserve.training.detections import Detections
from retinaserve.training.scoring.scores import evaluate, match_classes, to_coco

CATEGORIES = [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}]  # neither contiguous nor sorted


def annotation(image_id: int, category_id: int, box: list[float], **more: Any) -> dict[str, Any]:
    return {"image_id": image_id, "category_id": category_id, "bbox": box, **more}


def load(tmp_path: Path, annotations: list[dict[str, Any]], images: int = 2) -> Annotations:
    path = tmp_path / "truth.json"
    pictures = [{"id": 10 + n, "file_name": f"{n}.jpg"} for n in range(images)]
    path.write_text(json.dumps({"images": pictures, "annotations": annotations, "categories": CATEGORIES}))
    return Annotations.load(path)


def found(*rows: tuple[float, float, float, float, float, int]) -> Detections:
    table = np.array(rows, np.float32).reshape(-1, 6)
    return Detections(table[:, :4], table[:, 4], table[:, 5].astype(np.int32))


# Two cats of 100 x 100 in image 10, one dog of 20 x 20 in image 11 (classes: 0 is cat, 1 is dog).
TRUTH = [
    annotation(10, 7, [0, 0, 100, 100]),
    annotation(10, 7, [200, 200, 100, 100]),
    annotation(11, 3, [5, 5, 20, 20]),
]
CAT_1, CAT_2, DOG = (0, 0, 100, 100), (200, 200, 300, 300), (5, 5, 25, 25)

# Worked out by hand from the definition: precision, made falling, read at recall 0, 0.01 ... 1, averaged.
SCORES = {
    "nothing is found": ({}, dict(ap=0.0, ap50=0.0, ar_100=0.0, cat=0.0, dog=0.0)),
    "all is found": (
        {10: [(*CAT_1, 0.9, 0), (*CAT_2, 0.8, 0)], 11: [(*DOG, 0.7, 1)]},
        dict(ap=1.0, ap50=1.0, ar_100=1.0, cat=1.0, dog=1.0),
    ),
    # One cat of two: recall stops at 0.5, which 51 of the 101 points reach at precision 1.
    "half of the cats": (
        {10: [(*CAT_1, 0.9, 0)], 11: [(*DOG, 0.7, 1)]},
        dict(ap=(51 / 101 + 1) / 2, ap50=(51 / 101 + 1) / 2, ar_100=0.75, cat=51 / 101, dog=1.0),
    ),
    # A wrong box between two right ones: precision 1 up to recall 0.5, then 2/3.
    "a false alarm between": (
        {10: [(*CAT_1, 0.9, 0), (500, 0, 600, 100, 0.8, 0), (*CAT_2, 0.7, 0)], 11: [(*DOG, 0.7, 1)]},
        dict(ap=((51 + 50 * 2 / 3) / 101 + 1) / 2, cat=(51 + 50 * 2 / 3) / 101, dog=1.0),
    ),
    # A box of 80 x 100 on one of 100 x 100 has IoU 0.8: right at 7 of the 10 thresholds (0.50 to 0.80).
    "loose boxes": (
        {10: [(0, 0, 80, 100, 0.9, 0), (200, 200, 280, 300, 0.8, 0)], 11: [(*DOG, 0.7, 1)]},
        dict(ap=(0.7 + 1) / 2, ap50=1.0, ap75=1.0, ar_100=(0.7 + 1) / 2, cat=0.7, dog=1.0),
    ),
    "the right box of the wrong class": (
        {10: [(*CAT_1, 0.9, 1), (*CAT_2, 0.8, 1)], 11: [(*DOG, 0.7, 1)]},
        # The dog comes third in its class, behind two false alarms.
        dict(ap=(0 + 1 / 3) / 2, cat=0.0, dog=1 / 3),
    ),
}


@pytest.mark.parametrize("case", SCORES)
def test_scores_are_those_worked_out_by_hand(case: str, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    answers, expected = SCORES[case]
    scores = evaluate(load(tmp_path, TRUTH), {k: found(*rows) for k, rows in answers.items()}, (7, 3))
    values = {**scores.to_dict(), **{score.name: score.ap for score in scores.per_class}}
    assert {name: values[name] for name in expected} == pytest.approx(expected, abs=1e-9)
    assert (scores.images, scores.instances) == (2, 3)
    assert [(score.name, score.instances) for score in scores.per_class] == [("cat", 2), ("dog", 1)]
    assert capfd.readouterr() == ("", "")


def test_a_score_without_ground_truth_is_none(tmp_path: Path) -> None:
    none = evaluate(load(tmp_path, []), {10: found((*CAT_1, 0.9, 0))}, (7, 3))
    assert none.ap is None and none.per_class[0].ap is None and none.detections == 1
    scores = evaluate(load(tmp_path, TRUTH), {10: found((*CAT_1, 0.9, 0))}, (7, 3))
    # 100 x 100 is large (over 96 squared), 20 x 20 small (under 32 squared), nothing is between.
    assert scores.ap_medium is None and scores.ap_small == 0.0
    assert scores.ap_large == pytest.approx(51 / 101)


def test_crowds_are_neither_found_nor_missed(tmp_path: Path) -> None:
    crowd = annotation(10, 7, [400, 0, 100, 100], iscrowd=1)
    answer = {10: found((*CAT_1, 0.8, 0), (*CAT_2, 0.7, 0), (410, 10, 480, 80, 0.9, 0)), 11: found((*DOG, 1, 1))}
    scores = evaluate(load(tmp_path, [*TRUTH, crowd]), answer, (7, 3))
    assert scores.ap == pytest.approx(1.0) and scores.instances == 3


def test_an_annotation_with_id_zero_counts(tmp_path: Path) -> None:
    # COCOeval writes the id of the matched box as the match, and reads 0 as none.
    truth = load(tmp_path, [{**item, "id": number} for number, item in enumerate(TRUTH)])
    scores = evaluate(truth, {10: found((*CAT_1, 0.9, 0), (*CAT_2, 0.8, 0)), 11: found((*DOG, 1, 1))}, (7, 3))
    assert scores.ap == pytest.approx(1.0)


MATCHES = {
    "nothing on either side": ([], {}, (), "BY POSITION"),
    "same names, other order": (["dog", "cat"], {7: "cat", 3: "dog"}, (3, 7), ""),
    "case, spaces and underscores": (
        ["Stop_Sign"],
        {13: "stop  sign"},
        (13,),
        "taken for the same: 'Stop_Sign' and 'stop  sign'",
    ),
    "names that differ in case alone": (["a", "A", "b", "B"], {1: "A", 2: "a", 3: "B", 4: "b"}, (2, 1, 4, 3), ""),
    "exact names leave one to fold": (["Cat", "dog"], {7: "cat", 3: "dog", 5: "DOG"}, (7, 3), "'Cat' and 'cat'"),
    "folding that leaves a choice": (["cat", "Dog"], {7: "cat", 3: "dog", 5: "DOG"}, (7, None), "left out: Dog"),
    "some are shared": (["cat", "fox"], {7: "cat", 3: "dog"}, (7, None), "left out: fox; categories the"),
    "no name is shared": (["a", "b", "c"], {7: "cat", 3: "dog"}, (7, 3, None), "NO class of the detector"),
}


@pytest.mark.parametrize("case", MATCHES)
def test_classes_are_matched_by_name_then_by_position(case: str) -> None:
    names, categories, expected, warning = MATCHES[case]
    match = match_classes(names, categories)
    assert match.category_ids == expected
    assert warning in match.warning and bool(warning) == bool(match.warning)


def test_results_are_xywh_of_known_categories() -> None:
    results = {5: found((1, 2, 4, 8, 0.5, 1), (0, 0, 1, 1, 0.25, 0)), 6: Detections.none()}
    assert to_coco(results, (None, 3)) == [
        {"image_id": 5, "category_id": 3, "bbox": [1.0, 2.0, 3.0, 6.0], "score": 0.5}
    ]


def test_boxes_of_a_picture_are_corners_of_category_ids(tmp_path: Path) -> None:
    truth = load(tmp_path, TRUTH, images=3)
    assert truth.boxes_of(10).boxes.tolist() == [[0, 0, 100, 100], [200, 200, 300, 300]]
    assert truth.boxes_of(11).classes.tolist() == [3]
    assert truth.boxes_of(12).boxes.shape == (0, 4)
