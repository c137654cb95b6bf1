"""Walks the chunks of a WebP to its picture and reads that one's header.

    webp.read(memoryview(data))    # Header(640, 480)

A WebP has no checksums: what is damaged behind the headers is seen by decoding alone.
"""

import struct

from .header import Damaged, Header, need

ANIMATION, METADATA = 0x02, 0x08  # in VP8X's flags; METADATA is EXIF


def read(data: memoryview) -> Header:
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
            picture = (_lossy if kind == b"VP8 " else _lossless)(data[body : body + length])
            if canvas and canvas != picture:
                raise Damaged("its canvas and its picture have different sizes")
            if flags & METADATA:
                _check_metadata(data, end)
            return picture
        elif canvas is None:
            raise Damaged("it does not begin with a picture")
        at = body + length + length % 2
    raise Damaged("it has no picture")


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
