"""What the network sees of an encoded image: the one rule for pixel values, and the decoder that holds it.

    pixels = decode(data)                               # (h, w, 3) uint8 RGB, upright; docs/data.md has the table
    pixels = decode(data, value_range=(0, 4095))        # of more than 8 bits: 0 becomes black, 4095 white

Other decoders, faster ones or a GPU's, give the same pixels where `Header.detour` is empty and the orientation is
undisputed; `gate` keeps the rest from them. Drawing and the page ask nobody else.
"""

import io
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from .formats import Header, heif
from .orientation import TURNS
from .verdict import MAX_BYTES, MAX_PIXELS, READERS, BadImage, Buffer, examine, kind_of

Pixels = npt.NDArray[np.uint8]
Samples = npt.NDArray[np.uint16]
ValueRange = tuple[int, int]

# Pillow keeps one byte of a 16-bit colour sample; this is the raw mode that keeps the other.
OTHER_BYTE = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
BY_PILLOW = ("TIFF", "GIF", "AVIF", "HEIC")  # Pillow turns these itself, by the record that holds
_LIBTIFF = threading.Lock()


def decode(data: Buffer, value_range: ValueRange | None = None, *, side: int = 0) -> Pixels:
    """Return the pixels (h, w, 3) uint8 RGB, upright, of what `admit` let pass. Raises OSError for corrupt data.

    More than 8 bits are scaled by the range of their depth, or by `value_range` (black, white), rounded half up;
    alpha is dropped, colours under it stay; inks become (255 - ink) * (255 - black) / 255; no profile is applied.
    With `side` a JPEG may come smaller, by halves, as long as its sides have so many pixels.
    """
    kind = kind_of(memoryview(data))
    header = READERS[kind](memoryview(data))
    if header.depth > 8:
        return _turned(scale(samples(data), header.depth, value_range), kind, header)
    # A lossless JPEG has no smaller sizes.
    with _reading(kind), _loaded(data, kind, side=0 if header.detour else side) as image:
        if header.inverted:
            from PIL import ImageChops

            image = ImageChops.invert(image)
        return _turned(np.asarray(image.convert("RGB")), kind, header)


def samples(data: Buffer) -> Samples:
    """Return the samples (h, w) or (h, w, 3) of an image of more than 8 bits, without alpha, as they are stored.

    Raises OSError for corrupt data. Of a header that is `coarse` the lower 8 bits are made up.
    """
    kind = kind_of(memoryview(data))
    header = READERS[kind](memoryview(data))
    with _reading(kind):
        with _loaded(data, kind) as image:
            found: Samples = np.asarray(image).astype(np.uint16)
        if found.ndim == 2:
            return found
        high = low = found[..., :3]
        if not header.coarse:
            with _loaded(data, kind, other_byte=True) as image:
                low = np.asarray(image)[..., :3].astype(np.uint16)
        return (high << 8 | low).astype(np.uint16)


def scale(found: Samples, depth: int, value_range: ValueRange | None = None) -> Pixels:
    """Return samples as RGB pixels (h, w, 3) uint8."""
    black, white = value_range or (0, 2**depth - 1)
    levels = np.floor(255.0 * (np.arange(65536) - black) / (white - black) + 0.5)
    pixels: Pixels = np.clip(levels, 0, 255).astype(np.uint8)[found]
    return pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)


def gate(
    data: Buffer,
    *,
    max_bytes: int = MAX_BYTES,
    max_pixels: int = MAX_PIXELS,
    value_range: ValueRange | None = None,
) -> Buffer | BadImage:
    """Return what any decoder may be given for an image: itself, or a PPM of its pixels; or why it is refused."""
    header = examine(data, max_bytes=max_bytes, max_pixels=max_pixels)
    if isinstance(header, BadImage):
        return header
    deep = value_range is not None and header.depth > 8
    if not (header.detour or header.orientation.dispute or deep):
        return data
    if deep and header.coarse:
        kind = kind_of(memoryview(data))
        return BadImage(f"this kind of {kind} is not supported: a value range needs 16 bits, of which 8 are read")
    try:
        return portable(decode(data, value_range))
    except OSError as error:
        return BadImage(str(error))


def portable(pixels: Pixels) -> bytes:
    """Return pixels as a PPM, which every decoder reads alike."""
    height, width, _ = pixels.shape
    return b"P6 %d %d 255\n" % (width, height) + np.ascontiguousarray(pixels).tobytes()


def _turned(pixels: Pixels, kind: str, header: Header) -> Pixels:
    if kind in BY_PILLOW:
        return pixels
    transpose, *flips = TURNS[header.orientation.value]
    pixels = pixels.swapaxes(0, 1) if transpose else pixels
    return pixels[tuple(slice(None, None, -1 if flip else 1) for flip in flips)]


@contextmanager
def _reading(kind: str) -> Iterator[None]:
    """Let every error of a decoder, which raises nearly anything, be an OSError in words for the sender."""
    try:
        yield
    except Exception as error:
        reason = "its data is corrupt" if " at 0x" in str(error) else str(error)
        raise OSError(f"the {kind} image can't be decoded: {reason}") from None


@contextmanager
def _loaded(data: Buffer, kind: str, *, other_byte: bool = False, side: int = 0) -> Iterator[Any]:
    """Give an image that Pillow has read, upright where Pillow is asked to turn it."""
    from PIL import Image, ImageOps, TiffImagePlugin

    if kind == "HEIC":
        heif()
    with warnings.catch_warnings(), _LIBTIFF:
        warnings.simplefilter("ignore")  # of metadata, and Pillow's own limit of pixels
        # Pillow's own reader of plain TIFFs knows fewer kinds than its libtiff, which is asked for the others.
        TiffImagePlugin.READ_LIBTIFF, before = True, TiffImagePlugin.READ_LIBTIFF
        try:
            opened = Image.open(io.BytesIO(data), formats=("HEIF" if kind == "HEIC" else kind,))
        finally:
            TiffImagePlugin.READ_LIBTIFF = before
    with opened as image:
        for name in ("xmp", "XML:com.adobe.xmp"):  # it never decides (orientation.py)
            image.info.pop(name, None)
        if other_byte:
            image.tile = [_other(tile) for tile in image.tile]
        if side and kind == "JPEG":
            image.draft(None, (side, side))
        image.load()
        image.info.pop("transparency", None)  # Pillow warns of alpha that is dropped
        yield ImageOps.exif_transpose(image) if kind in BY_PILLOW else image


def _other(tile: Any) -> Any:
    raw, *more = tile.args if isinstance(tile.args, tuple) else (tile.args,)
    raw = raw[:-1] + OTHER_BYTE[raw[-1]]
    return tile._replace(args=(raw, *more) if more else raw)
