from pathlib import Path

import pytest

from retinaserve.eval.report.error_types import IGNORED, KINDS, NEVER, ap50_gains
from tests.eval.scenes import LABELS, Row, classified_boxes, label

# Detections and their kinds in an image with a cat at (0, 0, 100, 100) and a dog at (0, 0, 100, 60): IoU 0.6.
CASES: dict[str, tuple[list[Row], list[str]]] = {
    "nothing": ([], []),
    "right": ([(0, 0, 100, 100, 0.9, 0)], ["correct"]),
    "as good as needed": ([(0, 0, 100, 50, 0.9, 0)], ["correct"]),  # IoU 0.5 with the cat
    "a little worse": ([(0, 0, 100, 48, 0.9, 0)], ["localisation"]),  # 0.48, though 0.8 with the dog
    "far off": ([(0, 0, 100, 5, 0.9, 0)], ["background"]),  # 0.05 with the cat, 0.083 with the dog
    "elsewhere": ([(300, 300, 400, 400, 0.9, 1)], ["background"]),
    "twice": ([(0, 0, 100, 100, 0.8, 0), (0, 0, 100, 99, 0.9, 0)], ["class", "correct"]),  # 0.6 with the dog
    "twice, apart from the dog": ([(0, 0, 100, 100, 0.9, 0), (0, 45, 100, 100, 0.8, 0)], ["correct", "duplicate"]),
}


@pytest.mark.parametrize("case", CASES)
def test_each_wrong_detection_has_the_kind_that_tide_gives_it(case: str, tmp_path: Path) -> None:
    answers, expected = CASES[case]
    truth = label(tmp_path, [(10, 7, (0, 0, 100, 100)), (10, 3, (0, 0, 100, 60))])
    classified = classified_boxes(truth, {10: answers})
    assert [KINDS[kind] for kind in classified.kind] == expected


def test_a_scene_is_judged_as_by_hand(tmp_path: Path) -> None:
    classified = classified_boxes(label(tmp_path))
    kinds = [KINDS[kind] for kind in classified.kind]
    assert kinds == ["correct", "duplicate", "localisation", "class", "both", "background", "correct"]
    assert classified.target.tolist() == [0, 0, 1, 1, -1, -1, 2]
    assert classified.found == pytest.approx([0.9, NEVER, 0.3, NEVER])
    assert classified.claim == pytest.approx([NEVER, 0.6, NEVER, NEVER])
    assert classified.claimant.tolist() == [-1, 3, -1, -1]
    assert classified.covered == pytest.approx([NEVER, 0.7, NEVER, NEVER])


def test_what_lies_on_a_crowd_is_neither_right_nor_wrong(tmp_path: Path) -> None:
    crowd = label(tmp_path, [LABELS[0]], iscrowd=1)
    classified = classified_boxes(crowd, {10: [(0, 0, 90, 90, 0.9, 0), (300, 0, 400, 90, 0.8, 0)]})
    assert classified.kind[0] == IGNORED and KINDS[classified.kind[1]] == "background"
    assert len(classified.found) == 0


# AP50 of the scene: cats reach recall 0.5 (51 of 101 points) at precision 1, dogs at precision 1/3. Mended:
EXPECTED = {
    "localisation": 50 * (2 / 3) / 101 / 2,  # the second cat comes third
    "class": (50 * (2 / 4) + 51 * (1 / 2 - 1 / 3)) / 101 / 2,  # the second cat fourth, and one false dog less
    "both": 51 * (1 / 2 - 1 / 3) / 101 / 2,  # one false dog less
    "duplicate": 0.0,  # comes after the first cat, and nothing comes after it
    "background": 0.0,
    "missed": (1 / 3 - 51 / 101 / 3) / 2,  # the one dog that is left is found
}


def test_gains_are_those_worked_out_by_hand(tmp_path: Path) -> None:
    truth = label(tmp_path)
    assert ap50_gains(classified_boxes(truth)) == pytest.approx(EXPECTED)


def test_without_labels_nothing_can_be_gained(tmp_path: Path) -> None:
    truth = label(tmp_path, [])
    assert set(ap50_gains(classified_boxes(truth)).values()) == {None}


def test_a_blind_detector_misses_everything(tmp_path: Path) -> None:
    truth = label(tmp_path)
    found = ap50_gains(classified_boxes(truth, {}))
    assert found["missed"] == 1.0 and sum(value or 0 for value in found.values()) == 1.0


def test_only_the_best_of_several_errors_on_a_box_is_mended(tmp_path: Path) -> None:
    truth = label(tmp_path, [(10, 7, (0, 0, 100, 100))])
    loose = [(0, 0, 100, 40, 0.9, 0), (0, 60, 100, 100, 0.8, 0)]
    # One is mended, the other goes. Were only the weaker one mended, precision would be 1/2.
    assert ap50_gains(classified_boxes(truth, {10: loose}))["localisation"] == pytest.approx(1.0)
