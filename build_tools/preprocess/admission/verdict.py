"""Says what is wrong with an encoded picture by reading its structure, without decoding it.

    bad = admit(data, max_bytes=MAX_BYTES, max_pixels=MAX_PIXELS)    # None, or BadImage(message)

It spares the decoder what can't be decoded and gives the sender a reason. Behind it a JPEG, PNG or BMP decodes;
a WebP or TIFF, which have no checksums, may still be damaged where only a decoder can tell. It reads the buffer
where it lies and needs the standard library alone.
"""

from collections.abc import Callable
from dataclasses import dataclass

from . import bmp, jpeg, png, tiff, webp
from .header import Damaged, Header, Truncated

MAX_BYTES = 32 * 1024 * 1024
MAX_PIXELS = 64_000_000  # 64 MP: every phone's full-size photo, and 190 MB decoded

Buffer = bytes | memoryview  # of bytes: any contiguous one-dimensional buffer does
SUPPORTED = "JPEG, PNG, WebP, BMP and TIFF are supported"
READERS: dict[str, Callable[[memoryview], Header]] = {
    "JPEG": jpeg.read,
    "PNG": png.read,
    "WEBP": webp.read,
    "BMP": bmp.read,
    "TIFF": tiff.read,
}
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
)


@dataclass(frozen=True)
class BadImage:
    """Why a picture was refused, in words for the person who sent it."""

    message: str


def admit(data: Buffer, *, max_bytes: int = MAX_BYTES, max_pixels: int = MAX_PIXELS) -> BadImage | None:
    """Return what is wrong with an encoded picture, or None when it may be decoded."""
    view = memoryview(data)
    if not view:
        return BadImage("the image is empty: 0 bytes")
    if len(view) > max_bytes:
        return BadImage(f"the image has {len(view)} bytes; at most {max_bytes} are accepted")
    kind = kind_of(view)
    if not kind:
        return BadImage(f"the data is {_describe(bytes(view[:64]))}; {SUPPORTED}")
    try:
        header = READERS[kind](view)
    except Truncated as reason:
        return BadImage(f"the {kind} image is truncated: {reason}")
    except Damaged as reason:
        return BadImage(f"the {kind} image is damaged: {reason}")
    if header.width * header.height > max_pixels:
        size = f"{header.width} x {header.height}"
        return BadImage(f"the image has {size} pixels; at most {max_pixels} are accepted")
    return None


def undecodable(data: Buffer) -> BadImage:
    """Return the message for a picture that `admit` let through and the decoder refused."""
    view = memoryview(data)
    kind = kind_of(view)
    header = READERS[kind](view)
    return BadImage(
        f"the {kind} image of {header.width} x {header.height} pixels can't be decoded: its data is corrupt"
    )


def kind_of(view: memoryview) -> str:
    """Return the format that the first bytes stand for, a key of READERS, or an empty string."""
    start = bytes(view[:18])
    if start.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if start.startswith(b"\x89PNG"):
        return "PNG"
    if start.startswith(b"RIFF") and start[8:12] == b"WEBP":
        return "WEBP"
    if start.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return "TIFF"
    # Two letters begin many a text as well: the length of the second header makes it a BMP.
    if start.startswith(b"BM") and int.from_bytes(start[14:18], "little") in bmp.HEADERS:
        return "BMP"
    return ""


def _describe(start: bytes) -> str:
    for magic, offset, name in STRANGERS:
        if start[offset : offset + len(magic)] == magic:
            return name
    if not start.strip(b"\0"):
        return "not an image: it starts with zeros"
    if all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in start):
        return f"text, not an image: it starts with {start[:24].decode('ascii')!r}"
    return f"not an image: it starts with bytes {start[:8].hex(' ')}"
