"""Which way up an image is: what its metadata says, read once, for every decoder.

    orientation = settle([exif_record(body)], xmp=[packet])    # Orientation(6, dispute="")

The first EXIF record of a file decides, by the first Orientation of its first directory; a value that is not 1 to
8, or no record, means upright. XMP, text chunks and thumbnails never decide, as in browsers. Where anything in the
file says otherwise, or says it in a way that readers take differently, there is a `dispute`: DALI may not see the
file then, because the reader of its sizes and its decoders each follow a record of their own.
"""

import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass

ORIENTATION, EXIF_DIRECTORY = 0x0112, 0x8769
SHORT = 3
WIDTHS = {1: "B", 3: "H", 4: "I"}  # the types of EXIF that hold such a number
VALUES = range(1, 9)
PREFIX = b"Exif\0\0"  # in front of EXIF in a JPEG
XMP = re.compile(rb"tiff:Orientation(?:\s*=\s*[\"']|>)\s*([0-9])")
MOST_ENTRIES = 1024
# For each value: whether to transpose, and then to flip up-down and left-right.
TURNS = {
    1: (False, False, False),
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}


@dataclass(frozen=True)
class Orientation:
    """The value of EXIF, 1 to 8, that holds for a file, and in words what disagrees on it."""

    value: int = 1
    dispute: str = ""


UPRIGHT = Orientation()


@dataclass(frozen=True)
class Record:
    """What one EXIF record says: the value that counts, and whether every reader finds the same."""

    value: int
    plain: bool


def settle(records: Sequence[Record], *, xmp: Sequence[bytes] = (), doubt: str = "") -> Orientation:
    """Return what holds of a file's EXIF records, in their order, and its XMP; `doubt` is a format's own."""
    value = records[0].value if records else 1
    said = [("EXIF", record.value) for record in records]
    said += [("XMP", int(match[1])) for packet in xmp for match in XMP.finditer(packet)]
    if any(other != value for _, other in said):
        return Orientation(value, ", ".join(dict.fromkeys(f"{who} says {number}" for who, number in said)))
    if len(records) > 1:
        return Orientation(value, "it has more than one EXIF record")
    if not all(record.plain for record in records):
        return Orientation(value, "its EXIF record states it in an unusual way")
    return Orientation(value, doubt)


def exif_record(body: memoryview) -> Record:
    """Read an EXIF record, with or without its prefix; one that is broken says nothing."""
    plain = bytes(body[: len(PREFIX)]) != PREFIX
    body = body if plain else body[len(PREFIX) :]
    try:
        order = {b"II*\0": "<", b"MM\0*": ">"}[bytes(body[:4])]
        (at,) = struct.unpack_from(f"{order}I", body, 4)
        first, following = _directory(body, order, at)
    except (struct.error, KeyError):
        return Record(1, plain=False)
    value = first[0][1] if first and first[0][1] in VALUES else 1
    try:
        others = [entry for place in following if place for entry in _directory(body, order, place)[0]]
    except struct.error:
        return Record(value, plain=False)
    same = all(entry == (SHORT, value) for entry in (*first, *others))
    return Record(value, plain and same and len(first) < 2 and (bool(first) or not others))


def _directory(body: memoryview, order: str, at: int) -> tuple[list[tuple[int, int]], list[int]]:
    """Return the orientations of a directory, and where those that belong to it begin."""
    (count,) = struct.unpack_from(f"{order}H", body, at)
    found: list[tuple[int, int]] = []
    following: list[int] = []
    for place in range(at + 2, at + 2 + 12 * min(count, MOST_ENTRIES), 12):
        tag, kind, items, _ = struct.unpack_from(f"{order}HHII", body, place)
        if tag == ORIENTATION:
            code = WIDTHS.get(kind) if items == 1 else None
            found.append((kind, struct.unpack_from(f"{order}{code}", body, place + 8)[0] if code else 0))
        elif tag == EXIF_DIRECTORY:
            following += struct.unpack_from(f"{order}I", body, place + 8)
    end = at + 2 + 12 * count
    # Some writers leave the link to the next directory out at the end of the record.
    following += struct.unpack_from(f"{order}I", body, end) if end + 4 <= len(body) else ()
    return found, following
