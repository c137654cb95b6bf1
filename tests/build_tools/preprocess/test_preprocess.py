"""The one preprocess definition against Pillow, formats, EXIF, and bad pictures that fail alone."""

import io
import struct
import zlib
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image

from retinaserve.build_tools.preprocess import BadImage, Prepared, Preprocessor, admit
from retinaserve.plugins.tiles import encode_bmp
from retinaserve.training.images.letterbox import letterbox, load_image
from retinaserve.training.images.resize import RESIZES, PixelType
from retinaserve.training.spec import DetectorSpec
from tests.images import bad_images, checker, encode

SIZE, FILL = (256, 320), (124, 116, 104)


@pytest.fixture(scope="module")
def preprocessor() -> Preprocessor:
    return Preprocessor(SIZE, FILL, threads=2, max_batch=8)


def prepare(preprocessor: Preprocessor, data: bytes) -> Prepared:
    (result,) = preprocessor.run([data])
    assert isinstance(result, Prepared), result
    return result


def pillow_letterbox(image: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """The definition in other words: Pillow's BILINEAR is an antialiased triangle filter."""
    ratio = min(size[0] / image.height, size[1] / image.width)
    width, height = max(1, int(image.width * ratio + 0.5)), max(1, int(image.height * ratio + 0.5))
    canvas = Image.new("RGB", (size[1], size[0]), FILL)
    canvas.paste(image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR))
    return np.asarray(canvas).transpose(2, 0, 1)


@pytest.mark.parametrize(
    ("width", "height", "short"), [(427, 300, 417), (300, 427, 417), (427, 300, 163), (1200, 900, 163)]
)
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])  # DALI decodes, or is given pixels
def test_the_rules_of_pillow_round_between_its_passes(width: int, height: int, short: int, kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    encoded, size = encode(Image.fromarray(noise), kind), (short, 2 * short)
    picture = Image.open(io.BytesIO(encoded)).convert("RGB")
    result = prepare(Preprocessor(size, FILL, resize="detectron2", threads=1), encoded)
    rows, columns = RESIZES["detectron2"].resized((height, width), size)
    wanted = np.asarray(picture.resize((columns, rows), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    if kind == "JPEG":  # by Pillow itself
        assert np.array_equal(result.image[:, :rows, :columns], wanted)
        return
    inside = (slice(None), slice(1, rows - 1), slice(1, columns - 1))  # see above
    assert (result.image[inside] == wanted[inside]).mean() > 0.99  # there are no ties; 0.8 in one pass


@pytest.mark.parametrize("name", ["detectron2", "mmdetection"])
def test_padding_is_the_mean_as_it_is_though_images_are_rounded(name: str) -> None:
    """Of floats, as the authors pad what they have normalised: with 0."""
    spec = DetectorSpec.create(["a"], size=(100, 200), resize_rule=name, pixels=RESIZES[name].pixels)
    mean = np.float32([123.675, 116.28, 103.53])  # of ImageNet
    for width, height in ((427, 300), (300, 427)):
        image = checker(width, height)
        served = prepare(Preprocessor(**spec.preprocessing, threads=1), encode(image, "PNG"))
        trained, _ = letterbox(image, spec.size, spec.pad_value, spec.resizing)
        rows, columns = (int(side) for side in served.letterbox[2:])
        for canvas in (served.image.transpose(1, 2, 0), trained):
            seen = canvas[:rows, :columns]
            assert canvas.dtype == np.float32 and seen.size < canvas.size and (seen == np.rint(seen)).all()
            assert np.allclose(canvas[rows:], mean) and np.allclose(canvas[:, columns:], mean)


@pytest.mark.parametrize(("width", "height"), [(427, 300), (300, 427), (90, 61), (1200, 1601)])
def test_the_rule_of_opencv_cuts_off_what_it_does(width: int, height: int) -> None:
    """Training's are OpenCV's (test_resize.py); DALI's weights of columns are not of 11 bits."""
    noise = np.random.default_rng(0).integers(0, 256, (height // 3, width // 3, 3), np.uint8)
    picture = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
    for size in ((163, 326), (417, 834)):
        result = prepare(Preprocessor(size, FILL, resize="mmdetection", threads=1), encode(picture, "PNG"))
        wanted = letterbox(picture, size, FILL, RESIZES["mmdetection"])[0].transpose(2, 0, 1)
        difference = result.image.astype(int) - wanted
        assert np.abs(difference).max() <= 1 and (difference == 0).mean() > 0.995  # 0.9 of rounded ones


def test_no_pictures_give_no_results(preprocessor: Preprocessor) -> None:
    assert preprocessor.run([]) == []


@pytest.mark.parametrize(
    ("width", "height"), [(640, 480), (320, 256), (100, 80), (333, 1000), (1001, 77), (1, 1), (1, 400), (3000, 2)]
)
def test_letterbox_equals_pillow(preprocessor: Preprocessor, width: int, height: int) -> None:
    picture = checker(width, height)
    result = prepare(preprocessor, encode(picture, "PNG"))
    rows, columns = RESIZES["letterbox"].resized((height, width), SIZE)
    assert result.letterbox.tolist() == [height, width, rows, columns]
    difference = np.abs(result.image.astype(int) - pillow_letterbox(picture, SIZE).astype(int))
    # Beyond a border DALI repeats the last pixel, Pillow shortens the filter: the outermost pixels differ.
    assert difference[:, 1 : rows - 1, 1 : columns - 1].max(initial=0) <= 2 and difference.mean() < 0.5
    ours, _ = letterbox(picture, SIZE, FILL)  # what training sees: to the border
    assert np.abs(result.image.astype(int) - ours.transpose(2, 0, 1)).max() <= 2
    padding = np.ones(SIZE, bool)
    padding[:rows, :columns] = False
    assert (result.image.transpose(1, 2, 0)[padding] == FILL).all()


def test_sizes_agree_with_the_pipeline_on_many_ratios(preprocessor: Preprocessor) -> None:
    rng = np.random.default_rng(7)
    sizes = [(int(h), int(w)) for h, w in rng.integers(1, 700, (60, 2))]
    results = preprocessor.run([encode(Image.new("L", (w, h)), "PNG") for h, w in sizes])
    found = [tuple(r.letterbox[2:].astype(int)) for r in results if isinstance(r, Prepared)]
    assert found == [RESIZES["letterbox"].resized((h, w), SIZE) for h, w in sizes]


@pytest.mark.parametrize("pixels", get_args(PixelType))
@pytest.mark.parametrize("name", RESIZES)
def test_every_rule_is_the_one_of_training(name: str, pixels: PixelType) -> None:
    rule = replace(RESIZES[name], pixels=pixels)
    size = (rule.usual[0] // 4, rule.usual[1] // 4)
    preprocessor = Preprocessor(size, FILL, resize=name, pixels=pixels, threads=2)
    rng = np.random.default_rng(7)
    sizes = [
        (666, 133),
        (133, 666),
        (400, 301),
        (607, 793),
        *((int(h), int(w)) for h, w in rng.integers(8, 700, (60, 2))),
    ]
    results = preprocessor.run([encode(Image.new("L", (w, h)), "PNG") for h, w in sizes])
    for (h, w), result in zip(sizes, results, strict=True):
        resized, extent = rule.resized((h, w), size), np.float32(rule.extent((h, w), size))
        assert isinstance(result, Prepared)
        assert (result.letterbox[2:] == extent).all(), (h, w)
        assert result.image.shape[1:] == rule.canvas(resized, size), (h, w)
    for h, w in ((300, 400), (500, 333), (90, 60)):
        picture = checker(w, h)
        for kind in ("PNG", "JPEG"):
            trained, _ = letterbox(load_image(encode(picture, kind)), size, FILL, rule)
            result = prepare(preprocessor, encode(picture, kind))
            assert result.image.dtype == trained.dtype == pixels and result.image.shape[1:] == trained.shape[:2]
            if kind == "JPEG" and rule.antialias:
                continue  # decoded smaller
            difference = np.abs(result.image.transpose(1, 2, 0).astype(float) - trained)
            if rule.rounds:
                assert difference.max() <= 2 and difference.mean() < 0.15
            else:  # the weights' last bits at the edges of a board
                assert difference.max() < 0.05 and difference.mean() < 1e-3


@pytest.mark.parametrize(("width", "height"), [(640, 480), (480, 640), (500, 333), (90, 160)])
def test_an_imports_pixels_are_its_authors(width: int, height: int) -> None:
    """What torchvision's transform does, in its own order: normalised, resized in float, padded with 0."""
    spec = DetectorSpec.create(["a"], size=(192, 320), resize_rule="torchvision", pixels="float32")
    # As smooth as photos are: where an image jumps, the last bits of a coordinate are worth 0.01.
    data = encode(checker(width // 8, height // 8).resize((width, height), Image.Resampling.BICUBIC), quality=90)
    with Image.open(io.BytesIO(data)) as image:
        given = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (spec.mean, spec.std))
    scale = min(192 / min(width, height), 320 / max(width, height))
    scaled = torch.nn.functional.interpolate(
        ((given - mean) / std)[None], scale_factor=scale, mode="bilinear", recompute_scale_factor=True
    )[0]
    sides = [-(-side // 32) * 32 for side in scaled.shape[1:]]
    expected = torch.zeros(3, *sides)
    expected[:, : scaled.shape[1], : scaled.shape[2]] = scaled
    found = prepare(Preprocessor(**spec.preprocessing, threads=1), data).image
    difference = found - 255 * (expected * std + mean).numpy()
    assert np.abs(difference).max() < 1e-3


@pytest.mark.parametrize(("height", "width"), [SIZE, (256, 319), (50, 61), (300, 191), (1, 1), (512, 640)])
def test_tiles_and_frames_are_what_dali_makes_of_them(preprocessor: Preprocessor, height: int, width: int) -> None:
    """BMPs are read here, and not resized where they have the network's size; PNGs go through DALI."""
    image = checker(width, height)
    expected = prepare(preprocessor, encode(image, "PNG"))
    for data in (encode_bmp(np.asarray(image)), encode(image, "BMP")):  # rows from the top, and from the bottom
        found = prepare(preprocessor, data)
        assert (found.image == expected.image).all() and (found.letterbox == expected.letterbox).all()


@pytest.mark.parametrize("name", bad_images())
def test_a_bad_picture_is_named_and_fails_alone(preprocessor: Preprocessor, name: str) -> None:
    data, words = bad_images()[name]
    good = encode(checker(64, 48))
    before, bad, after = preprocessor.run([good, data, good])
    assert isinstance(before, Prepared) and isinstance(after, Prepared)
    assert (before.image == after.image).all()
    assert isinstance(bad, BadImage) and words in bad.message


@pytest.mark.parametrize(
    ("limits", "words"),
    [({"max_pixels": 64 * 48 - 1}, "64 x 48 pixels; at most 3071"), ({"max_bytes": 100}, "bytes; at most 100")],
    ids=["pixels", "bytes"],
)
def test_limits(limits: dict[str, int], words: str) -> None:
    data = encode(checker(64, 48))
    assert admit(data) is None
    bad = admit(data, **limits)
    assert bad and words in bad.message


def test_a_decompression_bomb_is_refused_from_its_header() -> None:
    size = struct.pack(">IIBBBBB", 30_000, 30_000, 1, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(30_000 * (30_000 // 8 + 1)), 1)
    chunks = b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in ((b"IHDR", size), (b"IDAT", pixels), (b"IEND", b""))
    )
    bomb = b"\x89PNG\r\n\x1a\n" + chunks
    assert len(bomb) < 600_000
    bad = admit(bomb)
    assert bad and "30000 x 30000 pixels; at most 64000000" in bad.message


def test_results_outlive_the_next_run(preprocessor: Preprocessor) -> None:
    first = prepare(preprocessor, encode(checker(64, 48, seed=1)))
    copy = first.image.copy()
    for seed in range(2, 6):
        preprocessor.run([encode(checker(64, 48, seed=seed))] * 8)
    assert (first.image == copy).all()
