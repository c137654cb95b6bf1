import math

import numpy as np
import pytest
import torch

from retinaserve.training.model import build_model
from retinaserve.training.model.losses import MOST_CELLS, Target, aligned_loss, assign
from retinaserve.training.spec import DetectorSpec
from tests.toys import small_spec

# A row of cells of stride 10, whose anchors are the cells.
ANCHORS = torch.tensor([[10.0 * x, 0, 10.0 * x + 10, 10] for x in range(6)])
STRIDES = torch.full((6,), 10.0)


def target(
    *boxes: tuple[float, float, float, float], classes: tuple[int, ...] = (), crowd: bool = False
) -> Target:
    return Target(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.tensor(classes or (0,) * len(boxes)),
        torch.tensor([crowd] * len(boxes), dtype=torch.bool),
    )


def chosen(scores: torch.Tensor, boxes: torch.Tensor, wanted: Target) -> dict[int, tuple[int, float]]:
    """Return what each cell learns: the box, and its score to two digits."""
    cells, box, quality = assign(scores, boxes, ANCHORS, STRIDES, wanted.boxes, wanted.classes)
    found = zip(cells.tolist(), box.tolist(), quality.tolist(), strict=True)
    return {cell: (number, round(value, 2)) for cell, number, value in found}


EVEN = torch.full((6, 2), 0.5)


@pytest.mark.parametrize(
    ("boxes", "expected"),
    [
        pytest.param((), {}, id="no box"),
        # the fittest learns its own IoU; one that overlaps by half learns (1/2)^6 of it
        pytest.param(((10, 0, 20, 10),), {1: (0, 1.0)}, id="a cell's own box"),
        # two cells of equal overlap: 10 x 10 of 20 x 10
        pytest.param(((10, 0, 30, 10),), {1: (0, 0.5), 2: (0, 0.5)}, id="a box of two cells"),
        # a box smaller than the stride whose middle is between two cells' centres: IoU 4/100 of either
        pytest.param(((28, 4, 32, 6),), {2: (0, 0.04), 3: (0, 0.04)}, id="a box smaller than a cell"),
        # two boxes want cell 1, which overlaps the first more
        pytest.param(((10, 0, 20, 10), (10, 0, 20, 8)), {1: (0, 1.0)}, id="two boxes on a cell"),
    ],
)
def test_cells_learn_the_boxes_they_lie_on(
    boxes: tuple[tuple[float, float, float, float], ...], expected: dict[int, tuple[int, float]]
) -> None:
    found = chosen(EVEN, ANCHORS, target(*boxes))
    assert {cell: value for cell, value in found.items() if value[1] > 0} == expected


def test_of_cells_of_equal_overlap_the_one_that_knows_the_class_is_the_fittest() -> None:
    scores = EVEN.clone()
    scores[2, 1] = 0.25  # half the other's
    found = chosen(scores, ANCHORS, target((10, 0, 30, 10), classes=(1,)))
    assert {cell: value for cell, value in found.items() if value[1] > 0} == {1: (0, 0.5), 2: (0, 0.25)}


def test_a_box_that_loses_its_fittest_cell_is_learnt_by_the_next() -> None:
    """Equation 3 of the paper: the largest score of a box is its cells' largest IoU, of those that it has."""
    predicted = ANCHORS.clone()
    predicted[2] = torch.tensor([18, 0, 32, 10])  # the first box, and nearly the second
    predicted[3] = torch.tensor([22, 0, 42, 10])
    found = chosen(EVEN, predicted, target((18, 0, 32, 10), (19, 0, 34, 10)))
    assert found == {2: (0, 1.0), 3: (1, 0.52)}  # 12 of 23


def test_a_box_is_learnt_by_so_many_cells_at_most() -> None:
    anchors = torch.tensor([[x, 0, x + 40, 40] for x in np.arange(0, 20, 0.5)], dtype=torch.float32)
    wanted = target((0, 0, 60, 40))
    cells, _, _ = assign(
        torch.full((40, 1), 0.5), anchors, anchors, torch.full((40,), 8.0), wanted.boxes, wanted.classes
    )
    assert len(cells) == MOST_CELLS


def test_the_loss_by_hand() -> None:
    """A cell of logit 0 on a box it predicts exactly, and a cell of logit 0 on nothing."""
    logits = torch.zeros(1, 1, 1, 2)
    deltas = torch.zeros(1, 4, 1, 2)
    anchors = ANCHORS[[0, 5]]
    losses = aligned_loss([(logits, deltas)], [target((0, 0, 10, 10))], anchors, STRIDES[:2])
    # |0.5 - 1|^2 ln 2 for the first and |0.5 - 0|^2 ln 2 for the second; the scores to learn add up to 1
    assert losses.cls.item() == pytest.approx(0.5 * math.log(2), rel=1e-5)
    assert losses.box.item() == pytest.approx(0.0, abs=1e-5)
    # A box of twice the width: GIoU is IoU, 1/2, which is also the score to learn: |0.5 - 0.5|^2 of the first.
    losses = aligned_loss([(logits, deltas)], [target((0, 0, 20, 10))], anchors, STRIDES[:2])
    assert losses.box.item() == pytest.approx(0.5 * 0.5, rel=1e-4)  # divided by 1, not less
    assert losses.cls.item() == pytest.approx(0.25 * math.log(2), rel=1e-4)


def test_cells_in_a_crowd_learn_nothing() -> None:
    logits = torch.zeros(1, 1, 1, 2, requires_grad=True)
    losses = aligned_loss(
        [(logits, torch.zeros(1, 4, 1, 2))], [target((0, 0, 12, 12), crowd=True)], ANCHORS[[0, 5]], STRIDES[:2]
    )
    losses.cls.backward()
    assert logits.grad is not None and logits.grad.flatten().tolist()[0] == 0 < logits.grad.flatten().tolist()[1]


def test_a_network_of_the_family_learns_a_batch() -> None:
    family = {"backbone": "fast-n", "width": 16, "norm": "batch", "towers": "one", "p6_from": "none"}
    spec = small_spec(["a", "b"], size=(64, 64), one_anchor=True, anchor_size=3, **family)
    assert (spec.strides, spec.anchors_per_cell, len(spec.all_strides())) == ((8, 16, 32), 1, 64 + 16 + 4)
    assert DetectorSpec.from_json(spec.to_json()) == spec
    torch.manual_seed(0)
    model = build_model(spec)
    anchors, strides = torch.from_numpy(spec.all_anchors()), torch.from_numpy(spec.all_strides())
    images = torch.zeros(2, 3, 64, 64)
    images[0, 0, 8:40, 8:40], images[1, 1, 20:60, 10:40] = 3.0, 3.0
    targets = [target((8, 8, 40, 40)), target((10, 20, 40, 60), classes=(1,))]
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    seen = []
    for _ in range(30):
        losses = aligned_loss(model(images), targets, anchors, strides)
        optimizer.zero_grad()
        (losses.cls + 2 * losses.box).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        seen.append(float(losses.box.detach()))
    assert seen[-1] < 0.6 * seen[0]
