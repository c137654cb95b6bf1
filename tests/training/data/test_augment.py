from pathlib import Path

import numpy as np
import pytest
import torch

from retinaserve.training.data.augment import (
    LADDER,
    WHOLE,
    Frame,
    Placement,
    View,
    place,
    place_labels,
    random_view,
)
from retinaserve.training.data.dataset import Labels

BOXES = np.array([[0.1, 0.1, 0.3, 0.3], [0.7, 0.8, 0.9, 0.9]])


def views(mode: str, count: int = 200, **options: object) -> list[View]:
    rng = np.random.default_rng(0)
    return [random_view(mode, rng, **options) for _ in range(count)]  # type: ignore[arg-type]


def test_each_step_of_the_ladder_adds_one_thing() -> None:
    def does(mode: str) -> list[bool]:
        drawn = views(mode, boxes=BOXES)
        return [
            any(view.flip for view in drawn),
            any(view.zoom != 1 for view in drawn),
            any(view.window != WHOLE for view in drawn),
            any(view.recolours or view.gain != 1 for view in drawn),
        ]

    for number, mode in enumerate(LADDER):
        assert does(mode) == [True] * number + [False] * (4 - number)


def test_the_range_of_zooms_is_free() -> None:
    zooms = [view.zoom for view in views("multiscale", zoom=(0.5, 2.0))]
    assert 0.5 <= min(zooms) < 0.6 and 1.8 < max(zooms) <= 2.0


def test_a_crop_keeps_the_middle_of_a_box() -> None:
    cropped = [view.window for view in views("crop", boxes=BOXES) if view.window != WHOLE]
    assert len(cropped) > 60
    for x1, y1, x2, y2 in cropped:
        assert 0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1 and (x2 - x1) * (y2 - y1) > 0.2
        assert (x1 <= 0.2 < x2 and y1 <= 0.2 < y2) or (x1 <= 0.8 < x2 and y1 <= 0.85 < y2)


def test_an_image_without_boxes_is_cropped_anywhere() -> None:
    assert any(view.window != WHOLE for view in views("crop", boxes=np.zeros((0, 4))))


@pytest.mark.parametrize(
    ("view", "colour", "expected"),
    [
        (View(), (10, 20, 30), (10, 20, 30)),
        (View(gain=0.5, offset=0.1), (100, 200, 0), (75.5, 125.5, 25.5)),
        (View(saturation=0.0), (255, 0, 0), (76.2, 76.2, 76.2)),  # NTSC's luma: 0.299 of 255
        (View(saturation=0.5, hue=180), (90, 90, 90), (90, 90, 90)),
        # Half a turn of the colour axes: chroma changes its sign about the luma.
        (View(hue=180), (255, 0, 0), (-102.5, 152.5, 152.5)),
    ],
    ids=["none", "gain and offset", "no saturation", "grey stays", "half a turn"],
)
def test_colours_by_hand(view: View, colour: tuple[int, ...], expected: tuple[float, ...]) -> None:
    matrix, offset = view.colours()
    assert (matrix @ np.array(colour) + offset).tolist() == pytest.approx(expected, abs=0.5)


WIDE = (0, 0, 200, 100)  # all of an image that is 100 high and 200 wide
SQUARE = Frame((64, 64))
PLACES = {
    "letterbox": (View(), SQUARE, Placement(WIDE, (32, 64), (0, 0), (64, 64), False)),
    "zoom and cut": (
        View(flip=True, zoom=2, across=0.5, down=1.0), SQUARE,
        Placement(WIDE, (64, 128), (0, -32), (64, 64), True),
    ),
    "window": (
        View(window=(0.25, 0.5, 0.75, 1.0)), SQUARE,
        Placement((50, 50, 150, 100), (32, 64), (0, 0), (64, 64), False),
    ),
    # The predecessor's: the shorter side becomes 50, the canvas is whole strides.
    "shorter side": (View(), Frame((64, 64), 50, 120), Placement(WIDE, (50, 100), (0, 0), (64, 128), False)),
    "longest side": (View(), Frame((64, 64), 50, 80), Placement(WIDE, (40, 80), (0, 0), (64, 96), False)),
    "a line": (View(), Frame((64, 64), 50, 90), Placement((0, 0, 900, 1), (1, 90), (0, 0), (32, 96), False)),
}  # fmt: skip


@pytest.mark.parametrize("case", PLACES)
def test_places_by_hand(case: str) -> None:
    view, frame, expected = PLACES[case]
    assert place(view, (1, 900) if case == "a line" else (100, 200), frame) == expected


BOX = (10, 20, 40, 50)
LABELS = {
    "half as large": (BOX, Placement(WIDE, (50, 100), (0, 0), (64, 128), False), [[5, 10, 20, 25]]),
    "mirrored within the image": (BOX, Placement(WIDE, (50, 100), (0, 0), (64, 128), True), [[80, 10, 95, 25]]),
    "cut and moved": (BOX, Placement((20, 0, 120, 100), (100, 100), (4, 0), (128, 128), False), [[0, 24, 20, 54]]),
    # 4 of 30 pixels are left, then 20 and 80 of 100: a quarter is asked for.
    "cut off": (BOX, Placement((36, 0, 136, 100), (100, 100), (0, 0), (128, 128), False), []),
    "a fifth is left": ((40, 0, 90, 25), Placement((0, 0, 100, 50), (100, 200), (0, 0), (50, 100), False), []),
    "most is left": (
        (40, 0, 90, 25), Placement((0, 0, 100, 50), (100, 200), (0, -100), (50, 100), False), [[0, 0, 80, 50]],
    ),
    "no box": (None, Placement(WIDE, (60, 120), (0, 0), (64, 128), True), []),
}  # fmt: skip


@pytest.mark.parametrize("case", LABELS)
def test_boxes_by_hand(case: str) -> None:
    box, placement, expected = LABELS[case]
    boxes = np.array([box] if box else [], np.float32).reshape(-1, 4)
    labels = Labels(1, Path("x"), boxes, np.zeros(len(boxes), np.int64), np.zeros(len(boxes), np.bool_))
    target = place_labels(labels, placement)
    assert target.boxes.tolist() == expected and target.boxes.shape[1] == 4 and target.crowd.dtype == torch.bool
