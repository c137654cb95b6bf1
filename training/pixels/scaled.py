"""JPEGs decoded no finer than the network sees: libjpeg-turbo decodes eighths of a side, in the DCT domain.

    jpeg = Jpeg.read(data)                              # None: no JPEG, or one of inks; others decode it
    scaled = jpeg.decode(eighths(192 / 4032))           # pixels (504, 378, 3) uint8, upright
    scaled = Bmp.read(data).decode()                    # tiles and frames of videos, as they are

`eighths` is the rule for serving, offline inference, calibration and training. What it leaves out is what the
antialiased resize that follows would average away. At 8 eighths the pixels are those of DALI's decoder.
"""

import struct
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from .decode import ValueRange, gate
from .orientation import TURNS
from .verdict import MAX_BYTES, MAX_PIXELS, BadImage, Buffer, inspect

FULL = 8
SCALES = (1, 2, 4, FULL)  # those with vector code: 5, 6 and 7 eighths take longer than all, 3 longer than 4
# Decoded pixels a side for each of the resized image, at least: at 640 pixels are 0.41 levels from those of all
# pixels on average, with 2 it would be 0.26 (the lab's `decoding pixels`).
MARGIN = 1.5
SMALL = 64  # pixels of the longer side: nothing to save, and below 8 the sizes of two scales are the same
BMP = struct.Struct("<2s8xIIiiHHI20x")  # a file's header and the second, of 40 bytes, up to the compression
COLOURS = ("YCbCr", "RGB", "Gray")  # those of inks are converted by one decoder only, DALI's


@dataclass(frozen=True)
class Decoding:
    """Which encoded images are decoded, whether JPEGs are in full, and what samples of more than 8 bits mean."""

    max_bytes: int = MAX_BYTES
    max_pixels: int = MAX_PIXELS
    full: bool = False
    value_range: ValueRange | None = None  # of samples of more than 8 bits

    def scale(self, ratio: float) -> int:
        """Return the scale, in eighths, for what is resized to `ratio` of its sides."""
        return FULL if self.full else eighths(ratio)

    def gate(self, data: Buffer) -> Buffer | BadImage:
        """Return what any decoder may be given for an image, or why it is refused."""
        return gate(data, max_bytes=self.max_bytes, max_pixels=self.max_pixels, value_range=self.value_range)


def eighths(ratio: float, margin: float = MARGIN) -> int:
    """Return the scale, in eighths, to decode at what is resized to `ratio` of its sides, the larger of the two.

    Each decoded side has at least `margin` times the pixels it is resized to, or all it has.
    """
    fewest = FULL * margin * ratio - 1e-6  # float32's error is not a step
    return next((scale for scale in SCALES if scale >= fewest), FULL)


@dataclass(frozen=True, eq=False)
class Scaled:
    """Decoded pixels (h, w, 3) uint8 RGB, upright; `area` is where the image lies in them: y1, x1, y2, x2.

    Sides are rounded up, so the last row or column may reach behind the image by up to 7/8 of a pixel.
    """

    pixels: npt.NDArray[np.uint8]
    area: tuple[float, float, float, float]


@dataclass(frozen=True, eq=False)
class Jpeg:
    """A JPEG whose header was read: (h, w) as stored, and the EXIF orientation."""

    data: Buffer
    stored: tuple[int, int]
    orientation: int

    @classmethod
    def read(cls, data: Buffer) -> Self | None:
        """Read a header, or return None for what is not decoded here."""
        import simplejpeg

        if bytes(data[:3]) != b"\xff\xd8\xff":
            return None
        found = inspect(data)
        if isinstance(found, BadImage) or found.detour:  # of a lossless one simplejpeg's process dies
            return None
        try:
            height, width, colours, _ = simplejpeg.decode_jpeg_header(data, strict=False)
        except (ValueError, KeyError):  # KeyError of a sampling that it has no name for (1.9.0)
            return None
        return cls(data, (height, width), found.orientation.value) if colours in COLOURS else None

    @property
    def size(self) -> tuple[int, int]:
        """(h, w) upright."""
        height, width = self.stored
        return (width, height) if TURNS[self.orientation][0] else (height, width)

    def decode(self, scale: int = FULL) -> Scaled:
        """Decode at `scale` eighths. Raises ValueError for data that libjpeg-turbo gives up on."""
        import simplejpeg

        scale = FULL if max(self.stored) <= SMALL else scale
        height, width = (-(-side * scale // FULL) for side in self.stored)
        # Not strict: of a damaged middle libjpeg-turbo makes an image with a flaw.
        pixels = simplejpeg.decode_jpeg(self.data, "RGB", min_height=height, min_width=width, strict=False)
        transpose, *flips = TURNS[self.orientation]
        exact = [side * scale / FULL for side in self.stored]
        if transpose:
            pixels, exact = pixels.transpose(1, 0, 2), exact[::-1]
        if any(flips):
            pixels = pixels[tuple(slice(None, None, -1 if flip else 1) for flip in flips)]
        (rows, columns), (high, wide) = pixels.shape[:2], exact
        top, left = rows - high if flips[0] else 0.0, columns - wide if flips[1] else 0.0
        area = (top, left, top + high, left + wide)
        return Scaled(np.ascontiguousarray(pixels), area)


@dataclass(frozen=True, eq=False)
class Bmp:
    """A BMP of 24 bits without compression: its pixels (h, w, 3) RGB, where they lie in the file."""

    pixels: npt.NDArray[np.uint8]

    @classmethod
    def read(cls, data: Buffer) -> Self | None:
        """Read an admitted image, or return None for what is not decoded here."""
        if len(data) < BMP.size:
            return None
        kind, offset, length, width, height, _, bits, compression = BMP.unpack_from(data)
        if (kind, length, bits, compression) != (b"BM", 40, 24, 0):
            return None
        stride = -(-3 * width // 4) * 4
        rows = np.frombuffer(data, np.uint8, abs(height) * stride, offset).reshape(-1, stride)
        pixels = rows[:, : 3 * width].reshape(-1, width, 3)[..., ::-1]
        return cls(pixels if height < 0 else pixels[::-1])

    @property
    def size(self) -> tuple[int, int]:
        """(h, w)."""
        height, width, _ = self.pixels.shape
        return height, width

    def decode(self, scale: int = FULL) -> Scaled:
        """Return all pixels: there is nothing to save."""
        height, width = self.size
        return Scaled(self.pixels, (0.0, 0.0, float(height), float(width)))
