"""Says what is wrong with an encoded picture by reading its header and its end, without decoding it.

    bad = admit(data, max_bytes=MAX_BYTES, max_pixels=MAX_PIXELS)    # None, or BadImage(message)

It spares the decoder what can't be decoded and gives the sender a reason. What it lets through may still be
corrupt in the middle; the decoder has the last word.
"""

import io
import struct
import warnings
from dataclasses import dataclass

from PIL import Image, UnidentifiedImageError

MAX_BYTES = 32 * 1024 * 1024
MAX_PIXELS = 64_000_000  # 64 MP: every phone's full-size photo, and 190 MB decoded

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
SUPPORTED = "JPEG, PNG, WebP, BMP and TIFF are supported"
# What else people send, by its first bytes, so that the answer can call it by name.
STRANGERS = (
    (b"GIF8", 0, "a GIF"),
    (b"%PDF", 0, "a PDF"),
    (b"ftypheic", 4, "an HEIC picture"),
    (b"ftypheix", 4, "an HEIC picture"),
    (b"ftypmif1", 4, "an HEIF picture"),
    (b"ftypavif", 4, "an AVIF picture"),
    (b"ftyp", 4, "a video"),
    (b"\x00\x00\x00\x0cjP  ", 0, "a JPEG 2000"),
    (b"\xff\x0a", 0, "a JPEG XL"),
    (b"PK\x03\x04", 0, "a ZIP archive"),
    (b"\x1f\x8b", 0, "a gzip archive"),
    (b"RIFF", 0, "a RIFF file without a WebP picture"),
    (b"\xff\xd8\xff", 0, "a JPEG with a damaged header"),
    (b"\x89PNG\r\n", 0, "a PNG with a damaged header"),
    (b"II*\0", 0, "a TIFF with a damaged header"),
    (b"MM\0*", 0, "a TIFF with a damaged header"),
)


@dataclass(frozen=True)
class BadImage:
    """Why a picture was refused, in words for the person who sent it."""

    message: str


def admit(data: bytes, *, max_bytes: int = MAX_BYTES, max_pixels: int = MAX_PIXELS) -> BadImage | None:
    """Return what is wrong with an encoded picture, or None when it may be decoded."""
    if not data:
        return BadImage("the image is empty: 0 bytes")
    if len(data) > max_bytes:
        return BadImage(f"the image has {len(data)} bytes; at most {max_bytes} are accepted")
    if _is_short_webp(data):
        return BadImage("the WEBP image is truncated: its end is missing")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own pixel limit and metadata warnings
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                kind, (width, height) = str(image.format), image.size
    except UnidentifiedImageError:
        return BadImage(f"the data is {_describe(data)}; {SUPPORTED}")
    except Image.DecompressionBombError:
        return BadImage(f"the image has far more than {max_pixels} pixels, the most that is accepted")
    except Exception as error:  # a damaged header makes Pillow raise nearly anything
        return BadImage(f"the image's header is damaged ({error})")
    if width * height > max_pixels:
        return BadImage(f"the image has {width} x {height} pixels; at most {max_pixels} are accepted")
    if width < 1 or height < 1:
        return BadImage(f"the image has {width} x {height} pixels")
    if _is_truncated(data, kind):
        return BadImage(f"the {kind} image of {width} x {height} pixels is truncated: its end is missing")
    return None


def undecodable(data: bytes) -> BadImage:
    """Return the message for a picture that `admit` let through and the decoder refused."""
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        kind, (width, height) = image.format, image.size
    return BadImage(f"the {kind} image of {width} x {height} pixels can't be decoded: its data is corrupt")


def _is_short_webp(data: bytes) -> bool:
    """Compare a WebP's stated length with what is there; Pillow can't even open one that was cut."""
    return data[:4] == b"RIFF" and data[8:12] == b"WEBP" and struct.unpack_from("<I", data, 4)[0] + 8 > len(data)


def _is_truncated(data: bytes, kind: str) -> bool:
    """Look for the mark or the length that closes a file; padding behind it is allowed."""
    if kind in ("JPEG", "MPO"):
        return data.rfind(b"\xff\xd9") < 0
    if kind == "PNG":
        return data.rfind(b"IEND") < 0
    if kind == "BMP":
        # The header's file length is often wrong in valid files; where the pixels begin and what they need is
        # not, but only the common, uncompressed kind says so plainly.
        offset, header, width, height = struct.unpack_from("<IIii", data, 10)
        if header < 40:
            return False
        bits, compression = struct.unpack_from("<HI", data, 28)
        row = (abs(width) * bits + 31) // 32 * 4
        return bool(compression == 0 and offset + row * abs(height) > len(data))
    return False  # TIFF keeps its directory anywhere; the decoder tells


def _describe(data: bytes) -> str:
    for magic, offset, name in STRANGERS:
        if data[offset : offset + len(magic)] == magic:
            return name
    start = data[:64]
    if not start.strip(b"\0"):
        return "not an image: it starts with zeros"
    if all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in start):
        return f"text, not an image: it starts with {start[:24].decode('ascii')!r}"
    return f"not an image: it starts with bytes {start[:8].hex(' ')}"
