import pytest
import torch

from retinaserve.training.model.matcher import BACKGROUND, IGNORED, match

ANCHORS = torch.tensor(
    [
        [0, 0, 10, 10],  # the reference
        [0, 0, 10, 20],  # overlaps it by exactly 0.5
        [0, 0, 10, 24],  # by 100/240 = 0.417
        [0, 0, 10, 30],  # by 0.333
        [50, 50, 60, 60],
        [50, 50, 70, 60],
    ],
    dtype=torch.float32,
)
FAR = (200.0, 200.0, 210.0, 210.0)
Row = tuple[float, float, float, float]


@pytest.mark.parametrize(
    ("rows", "crowd", "expected"),
    [
        pytest.param([], [], [-1] * 6, id="no boxes"),
        pytest.param([(0, 0, 10, 10)], [0], [0, 0, -2, -1, -1, -1], id="thresholds"),
        pytest.param([(0, 0, 10, 40)], [0], [-1, 0, 0, 0, -1, -1], id="by half and more"),
        # 6/20 wide: overlaps anchor 4 by 0.06 and anchor 5 by 0.03, and is matched all the same.
        pytest.param([(52, 52, 55, 54)], [0], [-1, -1, -1, -1, 0, -1], id="keeps its best, however little"),
        pytest.param([FAR], [0], [-1] * 6, id="overlaps nothing"),
        pytest.param([FAR, (0, 0, 10, 10)], [0, 0], [1, 1, -2, -1, -1, -1], id="index of the second"),
        # Both overlap anchor 4 most of all; the second does more.
        pytest.param(
            [(50, 50, 53, 53), (50, 50, 54, 54)], [0, 0], [-1, -1, -1, -1, 1, -1], id="shared best anchor"
        ),
        pytest.param([(45, 45, 80, 80)], [1], [-1, -1, -1, -1, -2, -2], id="crowd silences"),
        pytest.param([(50, 50, 60, 54)], [1], [-1] * 6, id="crowd over less than half"),
        pytest.param(
            [(0, 0, 100, 100), (50, 50, 60, 60)], [1, 0], [-2, -2, -2, -2, 1, 1], id="a box within a crowd"
        ),
    ],
)
def test_matches_by_hand(rows: list[Row], crowd: list[int], expected: list[int]) -> None:
    boxes = torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)
    assert match(ANCHORS, boxes, torch.tensor(crowd, dtype=torch.bool)).tolist() == expected


def test_a_box_keeps_its_best_anchor_from_a_better_overlap() -> None:
    # The second box overlaps anchor 0 by 0.44 at best; the first, by 1, owns it. Both can't have it.
    boxes = torch.tensor([[0, 0, 10, 10], [0, 0, 9, 5]], dtype=torch.float32)
    matches = match(ANCHORS[:1], boxes, torch.zeros(2, dtype=torch.bool))
    assert matches.tolist() == [0]


def test_codes() -> None:
    assert BACKGROUND < 0 and IGNORED < 0 and BACKGROUND != IGNORED
