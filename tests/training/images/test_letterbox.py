"""Images on their way into the network, by hand."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from retinaserve.training.errors import UserError
from retinaserve.training.images.letterbox import letterbox, load_image, scale_image
from retinaserve.training.images.resize import RESIZES

PAD_VALUE = (124, 116, 104)


def test_an_image_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("not an image")
    with pytest.raises(UserError, match=r"a\.png: the image can't be read"):
        load_image(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("original", "size", "resized"),
    [
        ((100, 200), (512, 512), (256, 512)),
        ((200, 100), (512, 512), (512, 256)),
        ((512, 512), (512, 512), (512, 512)),
        ((333, 500), (512, 512), (341, 512)),  # 340.99
        ((480, 640), (300, 500), (300, 400)),
        ((1, 1000), (256, 256), (1, 256)),  # 0.256 would be nothing
        ((3, 2), (256, 256), (256, 171)),  # 170.67
    ],
)
def test_sizes_by_hand(original: tuple[int, int], size: tuple[int, int], resized: tuple[int, int]) -> None:
    assert RESIZES["letterbox"].resized(original, size) == resized


def test_a_letterbox_is_at_the_top_left_on_the_mean_colour() -> None:
    pixels, how = letterbox(Image.new("RGB", (40, 20), (10, 20, 30)), (64, 96), PAD_VALUE)
    assert pixels.shape == (64, 96, 3) and pixels.dtype == np.uint8
    assert how.tolist() == [20, 40, 48, 96] and how.dtype == np.float32
    assert (pixels[:48] == (10, 20, 30)).all() and (pixels[48:] == PAD_VALUE).all()


def test_shrinking_averages_all_pixels() -> None:
    # Alternate columns: without antialiasing one of the two would win.
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 200
    pixels, _ = letterbox(Image.fromarray(stripes), (8, 8), PAD_VALUE)
    assert (np.abs(pixels[:, 1:-1].astype(int) - 100) <= 4).all()
    # An eighth of the filter lies behind the border, where the last pixel, 200 or 0, is repeated.
    assert (
        np.abs(pixels[:, 0].astype(int) - 112.5).max() <= 5 and np.abs(pixels[:, -1].astype(int) - 87.5).max() <= 5
    )


def test_borders_are_those_of_a_grown_image() -> None:
    """By hand: the image with its last pixels repeated far out, resized, and cut again."""
    rng = np.random.default_rng(0)
    for height, width in ((31, 47), (8, 100), (100, 9), (300, 401)):
        image = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
        rows, columns = 8, 9
        grown = np.pad(image, ((height, height), (width, width), (0, 0)), "edge")
        expected = Image.fromarray(grown).resize((3 * columns, 3 * rows), Image.Resampling.BILINEAR)
        expected = np.asarray(expected)[rows : 2 * rows, columns : 2 * columns].astype(int)
        found = np.asarray(scale_image(Image.fromarray(image), (rows, columns))).astype(int)
        assert np.abs(found - expected).max() <= 2
