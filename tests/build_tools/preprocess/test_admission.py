"""Admission: no good picture refused, none let through that the decoder then refuses, and every reason said."""

import io
import struct
import zlib
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from retinaserve.build_tools.preprocess import BadImage, Prepared, Preprocessor, admit
from retinaserve.training.pixels import gate, trial
from retinaserve.training.pixels.formats import Damaged, Header, heif
from retinaserve.training.pixels.jpeg import read_jpeg
from retinaserve.training.pixels.verdict import READERS, kind_of
from tests.damage import damaged, good_images
from tests.images import checker, encode

PER_KIND = 2


@pytest.fixture(scope="module")
def decoder() -> Preprocessor:
    """DALI on the CPU, one picture at a time, so that a refusal is this picture's."""
    return Preprocessor((64, 64), (124, 116, 104), threads=1, max_batch=1)


@pytest.mark.parametrize("name", good_images())
def test_good_pictures_are_admitted_with_the_size_that_pillow_reads(name: str) -> None:
    data = good_images()[name]
    assert admit(data) is None and trial(data) is None
    with Image.open(io.BytesIO(data)) as image:
        header = READERS[kind_of(memoryview(data))](memoryview(data))
        assert (header.width, header.height) == image.size


def test_what_passes_the_gpu_profiles_admission_decodes(decoder: Preprocessor) -> None:
    """Behind admission, the dali backend loses no batch."""
    verdicts: Counter[str] = Counter()
    missed = []
    for name, data in damaged(per_kind=PER_KIND):
        if admit(data) or trial(data):
            verdicts["refused"] += 1
        elif isinstance(decoder.run([data])[0], Prepared):
            verdicts["decoded"] += 1
        else:
            missed.append(name)
    assert missed == []
    assert verdicts.total() > 550
    assert verdicts["refused"] > 270 and verdicts["decoded"] > 100  # neither refuses all nor admits all


def test_without_a_trial_only_formats_without_checksums_are_missed(decoder: Preprocessor) -> None:
    missed = {
        kind_of(memoryview(data))
        for _, data in damaged(per_kind=1)
        if not admit(data) and isinstance(decoder.run([data])[0], BadImage)
    }
    assert missed == {"WEBP", "TIFF"}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF"])
def test_no_shorter_file_passes(kind: str) -> None:
    data = encode(checker(40, 30), kind)
    assert [n for n in range(1, len(data)) if admit(data[:-n]) is None] == []


@pytest.mark.parametrize("kind", READERS)
def test_garbage_behind_the_first_bytes_raises_nothing_else(kind: str) -> None:
    assert heif()
    data = encode(checker(40, 30), {"HEIC": "HEIF"}.get(kind, kind))
    for seed in range(60):
        random = np.random.default_rng(seed)
        bad = admit(data[: random.integers(2, 40)] + random.bytes(200))
        assert bad is None or isinstance(bad, BadImage)


def test_a_view_of_another_buffer_is_read_in_place() -> None:
    data = encode(checker(64, 48))
    row = np.frombuffer(b"xx" + data, np.uint8)[2:]
    assert admit(memoryview(row)) is None
    assert admit(memoryview(row[:-2])) is not None


def segment(marker: int, body: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(body) + 2) + body


def frame(
    *, marker: int = 0xC0, precision: int = 8, size: tuple[int, int] = (8, 8), sampling: int = 0x11
) -> bytes:
    return segment(marker, struct.pack(">BHHB", precision, *size, 1) + bytes((1, sampling, 0)))


SOI, EOI = b"\xff\xd8", b"\xff\xd9"
QUANTISATION = segment(0xDB, bytes(65))
SCAN = segment(0xDA, bytes((1, 1, 0, 0, 63, 0))) + b"\x00" * 20


@pytest.mark.parametrize(
    ("body", "words"),
    [
        pytest.param(QUANTISATION + frame() + SCAN + EOI, None, id="the least there is, with standard tables"),
        pytest.param(b"\xff\xff" + QUANTISATION[1:] + frame() + SCAN + EOI, None, id="fill"),
        pytest.param(EOI, "ends before its image", id="no image"),
        pytest.param(frame() + SCAN + EOI, "quantisation table", id="no quantisation table"),
        pytest.param(QUANTISATION + frame(marker=0xC2) + SCAN + EOI, "progression", id="progression"),
        pytest.param(QUANTISATION + frame(precision=12) + SCAN + EOI, "12 bits", id="12 bits"),
        pytest.param(
            QUANTISATION + segment(0xC0, struct.pack(">BHHB6B", 8, 8, 8, 2, 1, 17, 0, 2, 17, 0)),
            "2 components; 1, 3 and 4 are read",
            id="two components",
        ),
        pytest.param(QUANTISATION + frame(size=(0, 8)) + SCAN + EOI, "8 x 0 pixels", id="no rows"),
        pytest.param(QUANTISATION + frame(sampling=0x50) + SCAN + EOI, "sampling", id="sampling"),
        pytest.param(QUANTISATION + frame(marker=0xCB) + SCAN + EOI, "both lossless and arith", id="SOF11"),
        pytest.param(QUANTISATION + frame() + frame() + SCAN + EOI, "two frame headers", id="two frames"),
        pytest.param(QUANTISATION + SCAN + EOI, "before its frame", id="no frame"),
        pytest.param(segment(0xDB, bytes(64)), "quantisation tables are broken", id="short table"),
        pytest.param(segment(0xC4, b"\0" + b"\3" + bytes(18)), "more codes than there are", id="too many codes"),
        pytest.param(segment(0xC4, b"\0\1" + bytes(15) + b"\x10"), "impossible codes", id="impossible code"),
        pytest.param(segment(0x84, b"??"), "unknown kind 0x84", id="unknown segment"),
        pytest.param(QUANTISATION + frame() + b"junk", "does not begin where", id="junk between segments"),
        pytest.param(QUANTISATION + frame() + SCAN, "end is missing", id="no end"),
    ],
)
def test_jpeg_by_hand(body: bytes, words: str | None) -> None:
    if words is None:
        assert read_jpeg(memoryview(SOI + body)) == Header(8, 8)
        return
    with pytest.raises(Damaged, match=words):
        read_jpeg(memoryview(SOI + body))


def test_a_thumbnails_end_is_not_the_pictures() -> None:
    """The header of a photo often holds a whole small JPEG, whose end mark a cut file still has."""
    picture = encode(checker(320, 200))
    photo = picture[:2] + segment(0xE1, b"Exif\0\0" + encode(checker(32, 20))) + picture[2:]
    assert admit(photo) is None
    assert admit(photo[:-900]) is not None


def test_a_jpeg_with_a_damaged_middle_is_a_picture_with_a_flaw(decoder: Preprocessor) -> None:
    data = encode(checker(320, 200))
    flawed = data[:1500] + bytes(100) + data[1600:]
    assert admit(flawed) is None
    assert isinstance(decoder.run([flawed])[0], Prepared)


def test_a_png_may_have_a_wrong_checksum_where_it_does_not_matter(decoder: Preprocessor) -> None:
    data = encode(checker(64, 48), "PNG")
    text = b"tEXtComment\0hello"
    wrong = struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text) ^ 1)
    data = data[:33] + wrong + data[33:]  # behind the header
    assert admit(data) is None
    assert isinstance(decoder.run([data])[0], Prepared)


@pytest.mark.parametrize("seed", range(4))
def test_a_webp_takes_another_way_where_the_decoder_would_lose_its_way_to_the_metadata(
    decoder: Preprocessor, seed: int
) -> None:
    """Its parser forgets the padding of odd chunks. Once this fails it is mended, and the detour can go."""
    data = encode(checker(40 + seed, 30, cell=7), "WEBP", lossless=True, orientation=6)
    odd = struct.unpack_from("<I", data, data.index(b"VP8L") + 4)[0] % 2
    assert (gate(data) is not data) == bool(odd)
    assert isinstance(decoder.run([data])[0], Prepared)
    assert isinstance(decoder._let_decode([data])[0], BadImage) == bool(odd)


@pytest.mark.parametrize(("kind", "size"), [("PNG", 33), ("WEBP", 30), ("BMP", 26), ("TIFF", 16)])
def test_a_lone_header_is_not_enough(kind: str, size: int) -> None:
    bad = admit(encode(checker(64, 48), kind)[:size])
    assert bad and ("truncated" in bad.message or "damaged" in bad.message)
