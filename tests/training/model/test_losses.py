import math

import numpy as np
import pytest
import torch

from retinaserve.training.anchors import grid_anchors
from retinaserve.training.model.losses import Target, detection_loss, focal_loss, giou_loss, match, smooth_l1
from retinaserve.training.spec import DetectorSpec

ANCHORS = torch.tensor([[0, 0, 10, 10], [0, 0, 10, 24], [40, 40, 50, 50]], dtype=torch.float32)


def logit(probability: float) -> float:
    return math.log(probability / (1 - probability))


@pytest.mark.parametrize(
    ("probability", "target", "expected"),
    [
        (0.5, 1, 0.25 * 0.5**2 * math.log(2)),
        (0.5, 0, 0.75 * 0.5**2 * math.log(2)),
        # "an example classified with p_t = 0.9 would have 100x lower loss" (the paper, section 3.2)
        (0.9, 1, 0.25 * -math.log(0.9) / 100),
        (0.1, 0, 0.75 * -math.log(0.9) / 100),
    ],
)
def test_focal_loss_by_hand(probability: float, target: int, expected: float) -> None:
    loss = focal_loss(torch.tensor([logit(probability)]), torch.tensor([float(target)]))
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_focal_loss_is_its_definition_in_float64() -> None:
    rng = np.random.default_rng(0)
    logits, targets = rng.normal(0, 4, (50, 7)), (rng.random((50, 7)) < 0.2).astype(np.float64)
    p = 1 / (1 + np.exp(-logits))
    p_t, alpha_t = np.where(targets == 1, p, 1 - p), np.where(targets == 1, 0.25, 0.75)
    expected = -(alpha_t * (1 - p_t) ** 2 * np.log(p_t)).sum()
    found = focal_loss(torch.from_numpy(logits).float(), torch.from_numpy(targets).float())
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_focal_loss_of_extreme_logits_has_finite_gradients() -> None:
    logits = torch.tensor([-200.0, 200.0, 0.0], requires_grad=True)
    focal_loss(logits, torch.tensor([1.0, 0.0, 0.0])).backward()
    assert logits.grad is not None and torch.isfinite(logits.grad).all()


@pytest.mark.parametrize(
    ("distance", "expected"), [(0.0, 0.0), (0.05, 0.05**2 / 0.22), (0.11, 0.055), (1.0, 0.945), (-1.0, 0.945)]
)
def test_smooth_l1_by_hand(distance: float, expected: float) -> None:
    found = smooth_l1(torch.tensor([distance]), torch.zeros(1))
    assert found.item() == pytest.approx(expected, rel=1e-5)


def heads(logits: list[float], deltas: list[list[float]]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """One level of one cell: three anchors, and as many classes as the logits are for."""
    return [(torch.tensor(logits).reshape(1, -1, 1, 1), torch.tensor(deltas).reshape(1, -1, 1, 1))]


def target(boxes: list[list[float]], classes: list[int], crowd: list[int]) -> Target:
    return Target(
        torch.tensor(boxes).reshape(-1, 4),
        torch.tensor(classes, dtype=torch.int64),
        torch.tensor(crowd, dtype=torch.bool),
    )


POSITIVE, NEGATIVE = 0.25 * 0.25 * math.log(2), 0.75 * 0.25 * math.log(2)


@pytest.mark.parametrize(
    ("wanted", "cls", "box"),
    [
        # At logit 0 everywhere, 3 anchors x 2 classes.
        pytest.param(target([], [], []), 6 * NEGATIVE, 0.0, id="no boxes divide by one"),
        # Anchor 0 is foreground, anchor 1 overlaps by 0.417 and is ignored, anchor 2 is background.
        pytest.param(
            target([[0.0, 0, 10, 10]], [1], [0]), POSITIVE + NEGATIVE + 2 * NEGATIVE, 3 * 0.945, id="one box"
        ),
        pytest.param(
            target([[0.0, 0, 10, 10], [40.0, 40, 50, 50]], [1, 0], [0, 0]),
            (2 * POSITIVE + 2 * NEGATIVE) / 2,
            3 * 0.945 / 2,
            id="two boxes halve",
        ),
        pytest.param(target([[0.0, 0, 100, 100]], [0], [1]), 0.0, 0.0, id="all crowd"),
    ],
)
def test_detection_loss_by_hand(wanted: Target, cls: float, box: float) -> None:
    # Anchor 0 is off by one in three of its deltas, the last of them negative; the others are perfect.
    output = heads([0.0] * 6, [[1, 1, 0, -1], [0, 0, 0, 0], [0, 0, 0, 0]])
    losses = detection_loss([(logits, deltas.float()) for logits, deltas in output], [wanted], ANCHORS)
    assert losses.cls.item() == pytest.approx(cls, rel=1e-5)
    assert losses.box.item() == pytest.approx(box, rel=1e-5)


def test_channels_belong_to_the_anchors_as_the_spec_says() -> None:
    # Channel a*C + c: a high score on anchor 2, class 1 of 2, alone is channel 5.
    logits = torch.full((1, 6, 1, 1), -20.0)
    logits[0, 5] = 20.0
    wanted = target([[40.0, 40, 50, 50]], [1], [0])
    losses = detection_loss([(logits, torch.zeros(1, 12, 1, 1))], [wanted], ANCHORS)
    assert losses.cls.item() == pytest.approx(0, abs=1e-6) and losses.box.item() == 0


def test_levels_and_cells_follow_the_grid() -> None:
    spec = DetectorSpec.create(["a"], size=(64, 64))
    grids = [
        torch.from_numpy(grid_anchors(table, stride, *spec.feature_size(level)))
        for level, (table, stride) in enumerate(zip(spec.anchor_table, spec.strides, strict=True))
    ]
    # The box is exactly anchor 7 of cell (2, 1) of the second level.
    level, anchor, row, column = 1, 7, 2, 1
    height, width = spec.feature_size(level)
    box = grids[level][(anchor * height + row) * width + column]
    output = []
    for index in range(5):
        h, w = spec.feature_size(index)
        output.append((torch.full((1, 9, h, w), -20.0), torch.zeros(1, 36, h, w)))
    wanted = Target(box[None], torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.bool))
    missed = detection_loss(output, [wanted], torch.cat(grids))
    # A positive at logit -20 costs alpha * 20, at 20 nothing.
    foreground = int((match(torch.cat(grids), wanted.boxes, wanted.crowd) >= 0).sum())
    output[level][0][0, anchor, row, column] = 20.0
    found = detection_loss(output, [wanted], torch.cat(grids))
    assert float(missed.cls - found.cls) * foreground == pytest.approx(0.25 * 20, rel=1e-4)


def test_half_precision_heads_are_summed_in_float32() -> None:
    output = [(torch.zeros(1, 6, 1, 1, dtype=torch.bfloat16), torch.ones(1, 12, 1, 1, dtype=torch.bfloat16))]
    losses = detection_loss(output, [target([[0.0, 0, 10, 10]], [1], [0])], ANCHORS)
    assert losses.cls.dtype == losses.box.dtype == torch.float32
    assert losses.box.item() == pytest.approx(4 * 0.945, rel=1e-5)


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ([0, 0, 10, 10], 0.0),
        ([10, 0, 20, 10], 1.0),  # side by side: no overlap, and nothing else in the hull
        ([5, 0, 15, 10], 1 - 50 / 150),
        ([20, 0, 30, 10], 1 + 100 / 300),  # a third of the hull is neither's
    ],
    ids=["the same", "neighbours", "half", "apart"],
)
def test_giou_by_hand(box: list[float], expected: float) -> None:
    target = torch.tensor([[0.0, 0, 10, 10]])
    assert giou_loss(torch.tensor([box], dtype=torch.float32), target).item() == pytest.approx(expected, abs=1e-6)


def test_giou_of_no_boxes_is_nothing_and_has_a_gradient() -> None:
    none = torch.zeros((0, 4), requires_grad=True)
    loss = giou_loss(none, torch.zeros((0, 4)))
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == 0


MATCHED_ANCHORS = torch.tensor(
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
    assert match(MATCHED_ANCHORS, boxes, torch.tensor(crowd, dtype=torch.bool)).tolist() == expected


def test_a_box_keeps_its_best_anchor_from_a_better_overlap() -> None:
    # The second box overlaps anchor 0 by 0.44 at best; the first, by 1, owns it. Both can't have it.
    boxes = torch.tensor([[0, 0, 10, 10], [0, 0, 9, 5]], dtype=torch.float32)
    matched = match(MATCHED_ANCHORS[:1], boxes, torch.zeros(2, dtype=torch.bool))
    assert matched.tolist() == [0]
