"""Several hundred valid images: formats, depths, colour models, orientation records, each with its true pixels.

    for case in cases(): case.data, case.expected    # (h, w, 3) uint8 upright, made without a decoder

The pixels are known before they are encoded; PNG and TIFF are written here byte by byte, so that what a library's
writer would choose (planes, sample formats, extra samples, byte order) is chosen by the case.
"""

import struct
import zlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from retinaserve.training.pixels.formats import heif
from tests.training.pixels.known import (
    EXACT,
    HEIGHT,
    LOSSY,
    UPRIGHT,
    WIDTH,
    Array,
    Case,
    bits,
    cmyk,
    colours,
    eight_bits,
    exif,
    grey,
    packed,
    pillow,
    scaled,
)
from tests.training.pixels.tiffs import tiffs

FIXTURES = Path(__file__).parent / "jpeg"  # of codings that Pillow does not write

# JPEG


def segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def with_segments(jpeg: bytes, *segments: bytes) -> bytes:
    """Put segments behind a JPEG's JFIF header, where applications write theirs."""
    at = 4 + struct.unpack_from(">H", jpeg, 4)[0] if jpeg[2:4] == b"\xff\xe0" else 2
    return jpeg[:at] + b"".join(segments) + jpeg[at:]


def exif_segment(content: bytes) -> bytes:
    return segment(0xE1, b"Exif\0\0" + content)


def xmp_segment(content: bytes) -> bytes:
    return segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + content)


def without_adobe(jpeg: bytes) -> bytes:
    """Take the Adobe segment out of a JPEG."""
    at = jpeg.index(b"\xff\xee")
    return jpeg[:at] + jpeg[at + 2 + struct.unpack_from(">H", jpeg, at + 2)[0] :]


def jpegs() -> Iterator[Case]:
    rgb = eight_bits()
    image, grey_image = Image.fromarray(rgb), Image.fromarray(rgb[..., 0])
    greys = np.repeat(rgb[..., :1], 3, axis=2)
    inks, ink_rgb = cmyk()
    for name, options in {
        "baseline": {},
        "progressive": {"progressive": True},
        "own tables": {"optimize": True},
        "restarts": {"restart_marker_blocks": 3},
    }.items():
        for sampling in ("4:4:4", "4:2:2", "4:2:0", "4:1:1"):
            data = pillow(image, "JPEG", quality=95, subsampling=sampling, **options)
            yield Case(f"JPEG colour {sampling} {name}", data, rgb, LOSSY)
        yield Case(f"JPEG grey {name}", pillow(grey_image, "JPEG", quality=95, **options), greys, LOSSY)
        data = pillow(image, "JPEG", quality=95, keep_rgb=True, **options)
        yield Case(f"JPEG rgb {name}", data, rgb, LOSSY)
        data = pillow(inks, "JPEG", quality=95, **options)
        yield Case(f"JPEG cmyk {name}", data, ink_rgb, LOSSY)
    data = pillow(inks, "JPEG", quality=95)
    # Without Adobe's word the inks are as they are, not inverted.
    plain = pillow(Image.fromarray(255 - np.asarray(inks), "CMYK"), "JPEG", quality=95)
    yield Case("JPEG cmyk without adobe marker", without_adobe(plain), ink_rgb, LOSSY)
    baseline = pillow(image, "JPEG", quality=95, subsampling=0)
    for orientation, upright in UPRIGHT.items():
        for order in "<>":
            for name, data, pixels in (
                ("colour", baseline, rgb),
                ("progressive", pillow(image, "JPEG", quality=95, progressive=True), rgb),
                ("grey", pillow(grey_image, "JPEG", quality=95), greys),
                ("cmyk", pillow(inks, "JPEG", quality=95), ink_rgb),
            ):
                turned = with_segments(data, exif_segment(exif(orientation, order)))
                yield Case(f"JPEG {name} exif {orientation}{order}", turned, upright(pixels), LOSSY)
    for path in sorted(FIXTURES.glob("*.jpg")):
        pixels = greys if "grey" in path.stem else rgb
        yield Case(f"JPEG {path.stem}", path.read_bytes(), pixels, LOSSY)


# PNG


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(values: Array, depth: int, colour: int, *, before: bytes = b"", after: bytes = b"") -> bytes:
    """Write a PNG of samples (h, w) or (h, w, n), its rows without a filter."""
    rows = values.reshape(len(values), -1)
    body = packed(rows, depth)
    stride = len(body) // len(rows)
    lines = b"".join(b"\0" + body[at : at + stride] for at in range(0, len(body), stride))
    head = struct.pack(">IIBBBBB", values.shape[1], len(values), depth, colour, 0, 0, 0)
    parts = chunk(b"IHDR", head) + before + chunk(b"IDAT", zlib.compress(lines)) + after + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def pngs() -> Iterator[Case]:
    for name, data, expected in png_layouts():
        yield Case(f"PNG {name}", data, expected)
    rgb = colours()
    for orientation, upright in UPRIGHT.items():
        for order in "<>":
            record = chunk(b"eXIf", exif(orientation, order))
            for depth in (8, 16):
                values = bits(rgb, depth)
                expected = upright(scaled(values, 2**depth - 1))
                name = f"PNG rgb {depth} exif {orientation}{order}"
                yield Case(name, png(values, depth, 2, before=record), expected)
                if order == "<":
                    late = png(values, depth, 2, after=record)
                    yield Case(f"{name} behind the pixels", late, expected)
            yield Case(
                f"PNG grey 16 exif {orientation}{order}",
                png(grey(), 16, 0, before=record),
                upright(scaled(grey(), 65535)),
            )


def png_layouts() -> Iterator[tuple[str, bytes, npt.NDArray[np.uint8]]]:
    """Give each colour type and depth, with what else a PNG may say of its colours; nothing of it changes them."""
    rgb = colours()
    alpha = np.broadcast_to(np.linspace(0, 65535, WIDTH).astype(np.uint16)[None, :, None], (HEIGHT, WIDTH, 1))
    said = {
        "": b"",
        " gAMA": chunk(b"gAMA", struct.pack(">I", 100000)),
        " sRGB": chunk(b"sRGB", b"\0"),
        " cHRM": chunk(b"cHRM", struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)),
        " sBIT": b"",
    }
    for words, extra in said.items():
        for depth in (1, 2, 4, 8, 16):
            values = bits(grey(), depth)
            more = chunk(b"sBIT", bytes((max(1, depth - 1),))) if words == " sBIT" else extra
            yield f"grey {depth}{words}", png(values, depth, 0, before=more), scaled(values, 2**depth - 1)
        for depth in (8, 16):
            values, clear = bits(rgb, depth), bits(alpha, depth)
            expected = scaled(values, 2**depth - 1)
            more = chunk(b"sBIT", bytes([depth - 1] * 3)) if words == " sBIT" else extra
            yield f"rgb {depth}{words}", png(values, depth, 2, before=more), expected
            if words == " sBIT":
                continue
            both = np.concatenate((values, clear), axis=2)
            yield f"rgba {depth}{words}", png(both, depth, 6, before=extra), expected
            both = np.concatenate((values[..., :1], clear), axis=2)
            yield (
                f"grey alpha {depth}{words}",
                png(both, depth, 4, before=extra),
                scaled(values[..., 0], 2**depth - 1),
            )
    for depth in (1, 2, 4, 8):
        palette = (np.arange(3 * 2**depth).reshape(-1, 3) * 7 % 256).astype(np.uint8)
        index = bits(grey(), depth)
        table = chunk(b"PLTE", palette.tobytes())
        yield f"palette {depth}", png(index, depth, 3, before=table), palette[index]
        clear = chunk(b"tRNS", bytes((0, 128)))
        yield f"palette {depth} tRNS", png(index, depth, 3, before=table + clear), palette[index]
    for depth in (8, 16):
        values = bits(rgb, depth)
        clear = chunk(b"tRNS", values[0, 0].astype(">u2").tobytes())
        yield f"rgb {depth} tRNS", png(values, depth, 2, before=clear), scaled(values, 2**depth - 1)
        clear = chunk(b"tRNS", values[0, 0, :1].astype(">u2").tobytes())
        yield (
            f"grey {depth} tRNS",
            png(values[..., 0], depth, 0, before=clear),
            scaled(values[..., 0], 2**depth - 1),
        )


# WebP, BMP, GIF


def others() -> Iterator[Case]:
    rgb = eight_bits()
    image = Image.fromarray(rgb)
    alpha = image.copy()
    alpha.putalpha(Image.fromarray(np.full((HEIGHT, WIDTH), 255, np.uint8)))
    yield Case("WEBP lossy", pillow(image, "WEBP", quality=95), rgb, LOSSY)
    yield Case("WEBP lossless", pillow(image, "WEBP", lossless=True), rgb)
    yield Case("WEBP lossy alpha", pillow(alpha, "WEBP", quality=95), rgb, LOSSY)
    yield Case("WEBP lossless alpha", pillow(alpha, "WEBP", lossless=True), rgb)
    for orientation, upright in UPRIGHT.items():
        for order in "<>":
            for name, options, loss in (
                ("lossy", {"quality": 95}, LOSSY),
                ("lossless", {"lossless": True}, EXACT),
            ):
                data = pillow(image, "WEBP", exif=exif(orientation, order), **options)
                yield Case(f"WEBP {name} exif {orientation}{order}", data, upright(rgb), loss)
    second = Image.fromarray(rgb[::-1].copy())
    for name, options, loss in (("lossy", {"quality": 95}, LOSSY), ("lossless", {"lossless": True}, EXACT)):
        data = pillow(image, "WEBP", save_all=True, append_images=[second], duration=40, **options)
        yield Case(f"WEBP animated {name}", data, rgb, loss)
    yield Case("BMP 24", pillow(image, "BMP"), rgb)
    yield Case("BMP 32", pillow(alpha, "BMP"), rgb)
    levels = bits(grey(), 8)
    yield Case("BMP 8", pillow(Image.fromarray(levels.astype(np.uint8)), "BMP"), scaled(levels, 255))
    yield Case(
        "BMP 1",
        pillow(Image.fromarray((bits(grey(), 1) * 255).astype(np.uint8)).convert("1"), "BMP"),
        scaled(bits(grey(), 1), 1),
    )
    few = image.quantize(64)
    shown = np.asarray(few.convert("RGB"))
    yield Case("BMP palette", pillow(few, "BMP"), shown)
    yield Case("BMP 24 top down", bmp(rgb, top_down=True), rgb)
    yield Case("GIF still", pillow(few, "GIF"), shown)
    yield Case("GIF interlaced", pillow(few, "GIF", interlace=True), shown)
    yield Case(
        "GIF animated", pillow(few, "GIF", save_all=True, append_images=[second.quantize(64)], duration=40), shown
    )
    yield Case("AVIF", pillow(image, "AVIF", quality=95), rgb, LOSSY)
    for orientation, upright in UPRIGHT.items():
        data = pillow(image, "AVIF", quality=95, exif=b"Exif\0\0" + exif(orientation))
        yield Case(f"AVIF exif {orientation}", data, upright(rgb), LOSSY)
    assert heif()  # registers the writer too
    yield Case("HEIC", pillow(image, "HEIF", quality=95), rgb, LOSSY)
    for orientation, upright in UPRIGHT.items():
        data = pillow(image, "HEIF", quality=95, exif=b"Exif\0\0" + exif(orientation))
        yield Case(f"HEIC exif {orientation}", data, upright(rgb), LOSSY)


def bmp(rgb: npt.NDArray[np.uint8], *, top_down: bool) -> bytes:
    """Write a BMP of 24 bits, whose first row is the top one where its height is negative."""
    height, width = rgb.shape[:2]
    rows = rgb[:, :, ::-1] if top_down else rgb[::-1, :, ::-1]
    body = b"".join(row.tobytes().ljust(-(-3 * width // 4) * 4, b"\0") for row in rows)
    info = struct.pack("<IiiHHIIiiII", 40, width, -height if top_down else height, 1, 24, 0, len(body), 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54 + len(body), 0, 0, 54) + info + body


@cache
def cases() -> tuple[Case, ...]:
    """Return every case, the same each time."""
    return (*jpegs(), *pngs(), *tiffs(), *others())
