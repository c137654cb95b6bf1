"""Which orientation holds, and that no other decoder sees a file whose records disagree on it."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from retinaserve.build_tools.preprocess import Prepared, Preprocessor
from retinaserve.training import pixels
from retinaserve.training.pixels import BadImage
from retinaserve.training.pixels.orientation import UPRIGHT as PLAIN
from retinaserve.training.pixels.orientation import Orientation, Record, exif_record, settle
from tests.training.pixels.known import UPRIGHT, eight_bits, exif, pillow, xmp
from tests.training.pixels.matrix import chunk, exif_segment, png, with_segments, xmp_segment
from tests.training.pixels.tiffs import RGB, tiff

SIX, ONE = Record(6, plain=True), Record(1, plain=True)


@pytest.mark.parametrize(
    ("records", "packets", "expected"),
    [
        pytest.param([], [], PLAIN, id="nothing"),
        pytest.param([SIX], [], Orientation(6), id="EXIF"),
        pytest.param([], [xmp(1)], PLAIN, id="XMP that says upright"),
        pytest.param([SIX], [xmp(6)], Orientation(6), id="EXIF and XMP agree"),
        pytest.param([], [xmp(6)], Orientation(1, "XMP says 6"), id="XMP alone"),
        pytest.param([SIX], [xmp(1)], Orientation(6, "EXIF says 6, XMP says 1"), id="XMP left behind"),
        pytest.param([SIX, ONE], [], Orientation(6, "EXIF says 6, EXIF says 1"), id="the first EXIF"),
        pytest.param([SIX, SIX], [], Orientation(6, "it has more than one EXIF record"), id="EXIF twice"),
    ],
)
def test_what_holds(records: list[Record], packets: list[bytes], expected: Orientation) -> None:
    assert settle(records, xmp=packets) == expected


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        pytest.param({}, Record(6, plain=True), id="plain"),
        pytest.param({"thumbnail": 6}, Record(6, plain=True), id="a thumbnail that lies alike"),
        pytest.param({"thumbnail": 1}, Record(6, plain=False), id="a thumbnail that lies otherwise"),
        pytest.param({"again": 3}, Record(6, plain=False), id="two values"),
        pytest.param({"again": 6}, Record(6, plain=False), id="one value twice"),
        pytest.param({"kind": 4}, Record(6, plain=False), id="a long number"),
        pytest.param({"kind": 1}, Record(6, plain=False), id="a byte"),
    ],
)
def test_an_exif_record(order: str, options: dict[str, int], expected: Record) -> None:
    assert exif_record(memoryview(exif(6, order, **options))) == expected


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        pytest.param(b"", Record(1, plain=False), id="empty"),
        pytest.param(b"II*\0", Record(1, plain=False), id="cut"),
        pytest.param(exif(6)[:20], Record(1, plain=False), id="cut in its entry"),
        pytest.param(exif(6)[:-4], Record(6, plain=True), id="without the link to another directory"),
        pytest.param(exif(6)[:-4] + struct.pack("<I", 10**6), Record(6, plain=False), id="a link to nowhere"),
        pytest.param(exif(0), Record(1, plain=False), id="0"),
        pytest.param(exif(9), Record(1, plain=False), id="9"),
        pytest.param(b"Exif\0\0" + exif(6), Record(6, plain=False), id="with the prefix of a JPEG's"),
    ],
)
def test_a_broken_exif_record_says_nothing(body: bytes, expected: Record) -> None:
    assert exif_record(memoryview(body)) == expected


def image() -> Image.Image:
    return Image.fromarray(eight_bits())


def disputed() -> dict[str, tuple[bytes, int]]:
    """Return files whose records disagree, and the orientation that holds; DALI reads these as well."""
    jpeg = pillow(image(), "JPEG", quality=95, subsampling=0)
    text = chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp(1))
    values = eight_bits().astype(np.uint16)
    return {
        "JPEG, XMP alone": (with_segments(jpeg, xmp_segment(xmp(6))), 1),
        "JPEG, XMP left behind": (with_segments(jpeg, exif_segment(exif(6)), xmp_segment(xmp(1))), 6),
        "JPEG, XMP in front": (with_segments(jpeg, xmp_segment(xmp(3)), exif_segment(exif(8))), 8),
        "PNG, XMP left behind": (png(values, 8, 2, before=text + chunk(b"eXIf", exif(6))), 6),
        "WebP, XMP left behind": (pillow(image(), "WEBP", lossless=True, exif=exif(5), xmp=xmp(1)), 5),
        "TIFF, XMP left behind": (tiff(values, 8, RGB, orientation=6, more=[(700, 1, xmp(1), len(xmp(1)))]), 6),
        "TIFF, XMP alone": (tiff(values, 8, RGB, more=[(700, 1, xmp(6), len(xmp(6)))]), 1),
    }


@pytest.mark.parametrize("name", disputed())
def test_a_disputed_file_is_settled_before_another_decoder_sees_it(name: str) -> None:
    data, orientation = disputed()[name]
    header = pixels.inspect(data)
    assert not isinstance(header, BadImage)
    assert header.orientation.value == orientation and header.orientation.dispute
    given = pixels.gate(data)
    assert isinstance(given, bytes) and given.startswith(b"P6 ")  # pixels, which have no records
    expected = UPRIGHT[orientation](eight_bits())
    (result,) = Preprocessor(expected.shape[:2], (0, 0, 0), threads=1, max_batch=1).run([data])
    assert isinstance(result, Prepared) and result.letterbox.tolist()[:2] == list(expected.shape[:2])
    assert np.abs(result.image.transpose(1, 2, 0).astype(int) - expected).mean() < 1


def guarded() -> dict[str, bytes]:
    """Return more that must not reach another decoder; here the gate alone sees them."""
    jpeg = pillow(image(), "JPEG")
    values = eight_bits().astype(np.uint16)
    record = chunk(b"eXIf", exif(6))
    profile = chunk(b"tEXt", b"Raw profile type exif\0" + exif(3).hex().encode())
    return {
        "JPEG, two records": with_segments(jpeg, exif_segment(exif(6)), exif_segment(exif(1))),
        "JPEG, one record twice": with_segments(jpeg, exif_segment(exif(6)), exif_segment(exif(6))),
        "JPEG, two values": with_segments(jpeg, exif_segment(exif(6, again=1))),
        "JPEG, another thumbnail": with_segments(jpeg, exif_segment(exif(6, thumbnail=1))),
        "JPEG, not a number of EXIF": with_segments(jpeg, exif_segment(exif(9))),
        "PNG, two records": png(values, 8, 2, before=record, after=chunk(b"eXIf", exif(1))),
        "PNG, text": png(values, 8, 2, before=record + profile),
        "PNG, text alone": png(values, 8, 2, before=profile),
        "WebP, two records": two_records(),
    }


def two_records() -> bytes:
    webp = pillow(image(), "WEBP", lossless=True, exif=exif(6))
    more = b"EXIF" + struct.pack("<I", len(exif(1))) + exif(1)
    body = webp[8:] + more
    return b"RIFF" + struct.pack("<I", len(body)) + body


@pytest.mark.parametrize("name", guarded())
def test_the_gate_lets_no_doubtful_record_through(name: str) -> None:
    data = guarded()[name]
    assert pixels.gate(data) is not data


def test_a_tiff_with_a_tag_twice_is_refused() -> None:
    data = tiff(eight_bits().astype(np.uint16), 8, RGB, orientation=6, more=[(274, 3, struct.pack("<H", 1), 1)])
    found = pixels.gate(data)
    assert isinstance(found, BadImage) and "tag 274 twice" in found.message


def test_pillow_would_follow_xmp() -> None:
    """Why `decode` takes XMP away from it. Once this fails, it need not."""
    data, _ = disputed()["TIFF, XMP alone"]
    with Image.open(io.BytesIO(data)) as opened:
        opened.load()
        assert opened.size == (43, 61)
