from pathlib import Path

import numpy as np
import pytest

from retinaserve.training.data.augment import View
from retinaserve.training.data.dataset import Labels
from retinaserve.training.data.placement import Frame, Placement, place, place_labels


@pytest.mark.parametrize(
    ("view", "original", "frame", "expected"),
    [
        (View(), (100, 200), Frame((64, 64)), Placement((0, 0, 200, 100), (32, 64), (0, 0), (64, 64), False)),
        (
            View(flip=True, zoom=2, across=0.5, down=1.0),
            (100, 200),
            Frame((64, 64)),
            Placement((0, 0, 200, 100), (64, 128), (0, -32), (64, 64), True),
        ),
        (
            View(window=(0.25, 0.5, 0.75, 1.0)),
            (100, 200),
            Frame((64, 64)),
            Placement((50, 50, 150, 100), (32, 64), (0, 0), (64, 64), False),
        ),
        # The predecessor's: the shorter side becomes 50, the canvas is whole strides.
        (
            View(),
            (100, 200),
            Frame((64, 64), 50, 120),
            Placement((0, 0, 200, 100), (50, 100), (0, 0), (64, 128), False),
        ),
        # The longer side is at most 80.
        (
            View(),
            (100, 200),
            Frame((64, 64), 50, 80),
            Placement((0, 0, 200, 100), (40, 80), (0, 0), (64, 96), False),
        ),
        (View(), (1, 900), Frame((64, 64), 50, 90), Placement((0, 0, 900, 1), (1, 90), (0, 0), (32, 96), False)),
    ],
    ids=["letterbox", "zoom and cut", "window", "shorter side", "longest side", "a line"],
)
def test_places_by_hand(view: View, original: tuple[int, int], frame: Frame, expected: Placement) -> None:
    assert place(view, original, frame) == expected


@pytest.mark.parametrize(
    ("placement", "expected"),
    [
        (Placement((0, 0, 200, 100), (50, 100), (0, 0), (64, 128), False), [[5, 10, 20, 25]]),
        (Placement((0, 0, 200, 100), (50, 100), (0, 0), (64, 128), True), [[80, 10, 95, 25]]),
        (Placement((20, 0, 120, 100), (100, 100), (4, 0), (128, 128), False), [[0, 24, 20, 54]]),
        (Placement((36, 0, 136, 100), (100, 100), (0, 0), (128, 128), False), []),  # 4 of 30 pixels are left
    ],
    ids=["half as large", "mirrored", "cut and moved", "cut off"],
)
def test_boxes_by_hand(placement: Placement, expected: list[list[float]]) -> None:
    box = np.array([[10, 20, 40, 50]], np.float32)
    labels = Labels(1, Path("x"), box, np.zeros(1, np.int64), np.zeros(1, np.bool_))
    assert place_labels(labels, placement).boxes.tolist() == expected
