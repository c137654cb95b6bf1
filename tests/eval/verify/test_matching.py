"""Matching by hand: what is the same box, what has no counterpart, and what a cut explains."""

from dataclasses import replace

import numpy as np
import pytest

from retinaserve.eval.verify.matching import Cuts, iou_matrix, match
from retinaserve.training.detections import Detections

CUTS = Cuts(score_threshold=0.05, max_detections=4, nms_iou=0.5, margin=0.01)
Row = tuple[float, int, tuple[float, float, float, float]]
A, B, C = (0.0, 0.0, 10.0, 10.0), (20.0, 0.0, 30.0, 10.0), (40.0, 0.0, 50.0, 10.0)


def found(*rows: Row) -> Detections:
    scores, classes, boxes = zip(*rows, strict=True) if rows else ((), (), ())
    return Detections.from_slots(len(rows), np.array(boxes).reshape(-1, 4), scores, classes)


def test_iou_by_hand() -> None:
    one = np.array([A, (0, 0, 10, 0)], np.float32)
    other = np.array([A, (5, 0, 15, 10), B, (0, 1e-6, 10, 2e-6), (0, 0.5, 10, 0.5)], np.float32)
    found = iou_matrix(one, other)
    np.testing.assert_allclose(found[0, :3], [1, 1 / 3, 0])
    # the sliver is 11 x 1 here, one half a pixel below it shares half of that
    np.testing.assert_allclose(found[1, 3:], [1, 1 / 3], atol=1e-5)


# name: (reference, candidate, matched pairs, unmatched as (side, index, other class), borderline)
CASES = {
    "nothing": ((), (), [], [], 0),
    "the same": (((0.9, 0, A), (0.8, 1, B)), ((0.9, 0, A), (0.8, 1, B)), [[0, 0], [1, 1]], [], 0),
    "another order": (((0.9, 0, A), (0.8, 0, B)), ((0.9, 0, B), (0.8, 0, A)), [[0, 1], [1, 0]], [], 0),
    "missing": (((0.9, 0, A), (0.8, 0, B)), ((0.9, 0, A),), [[0, 0]], [("reference", 1, -1)], 0),
    "extra": ((), ((0.9, 2, A),), [], [("candidate", 0, -1)], 0),
    "another class": (((0.9, 0, A),), ((0.9, 1, A),), [], [("reference", 0, 1), ("candidate", 0, 0)], 0),
    "barely the same": (((0.9, 0, A),), ((0.9, 0, (0, 0, 10, 5)),), [[0, 0]], [], 0),
    "no longer the same": (
        ((0.9, 0, A),), ((0.9, 0, (0, 0, 10, 4.9)),), [], [("reference", 0, -1), ("candidate", 0, -1)], 0,
    ),
    "each box once, what NMS forgot is alone": (
        ((0.9, 0, A),), ((0.9, 0, A), (0.8, 0, (0, 0, 10, 9))), [[0, 0]],
        [("candidate", 1, -1)], 0,
    ),
    "at the threshold": (((0.9, 0, A), (0.059, 0, B)), ((0.9, 0, A),), [[0, 0]], [], 1),
    "above the threshold": (((0.9, 0, A), (0.061, 0, B)), ((0.9, 0, A),), [[0, 0]], [("reference", 1, -1)], 0),
    "at the cut": (
        ((0.9, 0, A), (0.305, 0, B)),
        ((0.9, 0, A), (0.8, 0, C), (0.7, 1, C), (0.3, 2, C)),
        [[0, 0]],
        [("candidate", 1, -1), ("candidate", 2, -1), ("candidate", 3, -1)],
        1,
    ),
    "not all places taken": (
        ((0.9, 0, A), (0.305, 0, B)), ((0.9, 0, A), (0.3, 0, C)), [[0, 0]],
        [("reference", 1, -1), ("candidate", 1, -1)], 0,
    ),
    # IoU 0.49 with a better box of its class: NMS may take it away
    "at the limit of NMS": (((0.9, 0, A), (0.8, 0, (0, 0, 10, 4.9))), ((0.9, 0, A),), [[0, 0]], [], 1),
    "another class is no rival": (
        ((0.9, 0, A), (0.8, 1, (0, 0, 10, 4.9))), ((0.9, 0, A),), [[0, 0]], [("reference", 1, -1)], 0,
    ),
    "a weaker box is no rival": (
        ((0.9, 0, A), (0.8, 0, (0, 0, 10, 4.9))), ((0.8, 0, (0, 0, 10, 4.9)),), [[1, 0]],
        [("reference", 0, -1)], 0,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_pairs(case: str) -> None:
    reference, candidate, pairs, unmatched, borderline = CASES[case]
    result = match(found(*reference), found(*candidate), CUTS)
    assert result.pairs.tolist() == pairs
    assert [(item.side, item.index, item.other_class) for item in result.unmatched] == unmatched
    assert result.borderline == borderline


def test_the_last_candidate_of_a_level_is_a_cut() -> None:
    cuts = replace(CUTS, topk=(0.2, 0.41))
    result = match(found((0.5, 0, A), (0.405, 0, B), (0.38, 0, C)), found(), cuts)
    assert [box.index for box in result.unmatched] == [0, 2] and result.borderline == 1


def test_scores_and_overlaps_are_told() -> None:
    result = match(found((0.9, 0, A), (0.5, 0, B)), found((0.8, 0, A), (0.6, 0, (20, 0, 30, 8))), CUTS)
    np.testing.assert_allclose(result.score_difference, [-0.1, 0.1], atol=1e-6)
    np.testing.assert_allclose(result.iou, [1, 0.8])


def test_a_box_of_nan_pairs_with_nothing() -> None:
    nan = (float("nan"),) * 4
    with np.errstate(invalid="ignore"):
        result = match(found((0.9, 0, A)), found((0.9, 0, nan)), CUTS)
    assert result.pairs.size == 0 and len(result.unmatched) == 2
