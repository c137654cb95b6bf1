"""JPEGs at the scale they are seen at: the rule, pixels and geometry against Pillow and the full decode."""

import base64
import io
from functools import cache

import numpy as np
import pytest
from PIL import Image, ImageOps

from retinaserve.build_tools.preprocess import Decoding, Prepared, Preprocessor
from retinaserve.training.pixels import FULL, Jpeg, eighths
from tests.images import checker, encode

SIZE, FILL = (160, 192), (124, 116, 104)
ORIENTATIONS = range(1, 9)


def photo(width: int, height: int) -> Image.Image:
    """Waves of several lengths and noise, as of a camera; every part of it looks different."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    waves = sum(
        np.sin(x / length + shift) * np.cos(y / length) for length, shift in ((211, 0), (37, 1), (9, 2), (3, 3))
    )
    noise = np.random.default_rng(3).normal(0, 6, (height, width, 3))
    levels = 128 + 25 * np.stack([waves, np.roll(waves, 50, 0), np.roll(waves, 90, 1)], axis=-1) + noise
    return Image.fromarray(levels.clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def large() -> Image.Image:
    """Of sides that no scale divides."""
    return photo(2003, 1501)


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [
        (192 / 4032, 1),  # 504 of 4032 columns
        (640 / 4032, 2),  # 1008: more than 960
        (640 / 3840, 2),  # just enough
        (np.float32(640) / np.float32(3840), 2),
        (641 / 3840, 4),
        (640 / 1920, 4),
        (641 / 1920, FULL),  # 5 would do, and take longer
        (1.0, FULL),
        (3.0, FULL),
        (1e-4, 1),
    ],
)
def test_the_smallest_scale_with_half_as_many_pixels_again(ratio: float, expected: int) -> None:
    assert eighths(ratio) == expected


@pytest.mark.parametrize("name", ["420", "444", "grey", "progressive", "rgb"])
@pytest.mark.parametrize("size", [(1, 1), (7, 5), (65, 64), (333, 250)], ids=str)
def test_the_full_scale_is_pillows_pixel_for_pixel(name: str, size: tuple[int, int]) -> None:
    options = {
        "420": {"subsampling": 2},
        "444": {"subsampling": 0},
        "progressive": {"progressive": True},
        "rgb": {"keep_rgb": True},
    }
    image = photo(*size).convert("L") if name == "grey" else photo(*size)
    data = encode(image, **options.get(name, {}))
    jpeg = Jpeg.read(data)
    assert jpeg and jpeg.size == size[::-1]
    scaled = jpeg.decode()
    assert (scaled.pixels == np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))).all()
    assert scaled.area == (0, 0, size[1], size[0])


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("scale", [1, 2, 4])
def test_a_scale_is_the_upright_image_made_smaller(large: Image.Image, orientation: int, scale: int) -> None:
    data = encode(large, orientation=orientation, quality=95)
    jpeg = Jpeg.read(data)
    assert jpeg
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert jpeg.size == (upright.height, upright.width)
    scaled = jpeg.decode(scale)
    (height, width), (top, left, bottom, right) = scaled.pixels.shape[:2], scaled.area
    assert (height, width) == (-(-upright.height * scale // 8), -(-upright.width * scale // 8))
    assert (bottom - top, right - left) == (upright.height * scale / 8, upright.width * scale / 8)
    small = (95, 120)
    found = Image.fromarray(scaled.pixels).resize(small, Image.Resampling.BILINEAR, box=(left, top, right, bottom))
    expected = upright.resize(small, Image.Resampling.BILINEAR)
    assert np.abs(np.asarray(found, int) - np.asarray(expected, int)).mean() < 0.6


def test_what_is_left_to_other_decoders() -> None:
    for other in (encode(checker(64, 48), "PNG"), encode(checker(64, 48).convert("CMYK")), b"", b"\xff\xd8\xff"):
        assert Jpeg.read(other) is None


# 16 x 16 red pixels by cjpeg -sample 4x2,1x1,1x1: valid, but no sampling that libjpeg-turbo has a name for.
ODD_SAMPLING = (
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDABALDA4MChAODQ4SERATGCgaGBYWGDEjJR0oOjM9PDkzODdASFxOQERXRTc4UG1RV19iZ2hnPk1xeXBk"
    "eFxlZ2P/2wBDARESEhgVGC8aGi9jQjhCY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2P/wAARCAAQABAD"
    "AUIAAhEBAxEB/8QAFQABAQAAAAAAAAAAAAAAAAAAAAX/xAAUEAEAAAAAAAAAAAAAAAAAAAAA/8QAFQEBAQAAAAAAAAAAAAAAAAAABAb/xAAUEQEA"
    "AAAAAAAAAAAAAAAAAAAA/9oADAMBAAIRAxEAPwCOAAAqh//Z"
)


def test_a_sampling_that_libjpeg_turbo_has_no_name_for_is_decoded_by_dali() -> None:
    data = base64.b64decode(ODD_SAMPLING)
    assert Jpeg.read(data) is None
    levels = run(data, full_decode=False).image
    assert np.abs(levels[:, :160, :160].mean(axis=(1, 2)) - (200, 30, 30)).max() < 6


@cache
def preprocessor(full_decode: bool) -> Preprocessor:
    return Preprocessor(SIZE, FILL, threads=2, max_batch=2, decoding=Decoding(full=full_decode))


def run(data: bytes, *, full_decode: bool) -> Prepared:
    (result,) = preprocessor(full_decode).run([data])
    assert isinstance(result, Prepared)
    return result


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_the_network_sees_the_same(large: Image.Image, orientation: int) -> None:
    data = encode(large, orientation=orientation)
    scaled, full = run(data, full_decode=False), run(data, full_decode=True)
    assert (scaled.letterbox == full.letterbox).all()
    difference = np.abs(scaled.image.astype(int) - full.image.astype(int))
    assert 0 < difference.mean() < 0.5 and difference.max() <= 8


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_nothing_moves(orientation: int) -> None:
    """The middle of a spot near the last columns, whose place the rounding of sides would shift by 0.3 pixels."""
    y, x = np.mgrid[0:1501, 0:2003]
    spot = 250 * np.exp(-((x - 1940) ** 2 + (y - 1440) ** 2) / (2 * 18.0**2))
    data = encode(Image.fromarray(spot.astype(np.uint8)), orientation=orientation)
    places = []
    for full_decode in (False, True):
        result = run(data, full_decode=full_decode)
        rows, columns = result.letterbox[2:].astype(int)
        levels = result.image[0, :rows, :columns].astype(float)
        weights = levels / levels.sum()
        places.append([(weights.sum(axis=1 - axis) * np.arange(levels.shape[axis])).sum() for axis in (0, 1)])
    assert np.abs(np.subtract(*places)).max() < 0.05
