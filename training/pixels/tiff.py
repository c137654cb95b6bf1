"""Reads the structure of a TIFF: its first directory, and whether its pixels are all there.

    read_tiff(memoryview(data))    # Header(640, 480)

A TIFF may hold nearly anything. LAYOUTS are those whose pixels are right, by a test of each; others are refused by
what they are.
"""

import struct
from typing import Any

from .formats import Damaged, Header, Unsupported, need
from .orientation import Record, settle

WIDTH, HEIGHT, BITS, COMPRESSION, COLOUR, SAMPLES, FORMAT = 256, 257, 258, 259, 262, 277, 339
STRIPS, STRIP_LENGTHS, TILES, TILE_LENGTHS, PLANES, EXTRA = 273, 279, 324, 325, 284, 338
ORIENTATION, XMP = 274, 700
SINGLE = (WIDTH, HEIGHT, COMPRESSION, COLOUR, SAMPLES, PLANES)
PLACES = (STRIPS, STRIP_LENGTHS, TILES, TILE_LENGTHS)
READ = frozenset({*SINGLE, *PLACES, BITS, FORMAT, EXTRA, ORIENTATION, XMP})
SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
NUMBERS = {1: "B", 3: "H", 4: "I", 7: "B", 16: "Q"}  # the types that numbers of this directory have
SAMPLE_FORMATS = {2: "signed integers", 3: "floating-point numbers", 5: "complex integers", 6: "complex numbers"}
# None, CCITT, LZW, JPEG, deflate, PackBits, deflate by its old number, Zstandard.
JPEG = 7
COMPRESSIONS = frozenset({1, 2, 3, 4, 5, JPEG, 8, 32773, 32946, 50000})
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, INKS, YCBCR = 0, 1, 2, 3, 5, 6
# What is decoded right: name, samples besides alpha, and depths, by colour.
LAYOUTS = {
    WHITE_IS_ZERO: ("grey whose 0 is white", 1, (1, 2, 4, 8)),
    BLACK_IS_ZERO: ("grey", 1, (1, 2, 4, 8, 12, 16)),
    RGB: ("RGB", 3, (8, 16)),
    PALETTE: ("palette", 1, (1, 2, 4, 8)),
    INKS: ("CMYK", 4, (8, 16)),
    YCBCR: ("YCbCr", 3, (8,)),
}
OTHERS = {4: "of a mask", 8: "CIE L*a*b*", 9: "ICC L*a*b*", 10: "ITU L*a*b*", 32803: "of a sensor's filter"}
ASSOCIATED = 1  # alpha that colours are multiplied by
PRIVATE = 32768  # tags from here on are anybody's
MOST_ENTRIES = 4096


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
    (width,), (height,) = tags[WIDTH], tags[HEIGHT]
    starts = tags.get(STRIPS) or tags.get(TILES, ())
    lengths = tags.get(STRIP_LENGTHS) or tags.get(TILE_LENGTHS, ())
    if not width or not height or not starts or len(starts) != len(lengths):
        raise Damaged("its directory has impossible values")
    layout = _layout(tags, order)
    for start, length in zip(starts, lengths, strict=True):
        need(data, start + length)
    values = tags.get(ORIENTATION, (1,))
    value = values[0] if len(values) == 1 and values[0] in range(1, 9) else 1
    records = [Record(value, plain=values == (value,))] if ORIENTATION in tags else []
    orientation = settle(records, xmp=[bytes(tags.get(XMP, ()))])
    return Header(width, height, orientation, **layout)


def _layout(tags: dict[int, tuple[int, ...]], order: str) -> dict[str, Any]:
    """Return what a header says of a directory's samples. Raises Unsupported for what is not decoded right."""
    (colour,), (samples,), bits = tags[COLOUR], tags.get(SAMPLES, (1,)), tags.get(BITS, (1,))
    (compression,), (planes,), extra = tags.get(COMPRESSION, (1,)), tags.get(PLANES, (1,)), tags.get(EXTRA, ())
    if not samples or len(bits) not in (1, samples) or planes not in (1, 2) or len(extra) >= samples:
        raise Damaged("its directory has an impossible pixel format")
    if compression not in COMPRESSIONS:
        raise Unsupported(f"its compression is number {compression}; LZW and deflate are read")
    odd = [SAMPLE_FORMATS[kind] for kind in tags.get(FORMAT, ()) if kind in SAMPLE_FORMATS]
    if odd:
        raise Unsupported(f"its samples are {odd[0]}; unsigned ones of 8 or 16 bits are read")
    if colour not in LAYOUTS:
        raise Unsupported(
            f"its colours are {OTHERS.get(colour, f'of kind {colour}')}; RGB, CMYK and grey are read"
        )
    depth, (name, own, depths) = bits[0], LAYOUTS[colour]
    if len(set(bits)) > 1 or depth not in depths or (depth, order) == (12, ">"):
        found = " and ".join(map(str, sorted(set(bits))))
        raise Unsupported(f"it has {found} bits a sample{' in big-endian order' * (depth == 12)}, {name}")
    if colour == YCBCR and compression != JPEG:
        raise Unsupported("its colours are YCbCr without JPEG compression")
    more = samples - own
    alpha = more == 1 and (colour == RGB or (colour == BLACK_IS_ZERO and depth == 8 and ASSOCIATED not in extra))
    if more and not alpha:
        multiplied = " with alpha multiplied in" * (ASSOCIATED in extra)
        raise Unsupported(f"it has {samples} samples of {depth} bits a pixel, {name}{multiplied}")
    plain = planes == 1 and depth in (8, 16) and ASSOCIATED not in extra
    plain = plain and ((colour == BLACK_IS_ZERO and not more) or (colour == RGB))
    return {
        "depth": max(8, depth) if colour != INKS else 8,
        "coarse": planes == 2 and samples > 1,
        "detour": "" if plain else f"it has {depth} bits a sample of {name} colours, stored in an unusual way",
    }


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
            if tag in tags:
                raise Damaged(f"its directory has the tag {tag} twice")
            if kind not in NUMBERS:
                raise Damaged("its directory has values of the wrong type")
            tags[tag] = struct.unpack_from(f"{order}{count}{NUMBERS[kind]}", data, value)
    return tags
