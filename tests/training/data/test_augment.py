import numpy as np
import pytest

from retinaserve.training.data.augment import LADDER, WHOLE, View, random_view

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


def test_a_picture_without_boxes_is_cropped_anywhere() -> None:
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
