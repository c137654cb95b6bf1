from pathlib import Path

import numpy as np
import pytest

from retinaserve.eval.report.outcomes import IGNORED, KINDS, NEVER, iou
from tests.eval.scenes import LABELS, Row, label, outcomes_of

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
    outcomes = outcomes_of(truth, {10: answers})
    assert [KINDS[kind] for kind in outcomes.kind] == expected


def test_a_scene_is_judged_as_by_hand(tmp_path: Path) -> None:
    outcomes = outcomes_of(label(tmp_path))
    kinds = [KINDS[kind] for kind in outcomes.kind]
    assert kinds == ["correct", "duplicate", "localisation", "class", "both", "background", "correct"]
    assert outcomes.target.tolist() == [0, 0, 1, 1, -1, -1, 2]
    assert outcomes.found == pytest.approx([0.9, NEVER, 0.3, NEVER])
    assert outcomes.claim == pytest.approx([NEVER, 0.6, NEVER, NEVER])
    assert outcomes.claimant.tolist() == [-1, 3, -1, -1]
    assert outcomes.covered == pytest.approx([NEVER, 0.7, NEVER, NEVER])


def test_what_lies_on_a_crowd_is_neither_right_nor_wrong(tmp_path: Path) -> None:
    crowd = label(tmp_path, [LABELS[0]], iscrowd=1)
    outcomes = outcomes_of(crowd, {10: [(0, 0, 90, 90, 0.9, 0), (300, 0, 400, 90, 0.8, 0)]})
    assert outcomes.kind[0] == IGNORED and KINDS[outcomes.kind[1]] == "background"
    assert len(outcomes.found) == 0


def test_iou_is_that_of_pycocotools() -> None:
    from pycocotools import mask

    rng = np.random.default_rng(0)
    one, other = (rng.uniform(0, 60, (n, 4)) for n in (20, 30))
    for boxes in (one, other):
        boxes[:, 2:] += boxes[:, :2]  # corners
    sizes = [np.hstack([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]]) for boxes in (one, other)]
    assert iou(one, other) == pytest.approx(mask.iou(sizes[0], sizes[1], [0] * 30), abs=1e-12)
    assert iou(np.zeros((1, 4)), np.zeros((1, 4))) == 0
