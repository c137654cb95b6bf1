"""The rule for pixel values and orientation, over every valid image of the matrix and everything that obeys it."""

import io
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from retinaserve.build_tools.preprocess import Preprocessor
from retinaserve.eval.web.app import preview_jpeg
from retinaserve.training import pixels
from retinaserve.training.check.snapshot import read_image
from retinaserve.training.images.draw import open_image
from retinaserve.training.images.letterbox import load_image, upright_size
from retinaserve.training.pixels import BadImage, Decoding
from tests.training.pixels.known import LOSSY, Case
from tests.training.pixels.matrix import cases

# What is refused, and the words that say why.
REFUSED = {
    r"JPEG 12 bits": "it has 12 bits a sample, not 8",
    r"TIFF grey associated \d+.*": "2 samples of",
    r"TIFF grey (alpha|unspecified) 16.*": "it has 2 samples of 16 bits a pixel, grey",
    r"TIFF grey white is zero 16.*": "it has 16 bits a sample, grey whose 0 is white",
    r"TIFF grey 12>.*": "it has 12 bits a sample in big-endian order",
    r"TIFF grey int\d+.": "its samples are signed integers",
    r"TIFF grey uint32.": "it has 32 bits a sample, grey",
    r"TIFF grey float\d+.": "its samples are floating-point numbers",
    r"TIFF lab 8": "its colours are CIE L*a*b*",
    r"TIFF rgb 8 lzma": "its compression is number 34925",
}
# The upper 8 of 16 bits are read of these; a level of 255 is the most that the others may add.
COARSE = r"PNG grey alpha 16.*|TIFF (rgb|cmyk).* 16. planar.*"
KINDS = sorted({case.kind for case in cases()})


def refusal(case: Case) -> str:
    return next((words for name, words in REFUSED.items() if re.fullmatch(name, case.name)), "")


def of_kind(kind: str) -> Iterator[tuple[Case, np.ndarray]]:
    for case in cases():
        if case.kind == kind and not refusal(case):
            assert case.expected is not None, case.name
            yield case, case.expected


def test_the_matrix_is_large_and_of_every_kind() -> None:
    counts = Counter(case.kind for case in cases())
    assert counts.total() > 600 and len({case.name for case in cases()}) == counts.total()
    assert set(counts) == set(pixels.KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_the_decoder_gives_the_pixels_that_were_encoded(kind: str) -> None:
    wrong = []
    for case, expected in of_kind(kind):
        found = pixels.decode(case.data)
        if found.shape != expected.shape:
            wrong.append(f"{case.name}: {found.shape}")
            continue
        difference = np.abs(found.astype(int) - expected)
        most = 1 if re.fullmatch(COARSE, case.name) else 0
        if difference.mean() > case.lossy if case.lossy else difference.max() > most:
            wrong.append(f"{case.name}: {difference.mean():.2f}, {difference.max()}")
    assert wrong == []


def test_every_jpeg_may_come_smaller() -> None:
    for case, expected in of_kind("JPEG"):
        found = pixels.decode(case.data, side=8).shape
        assert all(8 <= side <= most for side, most in zip(found[:2], expected.shape, strict=False)), case.name


def test_what_is_not_decoded_right_is_refused_by_what_it_is() -> None:
    refused = {
        case.name: found.message for case in cases() if isinstance(found := pixels.gate(case.data), BadImage)
    }
    assert refused.keys() == {case.name for case in cases() if refusal(case)}
    for case in cases():
        if case.name in refused:
            message = refused[case.name]
            assert message.startswith(f"this kind of {case.kind} is not supported: ") and refusal(case) in message
            assert "damaged" not in message and "corrupt" not in message


@pytest.fixture(scope="module")
def preprocessors() -> dict[tuple[int, int], Preprocessor]:
    """At the images' own sizes, upright and turned, so that nothing is resized."""
    sizes = {expected.shape[:2] for kind in KINDS for _, expected in of_kind(kind)}
    return {size: Preprocessor(size, (0, 0, 0), threads=2, decoding=Decoding(full=True)) for size in sizes}


@pytest.mark.parametrize("kind", KINDS)
def test_serving_sees_what_training_sees(preprocessors: dict[tuple[int, int], Preprocessor], kind: str) -> None:
    """DALI and libjpeg-turbo where they decode, within 2 levels of rounding, and exactly where they may not."""
    wrong = []
    for size, preprocessor in preprocessors.items():
        chosen = [case for case, expected in of_kind(kind) if expected.shape[:2] == size]
        for case, result in zip(chosen, preprocessor.run([case.data for case in chosen]), strict=True):
            if isinstance(result, BadImage):
                wrong.append(f"{case.name}: {result.message}")
                continue
            difference = np.abs(result.image.transpose(1, 2, 0).astype(int) - pixels.decode(case.data))
            if difference.max() > (2 if pixels.gate(case.data) is case.data else 0):
                wrong.append(f"{case.name}: {difference.max()}")
    assert wrong == []


@pytest.mark.parametrize("kind", KINDS)
def test_everything_else_that_reads_images_agrees(kind: str, tmp_path: Path) -> None:
    wrong = []
    for case, expected in of_kind(kind):
        path = tmp_path / "image"
        path.write_bytes(case.data)
        seen = pixels.decode(case.data)
        height, width = expected.shape[:2]
        checked = read_image(path, decode=True)
        with Image.open(io.BytesIO(preview_jpeg(case.data) or b"")) as preview:
            shown = np.asarray(preview).astype(int)
        agree = {
            "training": (np.asarray(load_image(path)) == seen).all(),
            "drawing": (np.asarray(open_image(case.data)) == seen).all(),
            "header": upright_size(path) == (height, width),
            "data check": (checked.size, checked.error) == ((width, height), ""),
            # The page is shown a JPEG, which the hard edges of a palette suffer from.
            "page": shown.shape == seen.shape
            and (np.abs(shown - seen).mean() < LOSSY or case.kind == "GIF" or "palette" in case.name),
        }
        wrong += [f"{case.name}: {who}" for who, agrees in agree.items() if not agrees]
    assert wrong == []


@pytest.mark.parametrize("name", ["PNG grey 16", "PNG rgb 16", "TIFF grey 16<", "TIFF rgb 16>", "TIFF grey 12<"])
def test_a_value_range_takes_the_place_of_the_formats(name: str) -> None:
    """A sensor of 10 bits in 16: by hand, 255 * (v - 100) / (1023 - 100), rounded half up, within 0 and 255."""
    (case,) = (case for case in cases() if case.name == name)
    top = 4095 if " 12" in name else 65535
    assert case.expected is not None
    found = pixels.decode(case.data, (top // 4, top // 2))
    plain = pixels.decode(case.data).astype(int)
    assert (found[plain < 63] == 0).all() and (found[plain > 128] == 255).all()
    middle = (plain > 66) & (plain < 125)
    assert np.abs(found[middle] - 4 * (plain[middle] - 63.75)).max() <= 3
    data = pixels.gate(case.data, value_range=(top // 4, top // 2))
    assert isinstance(data, bytes) and data.startswith(b"P6 61 43 255\n")
    assert data.endswith(found.tobytes())


def test_a_value_range_is_exact() -> None:
    values = np.array([[0, 99, 100, 101, 561, 562, 1022, 1023, 1024, 65535]], np.uint16)
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG")
    assert pixels.decode(buffer.getvalue(), (100, 1023))[0, :, 0].tolist() == [
        0,
        0,
        0,
        0,
        127,
        128,
        255,
        255,
        255,
        255,
    ]


def test_a_value_range_is_refused_where_the_lower_bits_are_lost() -> None:
    for case in cases():
        if re.fullmatch(r"PNG grey alpha 16|TIFF rgb 16< planar", case.name):
            found = pixels.gate(case.data, value_range=(0, 4095))
            assert isinstance(found, BadImage) and "a value range needs 16 bits" in found.message
