"""Reads the headers of a BMP and whether its pixels are all there.

bmp.read(memoryview(data))    # Header(640, 480)
"""

import struct

from .header import Damaged, Header, need

CORE = 12  # the oldest header, with 16-bit sizes
HEADERS = (CORE, 40, 52, 56, 64, 108, 124)
PLAIN, RUNS, MASKED = 0, 1, 3
# Bits a pixel and compression that the decoder takes; others exist.
LAYOUTS = {(bits, PLAIN) for bits in (1, 4, 8, 24, 32)} | {(8, RUNS), (16, MASKED), (32, MASKED)}


def read(data: memoryview) -> Header:
    """Return the header of a BMP. Raises Damaged, or Truncated where pixels are missing."""
    need(data, 26)
    # The file's length, at 2, is often wrong in valid files. Where the pixels begin and what they need is not.
    pixels, length = struct.unpack_from("<II", data, 10)
    if length not in HEADERS:
        raise Damaged(f"its header has the unknown length {length}")
    need(data, 14 + length)
    if length == CORE:
        width, height, planes, bits = struct.unpack_from("<HHHH", data, 18)
        compression = PLAIN
    else:
        width, height, planes, bits, compression = struct.unpack_from("<iiHHI", data, 18)
    if width <= 0 or not height or planes != 1 or pixels < 14 + length:
        raise Damaged("its header has impossible values")
    if (bits, compression) not in LAYOUTS:
        raise Damaged(f"its {bits} bits a pixel in compression {compression} are not supported")
    if compression != RUNS:  # rows have a known length
        need(data, pixels + (width * bits + 31) // 32 * 4 * abs(height))  # a negative height: rows from the top
    return Header(width, abs(height))
