"""Resize rules against what their authors' code computes, restated here line by line, and by hand."""

import math
import zlib
from collections.abc import Callable
from typing import get_args

import numpy as np
import pytest
from PIL import Image

from retinaserve.training.errors import UserError
from retinaserve.training.images.letterbox import Source, letterbox
from retinaserve.training.images.resize import RESIZES, PixelType
from retinaserve.training.spec import DetectorSpec

Size = tuple[int, int]


def torchvision(h: int, w: int, low: int, high: int) -> tuple[Size, Size]:
    scale = min(low / min(h, w), high / max(h, w))
    size = int(h * scale), int(w * scale)  # torch's interpolate with recompute_scale_factor
    return size, (math.ceil(size[0] / 32) * 32, math.ceil(size[1] / 32) * 32)  # batch_images


def detectron2(h: int, w: int, low: int, high: int) -> tuple[Size, Size]:
    scale = low * 1.0 / min(h, w)
    new_h, new_w = (low * 1.0, scale * w) if h < w else (scale * h, low * 1.0)
    if max(new_h, new_w) > high:
        scale = high * 1.0 / max(new_h, new_w)
        new_h, new_w = new_h * scale, new_w * scale
    size = int(new_h + 0.5), int(new_w + 0.5)
    return size, ((size[0] + 31) // 32 * 32, (size[1] + 31) // 32 * 32)  # ImageList.from_tensors


def mmdetection(h: int, w: int, low: int, high: int) -> tuple[Size, Size]:
    scale = min(high / max(h, w), low / min(h, w))
    size = int(h * float(scale) + 0.5), int(w * float(scale) + 0.5)
    return size, (int(np.ceil(size[0] / 32)) * 32, int(np.ceil(size[1] / 32)) * 32)


def yhenon(h: int, w: int, low: int, high: int) -> tuple[Size, Size]:
    scale = low / min(h, w)
    if max(h, w) * scale > high:
        scale = high / max(h, w)
    rows, columns = round(h * scale), round(w * scale)
    return (rows, columns), (rows + 32 - rows % 32, columns + 32 - columns % 32)


def fizyr(h: int, w: int, low: int, high: int) -> tuple[Size, Size]:
    scale = low / min(h, w)
    if max(h, w) * scale > high:
        scale = high / max(h, w)
    size = int(np.rint(h * scale)), int(np.rint(w * scale))  # OpenCV's saturate_cast
    return size, size


def odtk(h: int, w: int, low: int, high: int) -> tuple[Size, Size]:
    ratio = low / min(h, w)
    if ratio * max(h, w) > high:
        ratio = high / max(h, w)
    size = int(ratio * h), int(ratio * w)
    return size, (math.ceil(size[0] / 128) * 128, math.ceil(size[1] / 128) * 128)


AUTHORS: dict[str, Callable[[int, int, int, int], tuple[Size, Size]]] = {
    each.__name__: each for each in (torchvision, detectron2, mmdetection, yhenon, fizyr, odtk)
}


@pytest.mark.parametrize("name", AUTHORS)
def test_sizes_and_canvases_are_the_authors(name: str) -> None:
    rule = RESIZES[name]
    rng = np.random.default_rng(3)
    # Whole fractions of the limits have sides that end in a half.
    sizes = [(605, 793), (793, 605), (800, 1333), (2666, 533), (533, 2666), (1600, 1201), (1, 4000), (640, 480)]
    sizes += [(int(h), int(w)) for h, w in rng.integers(8, 4000, (5000, 2))]
    for h, w in sizes:
        if min(h, w) > 4:  # where nothing is left of a side, they fail and we keep a pixel
            resized = rule.resized((h, w), rule.usual)
            assert (resized, rule.canvas(resized, rule.usual)) == AUTHORS[name](h, w, *rule.usual), (h, w)


def test_the_shorter_side_is_not_always_the_shorter_side() -> None:
    # 800 / 607 * 607 is less than 800 in double precision, and torchvision rounds down.
    rule = RESIZES["torchvision"]
    assert rule.resized((605, 793), (800, 1333)) == (800, 1048)
    assert rule.resized((607, 793), (800, 1333)) == (799, 1045)


def test_stretch_fills_the_canvas() -> None:
    rule = RESIZES["mlperf"]
    assert rule.resized((300, 900), (800, 640)) == rule.canvas((800, 640), (800, 640)) == (800, 640)
    pixels, how = letterbox(Image.new("RGB", (90, 30), (9, 8, 7)), (64, 48), (0, 0, 0), rule)
    assert (pixels == (9, 8, 7)).all() and how.tolist() == [30, 90, 64, 48]


def test_each_image_has_its_own_canvas() -> None:
    spec = DetectorSpec.create(["a"], resize_rule="torchvision")
    assert spec.size == (800, 1333) and spec.inputs["image"].shape == (3, -1, -1)
    for (h, w), canvas in {(480, 640): (800, 1088), (640, 480): (1088, 800)}.items():
        pixels, how = letterbox(Image.new("RGB", (w, h), (9, 8, 7)), spec.size, spec.pad_value, spec.resizing)
        assert pixels.shape[:2] == canvas
        assert sorted(how[2:].tolist()) == [800, 1066]
        assert (pixels[int(how[2]) :] == spec.pad_value).all() and (
            pixels[: int(how[2]), : int(how[3])] == 9
        ).any()
    assert DetectorSpec.from_json(spec.to_json()) == spec


def test_a_spec_without_pixels_has_bytes() -> None:
    old, new = (DetectorSpec.create(["a"], resize_rule="torchvision", pixels=each) for each in get_args(PixelType))
    assert '"pixels"' not in old.to_json() and DetectorSpec.from_json(old.to_json()).pixels == "uint8"
    assert DetectorSpec.from_json(new.to_json()) == new and new.inputs["image"].dtype == "float32"
    with pytest.raises(UserError, match="neither uint8 nor float32"):
        DetectorSpec.from_json(new.to_json().replace("float32", "float16"))


def test_a_size_that_is_no_pair_of_limits_is_refused() -> None:
    with pytest.raises(UserError, match="the shorter and the longest side"):
        DetectorSpec.create(["a"], size=(1333, 800), resize_rule="detectron2")
    with pytest.raises(UserError, match="is not one of"):
        DetectorSpec.from_json(
            DetectorSpec.create(["a"], resize_rule="mlperf").to_json().replace("mlperf", "crop")
        )


def test_without_antialiasing_four_pixels_are_mixed() -> None:
    # Halfway between columns 3 and 4 of every 8: (100 + 200) / 2.
    columns = np.array([0, 0, 0, 100, 200, 0, 0, 0] * 8, np.uint8)
    image = Image.fromarray(np.repeat(np.tile(columns, (64, 1))[:, :, None], 3, axis=2))
    found = {rule: letterbox(image, (8, 8), (0, 0, 0), RESIZES[rule])[0] for rule in ("mlperf", "letterbox")}
    assert (found["mlperf"] == 150).all() and found["letterbox"].max() < 100


@pytest.mark.parametrize(
    ("size", "pixel", "checksum"), [((31, 11), (110, 88, 128), 3418331052), ((9, 50), (128, 60, 100), 3485287911)]
)
def test_bytes_in_fixed_point_are_opencvs(size: tuple[int, int], pixel: tuple[int, ...], checksum: int) -> None:
    """What cv2.resize, 4.14.0 and 5.0.0, makes of bytes with INTER_LINEAR: one in the middle, and all."""
    y, x = np.mgrid[:24, :36]
    pixels = np.stack([(3 * y * y + 5 * x * x + 40 * c) % 251 for c in range(3)], axis=2).astype(np.uint8)
    found = Source.of(Image.fromarray(pixels)).resized(size, RESIZES["mmdetection"]).astype(np.uint8)
    assert tuple(found[size[0] // 2, size[1] // 2]) == pixel and zlib.crc32(found.tobytes()) == checksum


def test_a_blur_is_skimages() -> None:
    """Pixels of skimage 0.26.0, resize(image, sides) of floats, at corners and inside."""
    y, x = np.mgrid[:48, :64]
    pixels = np.stack([(3 * y * y + 5 * x * x + 40 * c) % 251 for c in range(3)], axis=2)
    source, rule = Source.of(Image.fromarray(pixels.astype(np.uint8))), RESIZES["yhenon"]
    smaller = source.resized((18, 24), rule)[[0, 0, 9, 17], [0, 23, 12, 23]]
    expected = [[12.22, 52.22, 92.22], [91.25, 131.24, 162.65], [121.17, 114.46, 126.24], [157.57, 99.46, 111.06]]
    np.testing.assert_allclose(smaller, expected, atol=0.01)
    higher = source.resized((96, 20), rule)[50, 10]  # skimage mirrors the borders of what grows
    np.testing.assert_allclose(higher, [127.85, 93.78, 132.1], atol=0.01)


def test_pixels_go_by_the_factor_not_by_the_rounded_sides() -> None:
    """Pixels of OpenCV 4.11.0, resize(image, None, fx=factor, fy=factor) of floats, at corners and inside."""
    y, x = np.mgrid[:45, :61]
    pixels = np.stack([(3 * y * y + 5 * x * x + 40 * c) % 251 for c in range(3)], axis=2)
    image, rule = Image.fromarray(pixels.astype(np.uint8)), RESIZES["fizyr"]
    found, how = letterbox(image, (20, 33), (0, 0, 0), rule)
    assert found.shape == (20, 27, 3) and how.tolist() == [45, 61, 20, np.float32(61 * 20 / 45)]
    expected = [[5, 45, 85], [99.5, 139.5, 148.12], [75.12, 115.12, 127.67], [126.38, 154.61, 175]]
    np.testing.assert_allclose(found[[0, 0, 10, 19], [0, 26, 13, 26]], expected, atol=0.01)
    found, how = letterbox(image, (100, 333), (0, 0, 0), rule)
    assert found.shape == (100, 136, 3) and how[3] == np.float32(61 * 100 / 45)
    np.testing.assert_allclose(found[50, 68], [170.45, 147.23, 55.92], atol=0.01)
