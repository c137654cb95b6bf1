from pathlib import Path

import numpy as np
import pytest

from retinaserve.training.trainer.preset import fit, fit_anchor, fit_iterations, fit_size
from tests.training.squares import draw


def sample(height: int, width: int, *sides: float) -> list[tuple[tuple[int, int], np.ndarray]]:
    return [((height, width), np.array([(side, side) for side in sides], np.float32).reshape(-1, 2))]


@pytest.mark.parametrize(
    ("images", "size"),
    [
        pytest.param(sample(480, 640, 100), (288, 384), id="large boxes: about 320 x 320 pixels, of their shape"),
        pytest.param(sample(480, 640, 25), (384, 512), id="boxes of 25 pixels keep 20"),
        pytest.param(sample(2000, 2000, 10), (640, 640), id="no more than 640 x 640"),
        pytest.param(sample(128, 128, 10), (128, 128), id="no more than the images have"),
        pytest.param(sample(100, 1000, 50), (96, 992), id="in multiples of 32"),
        pytest.param(sample(20, 20), (32, 32), id="no boxes, and images smaller than an input can be"),
        pytest.param([], (512, 512), id="no images"),
    ],
)
def test_an_input_has_the_images_shape_and_room_for_small_boxes(
    images: list[tuple[tuple[int, int], np.ndarray]], size: tuple[int, int]
) -> None:
    assert fit_size(images)[0] == size


@pytest.mark.parametrize(
    ("sides", "expected"),
    [
        # Anchors of three strides are squares of 24, 48 and 96 pixels.
        pytest.param((24, 48, 96), (3.0, 1.0), id="the anchors themselves"),
        pytest.param((8, 16, 32), (1.0, 1.0), id="the smallest"),
        pytest.param((), (4.0, 0.0), id="no boxes"),
    ],
)
def test_anchors_are_those_that_boxes_overlap_most(
    sides: tuple[float, ...], expected: tuple[float, float]
) -> None:
    assert fit_anchor(np.array([(side, side) for side in sides], np.float32).reshape(-1, 2)) == expected


@pytest.mark.parametrize(("images", "iterations"), [(1, 500), (200, 2500), (800, 5000), (5000, 12500)])
def test_four_times_the_images_take_twice_the_iterations(images: int, iterations: int) -> None:
    assert fit_iterations(images, 8) == iterations


def test_what_is_given_is_not_chosen(tmp_path: Path) -> None:
    dataset = draw(tmp_path / "squares", 4)
    options = {"size": (96, 96), "anchor_size": 4.0, "iters": 1200, "batch": 8}
    every = {name: value for choice in fit(dataset, options, ()) for name, value in choice.settings.items()}
    assert every["size"] == (64, 64) and every["iters"] == 500 and every["val_iters"] == 41
    some = list(fit(dataset, options, ("size", "iters", "warmup")))
    assert [name for choice in some for name in choice.settings] == [
        "anchor_size",
        "ema",
        "val_iters",
        "save_every",
        "precision",
    ]
    # Squares of 30 to 60 pixels at this size: of all candidates only two strides have anchors of 32 and 64.
    assert str(some[0]).startswith("--anchor-size 2: 100%") and some[1].settings["val_iters"] == 100
