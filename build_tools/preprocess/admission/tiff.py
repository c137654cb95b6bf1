"""Reads the first directory of a TIFF and whether its strips or tiles are all there.

    tiff.read(memoryview(data))    # Header(640, 480)

A TIFF has no checksums: what is damaged inside a strip is seen by decoding alone, or never.
"""

import struct

from .header import Damaged, Header, need

WIDTH, HEIGHT, BITS, COMPRESSION, COLOUR, SAMPLES, FORMAT = 256, 257, 258, 259, 262, 277, 339
STRIPS, STRIP_LENGTHS, TILES, TILE_LENGTHS = 273, 279, 324, 325
SINGLE = (WIDTH, HEIGHT, COMPRESSION, COLOUR, SAMPLES)
READ = frozenset({*SINGLE, BITS, FORMAT, STRIPS, STRIP_LENGTHS, TILES, TILE_LENGTHS})
SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
NUMBERS = {1: "B", 3: "H", 4: "I", 16: "Q"}  # the types that numbers of this directory have
DEPTHS = (1, 2, 4, 8, 16, 32)
FLOATS = 3  # in FORMAT
# What the decoder takes: none, CCITT, LZW, JPEG, deflate, PackBits, deflate by its old number, Zstandard.
PLAIN, COMPRESSIONS = 1, frozenset({1, 2, 3, 4, 5, 7, 8, 32773, 32946, 50000})
PRIVATE = 32768  # tags from here on are anybody's
MOST_ENTRIES = 4096


def read(data: memoryview) -> Header:
    """Return the header of a TIFF. Raises Damaged, or Truncated where its directory or pixels are missing."""
    order = "<" if bytes(data[:2]) == b"II" else ">"
    need(data, 16)
    big = struct.unpack_from(f"{order}H", data, 2)[0] == 43  # BigTIFF: 64-bit offsets
    (at,) = struct.unpack_from(f"{order}Q" if big else f"{order}I", data, 8 if big else 4)
    tags = _directory(data, order, at, big)
    if any(len(tags.get(tag, (1,))) != 1 for tag in SINGLE):
        raise Damaged("its directory has impossible values")
    if WIDTH not in tags or HEIGHT not in tags or COLOUR not in tags:
        raise Damaged("its directory lacks what describes the picture")
    (width,), (height,), (samples,) = tags[WIDTH], tags[HEIGHT], tags.get(SAMPLES, (1,))
    bits = tags.get(BITS, (1,))
    starts, lengths = (
        tags.get(STRIPS) or tags.get(TILES, ()),
        tags.get(STRIP_LENGTHS) or tags.get(TILE_LENGTHS, ()),
    )
    if not width or not height or not starts or len(starts) != len(lengths):
        raise Damaged("its directory has impossible values")
    if bits[0] not in DEPTHS or len(set(bits)) > 1 or len(bits) not in (1, samples) or not 1 <= samples <= 5:
        raise Damaged("its directory has an impossible pixel format")
    (compression,), depth = tags.get(COMPRESSION, (PLAIN,)), bits[0]
    if compression not in COMPRESSIONS:
        raise Damaged(f"its compression {compression} is not supported")
    if (depth == 32 and set(tags.get(FORMAT, ())) != {FLOATS}) or (depth == 1 and compression == PLAIN):
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
