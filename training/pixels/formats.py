"""Reads the structure of PNG, WebP, BMP and TIFF: what their headers say, and whether everything is there.

    read_png(memoryview(data))    # Header(640, 480)

Nothing is inflated or decoded. A PNG's checksums, at a sixth of a millisecond a megabyte, tell of every flipped
bit: one that passes is one that was written like this. WebP and TIFF have none: what is damaged behind their
headers is seen by decoding alone, or never.
"""

import struct
import zlib
from dataclasses import dataclass

# PNG
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}  # by colour type
PALETTE = 3
# WebP
ANIMATION, METADATA = 0x02, 0x08  # in VP8X's flags; METADATA is EXIF
# BMP
CORE = 12  # the oldest header, with 16-bit sizes
BMP_HEADERS = (CORE, 40, 52, 56, 64, 108, 124)
PLAIN, RUNS, MASKED = 0, 1, 3
# Bits a pixel and compression that the decoder takes; others exist.
BMP_LAYOUTS = {(bits, PLAIN) for bits in (1, 4, 8, 24, 32)} | {(8, RUNS), (16, MASKED), (32, MASKED)}
# TIFF
WIDTH, HEIGHT, BITS, COMPRESSION, COLOUR, SAMPLES, FORMAT = 256, 257, 258, 259, 262, 277, 339
STRIPS, STRIP_LENGTHS, TILES, TILE_LENGTHS = 273, 279, 324, 325
SINGLE = (WIDTH, HEIGHT, COMPRESSION, COLOUR, SAMPLES)
READ = frozenset({*SINGLE, BITS, FORMAT, STRIPS, STRIP_LENGTHS, TILES, TILE_LENGTHS})
SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
NUMBERS = {1: "B", 3: "H", 4: "I", 16: "Q"}  # the types that numbers of this directory have
TIFF_DEPTHS = (1, 2, 4, 8, 16, 32)
FLOATS = 3  # in FORMAT
# What the decoder takes: none, CCITT, LZW, JPEG, deflate, PackBits, deflate by its old number, Zstandard.
UNCOMPRESSED, TIFF_COMPRESSIONS = 1, frozenset({1, 2, 3, 4, 5, 7, 8, 32773, 32946, 50000})
PRIVATE = 32768  # tags from here on are anybody's
MOST_ENTRIES = 4096


@dataclass(frozen=True)
class Header:
    """The size of an image as it is stored: before its EXIF orientation is applied."""

    width: int
    height: int


class Damaged(Exception):
    """The structure is broken, in words that end the sentence "the image is damaged: ..."."""


class Truncated(Damaged):
    """The structure goes on behind the end of the data."""


def need(data: memoryview, end: int) -> None:
    """Raise Truncated unless the data reaches as far as `end`."""
    if end > len(data):
        raise Truncated("its end is missing")


def read_png(data: memoryview) -> Header:
    """Return the header of a PNG. Raises Damaged, or Truncated where its last chunk is missing."""
    if bytes(data[: len(PNG_SIGNATURE)]) != PNG_SIGNATURE:
        raise Damaged("its signature is broken")
    at = len(PNG_SIGNATURE)
    header: Header | None = None
    seen: set[bytes] = set()
    colour = 0
    while True:
        need(data, at + 8)
        length, kind = struct.unpack_from(">I4s", data, at)
        if not kind.isalpha():
            raise Damaged("a chunk of it does not begin where the one before ends")
        body, end = at + 8, at + 12 + length
        need(data, end)
        # Lower case: a decoder may do without this chunk, and does where its checksum is wrong.
        critical = not kind[0] & 0x20
        if critical and zlib.crc32(data[at + 4 : end - 4]) != struct.unpack_from(">I", data, end - 4)[0]:
            raise Damaged(f"the checksum of its {kind.decode('ascii')} chunk is wrong")
        if header is None:
            if kind != b"IHDR" or length != 13:
                raise Damaged("it does not begin with a header")
            width, height, depth, colour, *methods = struct.unpack_from(">IIBBBBB", data, body)
            if depth not in PNG_DEPTHS.get(colour, ()) or methods[:2] != [0, 0] or methods[2] > 1:
                raise Damaged("its header has impossible values")
            header = Header(width, height)
        elif kind == b"IHDR":
            raise Damaged("it has two headers")
        elif kind == b"IEND":
            if b"IDAT" not in seen:
                raise Damaged("it has no pixels")
            return header
        elif kind == b"IDAT" and colour == PALETTE and b"PLTE" not in seen:
            raise Damaged("it lacks its palette")
        seen.add(kind)
        at = end


def read_webp(data: memoryview) -> Header:
    """Return the header of a WebP. Raises Damaged, or Truncated where it is shorter than it says."""
    need(data, 20)
    end = 8 + struct.unpack_from("<I", data, 4)[0]
    need(data, end)
    at, canvas, flags = 12, None, 0
    while at + 8 <= end:
        kind, length = struct.unpack_from("<4sI", data, at)
        body = at + 8
        if body + length > end:
            raise Damaged("a chunk of it is longer than the file")
        if kind == b"VP8X" and canvas is None and length >= 10:
            flags = data[body]
            if flags & ANIMATION:
                raise Damaged("it is an animation, which is not supported")
            canvas = Header(_three(data, body + 4) + 1, _three(data, body + 7) + 1)
        elif kind in (b"VP8 ", b"VP8L"):
            image = (_lossy if kind == b"VP8 " else _lossless)(data[body : body + length])
            if canvas and canvas != image:
                raise Damaged("its canvas and its image have different sizes")
            if flags & METADATA:
                _check_metadata(data, end)
            return image
        elif canvas is None:
            raise Damaged("it does not begin with an image")
        at = body + length + length % 2
    raise Damaged("it has no image")


def _check_metadata(data: memoryview, end: int) -> None:
    """Refuse what nvImageCodec 0.9 loses its way in: it forgets the padding of odd chunks on its way to EXIF."""
    at = 12
    while at + 8 <= end:
        kind, length = struct.unpack_from("<4sI", data, at)
        if kind == b"EXIF":
            return
        if length % 2:
            raise Damaged("its EXIF metadata stands behind a chunk of odd length, which the decoder can't read")
        at += 8 + length


def _lossy(data: memoryview) -> Header:
    """Read the frame header of VP8 (RFC 6386, 9.1)."""
    if len(data) < 10 or bytes(data[3:6]) != b"\x9d\x01\x2a":
        raise Damaged("its frame header is broken")
    tag = _three(data, 0)
    inter_frame, version, shown, first = tag & 1, tag >> 1 & 7, tag >> 4 & 1, tag >> 5
    if inter_frame or version > 3 or not shown or first > len(data) - 10:
        raise Damaged("its frame header has impossible values")
    width, height = struct.unpack_from("<HH", data, 6)
    return _nonempty(width & 0x3FFF, height & 0x3FFF)  # the upper bits are a scale for displays


def _lossless(data: memoryview) -> Header:
    if len(data) < 5 or data[0] != 0x2F:
        raise Damaged("its frame header is broken")
    (bits,) = struct.unpack_from("<I", data, 1)
    if bits >> 29:
        raise Damaged("its frame header has an unknown version")
    return Header((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)


def _nonempty(width: int, height: int) -> Header:
    if not width or not height:
        raise Damaged(f"its frame header says {width} x {height} pixels")
    return Header(width, height)


def _three(data: memoryview, at: int) -> int:
    return data[at] | data[at + 1] << 8 | data[at + 2] << 16


def read_bmp(data: memoryview) -> Header:
    """Return the header of a BMP. Raises Damaged, or Truncated where pixels are missing."""
    need(data, 26)
    # The file's length, at 2, is often wrong in valid files. Where the pixels begin and what they need is not.
    pixels, length = struct.unpack_from("<II", data, 10)
    if length not in BMP_HEADERS:
        raise Damaged(f"its header has the unknown length {length}")
    need(data, 14 + length)
    if length == CORE:
        width, height, planes, bits = struct.unpack_from("<HHHH", data, 18)
        compression = PLAIN
    else:
        width, height, planes, bits, compression = struct.unpack_from("<iiHHI", data, 18)
    if width <= 0 or not height or planes != 1 or pixels < 14 + length:
        raise Damaged("its header has impossible values")
    if (bits, compression) not in BMP_LAYOUTS:
        raise Damaged(f"its {bits} bits a pixel in compression {compression} are not supported")
    if compression != RUNS:  # rows have a known length
        need(data, pixels + (width * bits + 31) // 32 * 4 * abs(height))  # a negative height: rows from the top
    return Header(width, abs(height))


def read_tiff(data: memoryview) -> Header:
    """Return the header of a TIFF. Raises Damaged, or Truncated where its directory or pixels are missing."""
    order = "<" if bytes(data[:2]) == b"II" else ">"
    need(data, 16)
    big = struct.unpack_from(f"{order}H", data, 2)[0] == 43  # BigTIFF: 64-bit offsets
    (at,) = struct.unpack_from(f"{order}Q" if big else f"{order}I", data, 8 if big else 4)
    tags = _directory(data, order, at, big)
    if any(len(tags.get(tag, (1,))) != 1 for tag in SINGLE):
        raise Damaged("its directory has impossible values")
    if WIDTH not in tags or HEIGHT not in tags or COLOUR not in tags:
        raise Damaged("its directory lacks what describes the image")
    (width,), (height,), (samples,) = tags[WIDTH], tags[HEIGHT], tags.get(SAMPLES, (1,))
    bits = tags.get(BITS, (1,))
    starts, lengths = (
        tags.get(STRIPS) or tags.get(TILES, ()),
        tags.get(STRIP_LENGTHS) or tags.get(TILE_LENGTHS, ()),
    )
    if not width or not height or not starts or len(starts) != len(lengths):
        raise Damaged("its directory has impossible values")
    if bits[0] not in TIFF_DEPTHS or len(set(bits)) > 1 or len(bits) not in (1, samples) or not 1 <= samples <= 5:
        raise Damaged("its directory has an impossible pixel format")
    (compression,), depth = tags.get(COMPRESSION, (UNCOMPRESSED,)), bits[0]
    if compression not in TIFF_COMPRESSIONS:
        raise Damaged(f"its compression {compression} is not supported")
    if (depth == 32 and set(tags.get(FORMAT, ())) != {FLOATS}) or (depth == 1 and compression == UNCOMPRESSED):
        raise Damaged(f"its {depth} bits a sample, stored like this, are not supported")
    for start, length in zip(starts, lengths, strict=True):
        need(data, start + length)
    return Header(width, height)


def _directory(data: memoryview, order: str, at: int, big: bool) -> dict[int, tuple[int, ...]]:
    """Return the numbers of a directory by tag; entries of other types are skipped."""
    head, entry, count_code = (8, 20, "Q") if big else (2, 12, "I")
    if at < 8:
        raise Damaged("its directory has an impossible place")
    need(data, at + head)
    (entries,) = struct.unpack_from(f"{order}{'Q' if big else 'H'}", data, at)
    if not 1 <= entries <= MOST_ENTRIES:
        raise Damaged(f"its directory has {entries} entries")
    need(data, at + head + entries * entry)
    tags: dict[int, tuple[int, ...]] = {}
    for place in range(at + head, at + head + entries * entry, entry):
        tag, kind, count = struct.unpack_from(f"{order}HH{count_code}", data, place)
        if kind not in SIZES:
            if tag < PRIVATE:
                raise Damaged("its directory has an unknown type")
            continue  # a private tag may have what type it likes
        value, size = place + 4 + struct.calcsize(count_code), count * SIZES[kind]
        if size > struct.calcsize(count_code):  # the values lie elsewhere
            (value,) = struct.unpack_from(f"{order}{count_code}", data, value)
        need(data, value + size)
        if tag in READ:
            if kind not in NUMBERS:
                raise Damaged("its directory has values of the wrong type")
            tags[tag] = struct.unpack_from(f"{order}{count}{NUMBERS[kind]}", data, value)
    return tags
