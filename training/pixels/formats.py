"""Reads the structure of PNG, WebP and BMP, and by Pillow the headers of GIF, AVIF and HEIC.

    read_png(memoryview(data))    # Header(640, 480)

Nothing is inflated or decoded. A PNG's checksums, at a sixth of a millisecond a megabyte, tell of every flipped
bit: one that passes is one that was written like this. WebP has none: what is damaged behind its headers is seen
by decoding alone, or never. What turns a GIF, AVIF or HEIC is in the container, so Pillow says how it lies; of
several frames the first is meant.
"""

import io
import struct
import warnings
import zlib
from dataclasses import dataclass, replace

from .orientation import ORIENTATION, UPRIGHT, VALUES, Orientation, Record, exif_record, settle

# PNG
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}  # by colour type
PALETTE, GREY_ALPHA = 3, 4
PNG_XMP, PNG_PROFILE = b"XML:com.adobe.xmp\0", b"Raw profile type exif\0"
MOST_XMP = 2**20
# WebP
ANIMATION, METADATA = 0x02, 0x08  # in VP8X's flags; METADATA is EXIF
# BMP
CORE = 12  # the oldest header, with 16-bit sizes
BMP_HEADERS = (CORE, 40, 52, 56, 64, 108, 124)
PLAIN, RUNS, MASKED = 0, 1, 3
# Bits a pixel and compression that the decoder takes; others exist.
BMP_LAYOUTS = {(bits, PLAIN) for bits in (1, 4, 8, 24, 32)} | {(8, RUNS), (16, MASKED), (32, MASKED)}
HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


@dataclass(frozen=True)
class Header:
    """The size of an image as it is stored, and what of it the rule for its pixels asks for (decode.py)."""

    width: int
    height: int
    orientation: Orientation = UPRIGHT
    depth: int = 8  # bits of a sample, where they are more than 8
    coarse: bool = False  # of those, only the upper 8 can be read
    inverted: bool = False  # Pillow takes its inks for inverted, which they are not
    detour: str = ""  # what keeps other decoders than `decode` from the right pixels; empty: nothing

    @property
    def upright(self) -> tuple[int, int]:
        """(h, w) after the orientation is applied."""
        sideways = self.orientation.value >= 5
        return (self.width, self.height) if sideways else (self.height, self.width)


class Damaged(Exception):
    """The structure is broken, in words that end the sentence "the image is damaged: ..."."""


class Unsupported(Damaged):
    """The image is of a kind that is not decoded, in words that end "this kind of image is not supported: ..."."""


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
    records: list[Record] = []
    xmp: list[bytes] = []
    colour, doubt = 0, ""
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
            header = Header(width, height, depth=max(8, depth), coarse=colour == GREY_ALPHA)
        elif kind == b"IHDR":
            raise Damaged("it has two headers")
        elif kind == b"IEND":
            if b"IDAT" not in seen:
                raise Damaged("it has no pixels")
            return replace(header, orientation=settle(records, xmp=xmp, doubt=doubt))
        elif kind == b"IDAT" and colour == PALETTE and b"PLTE" not in seen:
            raise Damaged("it lacks its palette")
        elif kind == b"eXIf":
            records.append(exif_record(data[body : end - 4]))
        elif kind == b"iTXt" and bytes(data[body : body + len(PNG_XMP)]) == PNG_XMP:
            xmp.append(_text(data[body + len(PNG_XMP) : end - 4]))
        elif kind in (b"tEXt", b"zTXt", b"iTXt") and bytes(data[body : body + len(PNG_PROFILE)]) == PNG_PROFILE:
            doubt = "a text chunk holds EXIF, which does not count"
        seen.add(kind)
        at = end


def _text(body: memoryview) -> bytes:
    """Return the text of an iTXt chunk behind its keyword; one that is not as it should be is empty."""
    compressed = bytes(body[:1]) == b"\1"
    text = bytes(body).split(b"\0", 4)[-1] if not compressed else bytes(body[2:]).split(b"\0", 2)[-1]
    try:
        return zlib.decompressobj().decompress(text, MOST_XMP) if compressed else text
    except zlib.error:
        return b""


def read_webp(data: memoryview) -> Header:
    """Return the header of a WebP. Raises Damaged, or Truncated where it is shorter than it says."""
    need(data, 20)
    end = 8 + struct.unpack_from("<I", data, 4)[0]
    need(data, end)
    at, canvas, flags = 12, None, 0
    image: Header | None = None
    records: list[Record] = []
    xmp: list[bytes] = []
    doubt, odd = "", False
    while at + 8 <= end:
        kind, length = struct.unpack_from("<4sI", data, at)
        body = at + 8
        if body + length > end:
            raise Damaged("a chunk of it is longer than the file")
        chunk = data[body : body + length]
        if kind == b"VP8X" and canvas is None and length >= 10:
            flags = data[body]
            canvas = Header(_three(data, body + 4) + 1, _three(data, body + 7) + 1)
        elif kind in (b"VP8 ", b"VP8L") and image is None:
            image = (_lossy if kind == b"VP8 " else _lossless)(chunk)
            if canvas and (canvas.width, canvas.height) != (image.width, image.height):
                raise Damaged("its canvas and its image have different sizes")
        elif kind == b"ANMF" and canvas and flags & ANIMATION:
            image = image or replace(canvas, detour="it is an animation")
        elif kind == b"EXIF":
            records.append(exif_record(chunk))
            if not flags & METADATA:
                doubt = "it has EXIF that its header does not announce"
        elif kind == b"XMP ":
            xmp.append(bytes(chunk))
        elif canvas is None and image is None:
            raise Damaged("it does not begin with an image")
        if length % 2 and not records:
            odd = True
        at = body + length + length % 2
    if image is None:
        raise Damaged("it has no image")
    if records and odd and not doubt:
        # nvImageCodec 0.9 forgets the padding of odd chunks on its way to EXIF, and refuses the image.
        doubt = "its EXIF stands behind a chunk of odd length"
    return replace(image, orientation=settle(records, xmp=xmp, doubt=doubt))


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
        raise Unsupported(f"it has {bits} bits a pixel in compression {compression}")
    if compression != RUNS:  # rows have a known length
        need(data, pixels + (width * bits + 31) // 32 * 4 * abs(height))  # a negative height: rows from the top
    return Header(width, abs(height))


def read_gif(data: memoryview) -> Header:
    """Return the header of a GIF. Raises Damaged."""
    return _opened(data, "GIF", "it is a GIF")


def read_avif(data: memoryview) -> Header:
    """Return the header of an AVIF. Raises Damaged, or Unsupported where Pillow was built without it."""
    from PIL import features

    if not features.check("avif"):
        raise Unsupported("reading it takes Pillow 11.3 or later")
    return _opened(data, "AVIF", "it is an AVIF")


def read_heic(data: memoryview) -> Header:
    """Return the header of a HEIC. Raises Damaged, or Unsupported without pillow-heif."""
    if not heif():
        raise Unsupported("reading it takes pillow-heif: pip install 'retinaserve[heif]'")
    return _opened(data, "HEIF", "it is a HEIC")


def heif() -> bool:
    """Let Pillow read HEIC, and say whether it can."""
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    return True


def _opened(data: memoryview, kind: str, detour: str) -> Header:
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of metadata, and Pillow's own limit of pixels
            with Image.open(io.BytesIO(data), formats=(kind,)) as image:
                image.info.pop("xmp", None)  # see orientation.py
                value = image.getexif().get(ORIENTATION, 1)
                return Header(*image.size, Orientation(value if value in VALUES else 1), detour=detour)
    except Exception:  # a decoder raises nearly anything
        raise Damaged("its header can't be read") from None
