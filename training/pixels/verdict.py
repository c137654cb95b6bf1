"""Says what is wrong with an encoded image by reading its structure, without decoding it.

    bad = admit(data, max_bytes=MAX_BYTES, max_pixels=MAX_PIXELS)    # None, or BadImage(message)
    bad = bad or trial(data)    # decodes a WebP or TIFF once

It spares the decoder what can't be decoded and gives the sender a reason. Behind `admit` a JPEG, PNG or BMP
decodes; others, which have no checksums, may still be damaged where only a decoder can tell. It reads the buffer
where it lies. GIF, AVIF, HEIC and `trial` need more than the standard library: Pillow.
"""

import io
import warnings
from collections.abc import Callable, Collection
from dataclasses import dataclass

from .formats import (
    BMP_HEADERS,
    HEIC_BRANDS,
    Damaged,
    Header,
    Truncated,
    Unsupported,
    read_avif,
    read_bmp,
    read_gif,
    read_heic,
    read_png,
    read_webp,
)
from .jpeg import read_jpeg
from .tiff import read_tiff

MAX_BYTES = 32 * 1024 * 1024
MAX_PIXELS = 64_000_000  # 64 MP: every phone's full-size photo, and 190 MB decoded

Buffer = bytes | memoryview  # of bytes: any contiguous one-dimensional buffer does
# A flipped bit of a WebP or a TIFF is not told by any checksum, and their decoders give up on most. Of a JPEG,
# libjpeg-turbo makes an image with a flaw; a PNG has checksums.
UNCHECKED = ("WEBP", "TIFF")
SUPPORTED = "JPEG, PNG, WebP, BMP, TIFF, GIF, AVIF and HEIC are supported"
READERS: dict[str, Callable[[memoryview], Header]] = {
    "JPEG": read_jpeg,
    "PNG": read_png,
    "WEBP": read_webp,
    "BMP": read_bmp,
    "TIFF": read_tiff,
    "GIF": read_gif,
    "AVIF": read_avif,
    "HEIC": read_heic,
}
KINDS = tuple(READERS)
# What else people send, by its first bytes, so that the answer can call it by name.
STRANGERS = (
    (b"%PDF", 0, "a PDF"),
    (b"ftyp", 4, "a video"),
    (b"\x00\x00\x00\x0cjP  ", 0, "a JPEG 2000"),
    (b"\xff\x0a", 0, "a JPEG XL"),
    (b"PK\x03\x04", 0, "a ZIP archive"),
    (b"\x1f\x8b", 0, "a gzip archive"),
    (b"RIFF", 0, "a RIFF file without a WebP image"),
)


@dataclass(frozen=True)
class BadImage:
    """Why an image was refused, in words for the person who sent it."""

    message: str


def admit(data: Buffer, *, max_bytes: int = MAX_BYTES, max_pixels: int = MAX_PIXELS) -> BadImage | None:
    """Return what is wrong with an encoded image, or None when it may be decoded."""
    found = examine(data, max_bytes=max_bytes, max_pixels=max_pixels)
    return found if isinstance(found, BadImage) else None


def examine(data: Buffer, *, max_bytes: int, max_pixels: int) -> Header | BadImage:
    """Return `inspect`'s answer for an image within limits, or what is wrong with it."""
    view = memoryview(data)
    if not view:
        return BadImage("the image is empty: 0 bytes")
    if len(view) > max_bytes:
        return BadImage(f"the image has {len(view)} bytes; at most {max_bytes} are accepted")
    header = inspect(view)
    if isinstance(header, BadImage) or header.width * header.height <= max_pixels:
        return header
    size = f"{header.width} x {header.height}"
    return BadImage(f"the image has {size} pixels; at most {max_pixels} are accepted")


def inspect(data: Buffer) -> Header | BadImage:
    """Return what the structure of an encoded image says of it, or what is wrong with it."""
    view = memoryview(data)
    kind = kind_of(view)
    if not kind:
        return BadImage(f"the data is {_describe(bytes(view[:64]))}; {SUPPORTED}")
    try:
        return READERS[kind](view)
    except Unsupported as reason:
        return BadImage(f"this kind of {kind} is not supported: {reason}")
    except Truncated as reason:
        return BadImage(f"the {kind} image is truncated: {reason}")
    except Damaged as reason:
        return BadImage(f"the {kind} image is damaged: {reason}")


def trial(data: Buffer, *, kinds: Collection[str] = UNCHECKED) -> BadImage | None:
    """Decode the image if it is of one of `kinds`; return what is wrong with it, or None.

    Only the GPU profile's admission needs it: behind it Triton's dali backend loses a batch to one corrupt image,
    where the CPU profile halves the batch (preprocessor.py). Call it after `admit`, which bounds the pixels.
    """
    from PIL import Image

    kind = kind_of(memoryview(data))
    if kind not in kinds:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of metadata, and Pillow's own pixel limit
            with Image.open(io.BytesIO(data), formats=(kind,)) as image:
                image.load()
    except Exception:  # a decoder raises nearly anything
        return undecodable(data)
    return None


def undecodable(data: Buffer) -> BadImage:
    """Return the message for an image that `admit` let through and the decoder refused."""
    header = inspect(data)
    if isinstance(header, BadImage):
        return header
    kind = kind_of(memoryview(data))
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
    if start.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if start[4:8] == b"ftyp":
        return "AVIF" if start[8:12] in (b"avif", b"avis") else "HEIC" if start[8:12] in HEIC_BRANDS else ""
    if start.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return "TIFF"
    # Two letters begin many a text as well: the length of the second header makes it a BMP.
    if start.startswith(b"BM") and int.from_bytes(start[14:18], "little") in BMP_HEADERS:
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
