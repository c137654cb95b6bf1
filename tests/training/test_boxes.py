import math

import pytest
import torch

from retinaserve.training.model.losses import area, decode, encode, intersection, iou_matrix


def boxes(*rows: tuple[float, float, float, float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ((0, 0, 10, 10), (0, 0, 10, 10), 1.0),
        ((0, 0, 10, 10), (10, 0, 20, 10), 0.0),  # half-open: neighbours share nothing
        ((0, 0, 10, 10), (5, 0, 15, 10), 50 / 150),
        ((0, 0, 10, 10), (2, 2, 4, 4), 4 / 100),
        ((0, 0, 10, 10), (20, 20, 30, 30), 0.0),
        ((3, 3, 3, 3), (3, 3, 3, 3), 0.0),  # nothing over nothing is nothing
        ((0, 0, 10, 10), (5, 5, 5, 9), 0.0),
    ],
)
def test_iou_by_hand(
    first: tuple[float, float, float, float], second: tuple[float, float, float, float], expected: float
) -> None:
    assert iou_matrix(boxes(first), boxes(second)).item() == pytest.approx(expected, abs=1e-6)
    assert iou_matrix(boxes(second), boxes(first)).item() == pytest.approx(expected, abs=1e-6)


def test_no_boxes_have_no_overlaps() -> None:
    assert iou_matrix(boxes(), boxes((0, 0, 1, 1))).shape == (0, 1)
    assert intersection(boxes((0, 0, 1, 1)), boxes()).shape == (0,)
    assert area(boxes()).shape == (0,)
    assert encode(boxes(), boxes()).shape == decode(boxes(), boxes()).shape == (0, 4)


def test_areas_by_hand() -> None:
    assert area(boxes((0, 0, 3, 4), (1, 1, 1, 9))).tolist() == [12, 0]


# The coding of Fast R-CNN (https://arxiv.org/abs/1311.2524, appendix C): (x - xa) / wa, log(w / wa).
CODES = [
    ((0, 0, 10, 20), (0, 0, 10, 20), (0, 0, 0, 0)),
    ((0, 0, 10, 20), (5, 5, 15, 15), (0.5, 0, 0, math.log(0.5))),
    ((10, 10, 20, 20), (0, 15, 40, 25), (0.5, 0.5, math.log(4), 0)),
]


@pytest.mark.parametrize(("anchor", "box", "deltas"), CODES)
def test_deltas_by_hand(
    anchor: tuple[float, float, float, float],
    box: tuple[float, float, float, float],
    deltas: tuple[float, float, float, float],
) -> None:
    assert encode(boxes(box), boxes(anchor))[0].tolist() == pytest.approx(deltas, abs=1e-6)
    assert decode(boxes(deltas), boxes(anchor))[0].tolist() == pytest.approx(box, abs=1e-5)


def test_a_huge_delta_is_clamped_and_a_small_one_is_not() -> None:
    large, small = decode(boxes((0, 0, 50, 50), (0, 0, -50, -50)), boxes((-8, -8, 8, 8), (-8, -8, 8, 8)))
    assert large.tolist() == pytest.approx([-500, -500, 500, 500], rel=1e-5)  # 16 * 1000 / 16 pixels
    assert small.tolist() == pytest.approx([0, 0, 0, 0], abs=1e-6)
