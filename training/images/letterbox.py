"""An image file on its way into the network: upright, scaled by the detector's rule, padded.

image = load_image(path)    # upright RGB, whatever the file was
pixels, sizes = letterbox(image, spec.size, spec.pad_value, spec.resizing)    # (H, W, 3), and what LETTERBOX holds
letterbox(Source.open(path), ...)    # the same, a JPEG decoded no finer than it is seen
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from PIL import Image

from retinaserve.training import pixels
from retinaserve.training.errors import UserError
from retinaserve.training.images.resize import RESIZES, Resize

Pixels = npt.NDArray[np.uint8]
Canvas = Pixels | npt.NDArray[np.float32]  # of a Resize's pixels

ORIENTATION = 0x0112  # of EXIF
SIDEWAYS = (5, 6, 7, 8)  # the orientations that exchange width and height
SUFFIXES = frozenset(  # of images in folders
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif", ".heic", ".heif"}
)
UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)  # what Pillow raises for bad files


def load_image(source: Path | bytes, value_range: tuple[int, int] | None = None) -> Image.Image:
    """Return an image file, or its content, as the network sees it: RGB, upright. Raises UserError.

    `value_range` is the spec's.
    """
    name = "" if isinstance(source, bytes) else f"{source}: "
    try:
        data = source if isinstance(source, bytes) else source.read_bytes()
        bad = pixels.inspect(data)
        if isinstance(bad, pixels.BadImage):
            raise UserError(f"{name}the image can't be read: {bad.message}")
        return Image.fromarray(np.ascontiguousarray(pixels.decode(data, value_range)))
    except OSError as error:
        raise UserError(f"{name}the image can't be read: {error.strerror or error}") from None


def read_header(path: Path) -> pixels.Header:
    """Return what the structure of an image file says of it. Raises UserError."""
    try:
        with (
            path.open("rb") as file,
            mmap(file.fileno(), 0, access=ACCESS_READ) as content,
            memoryview(content) as view,
        ):
            found = pixels.inspect(view)
    except (OSError, ValueError) as error:  # ValueError for a file of 0 bytes
        raise UserError(f"{path}: the image can't be read: {getattr(error, 'strerror', '') or error}") from None
    if isinstance(found, pixels.BadImage):
        raise UserError(f"{path}: the image can't be read: {found.message}")
    return found


@dataclass(frozen=True, eq=False)
class Part:
    """Decoded pixels of an upright (h, w), and where in them it lies: left, top, right, bottom."""

    image: Image.Image
    box: tuple[float, float, float, float]
    original: tuple[int, int]

    def crop(self, window: tuple[int, int, int, int] | None = None) -> "Part":
        """Return the least pixels that have all of a window (x1, y1, x2, y2) of the original in them."""
        box = self.box
        if window:
            across, down = (box[2] - box[0]) / self.original[1], (box[3] - box[1]) / self.original[0]
            x1, y1, x2, y2 = window
            box = (box[0] + x1 * across, box[1] + y1 * down, box[0] + x2 * across, box[1] + y2 * down)
        left, top, right, bottom = math.floor(box[0]), math.floor(box[1]), math.ceil(box[2]), math.ceil(box[3])
        whole = (left, top, right, bottom) == (0, 0, *self.image.size)
        image = self.image if whole else self.image.crop((left, top, right, bottom))
        return Part(image, (box[0] - left, box[1] - top, box[2] - left, box[3] - top), self.original)


@dataclass(frozen=True, eq=False)
class Source:
    """An image of an upright (h, w); a JPEG is decoded when it is known how closely it is looked at."""

    size: tuple[int, int]
    read: Callable[[float], Part]  # of the ratio that the image is resized to

    def part(self, size: tuple[int, int], rule: Resize, window: tuple[int, int, int, int] | None = None) -> Part:
        """Return what a rule resizes to (h, w): the image, or a window (x1, y1, x2, y2) of it, alone."""
        x1, y1, x2, y2 = window or (0, 0, *self.size[::-1])
        ratio = 1.0 if rule.whole else max(size[0] / (y2 - y1), size[1] / (x2 - x1))
        return self.read(ratio).crop(window)

    def resized(
        self,
        size: tuple[int, int],
        rule: Resize,
        window: tuple[int, int, int, int] | None = None,
        *,
        extent: tuple[float, float] | None = None,
    ) -> Canvas:
        """Return the image, or a window of it, at (h, w) as the rule has it: (h, w, 3), rounded or not.

        `extent` is the rule's, of a whole image, if the pixels are to go by it.
        """
        part = self.part(size, rule, window)
        if rule.rounds and rule.antialias:
            return np.asarray(scale_image(part.image, size, box=part.box), rule.pixels)
        if rule.fixed_point:
            return _interpolated_bytes(np.asarray(part.image), size).astype(rule.pixels, copy=False)
        if not rule.antialias:
            given = np.array(part.image, np.float32 if rule.blur else rule.pixels)
            found = _interpolated(_blurred(given, size) if rule.blur else given, size, extent)
            return found if rule.pixels == found.dtype else np.rint(found).astype(np.uint8)
        bands = (scale_image(band.convert("F"), size, box=part.box) for band in part.image.split())
        return np.dstack([np.asarray(band, np.float32) for band in bands])

    @classmethod
    def open(cls, path: Path, decoding: pixels.Decoding | None = None) -> Self:
        """Read a file: a JPEG's header, all of another. Raises UserError, as `read` does."""
        decoding = decoding or pixels.Decoding()
        try:
            data = path.read_bytes()
        except OSError as error:
            raise UserError(f"{path}: the image can't be read: {error.strerror or error}") from None
        jpeg = pixels.Jpeg.read(data)
        if jpeg is None:  # what is damaged or cut off too: `load_image` says what is wrong
            return cls.of(load_image(path, decoding.value_range))
        return cls(jpeg.size, lambda ratio: _decode(path, jpeg, decoding.scale(ratio)))

    @classmethod
    def of(cls, image: Image.Image, *, original: tuple[int, int] | None = None) -> Self:
        """Return the source of a decoded image, or of one that was made smaller than its `original` (h, w)."""
        size = original or (image.height, image.width)
        part = Part(image, (0.0, 0.0, image.width, image.height), size)
        return cls(size, lambda _: part)


def _decode(path: Path, jpeg: pixels.Jpeg, scale: int) -> Part:
    try:
        scaled = jpeg.decode(scale)
    except ValueError as error:
        raise UserError(f"{path}: the image can't be read: {error}") from None
    top, left, bottom, right = scaled.area
    return Part(Image.fromarray(scaled.pixels), (left, top, right, bottom), jpeg.size)


def upright_size(path: Path) -> tuple[int, int]:
    """Return (h, w) of the image in a file after its EXIF orientation, from its header. Raises UserError."""
    return read_header(path).upright


def letterbox(
    image: Image.Image | Source,
    size: tuple[int, int],
    pad_value: tuple[float, float, float],
    rule: Resize = RESIZES["letterbox"],
) -> tuple[Canvas, npt.NDArray[np.float32]]:
    """Scale an image by a rule, at the top left of a canvas of the padding's colour.

    Returns (H, W, 3) of the rule's type and [original h, original w, resized h, resized w], the latter its extent.
    """
    source = Source.of(image) if isinstance(image, Image.Image) else image
    resized, extent = rule.resized(source.size, size), rule.extent(source.size, size)
    height, width = rule.canvas(resized, size)
    canvas = np.full((height, width, 3), pad_value, rule.pixels)
    canvas[: resized[0], : resized[1]] = source.resized(resized, rule, extent=extent)
    return canvas, np.array((*source.size, *extent), np.float32)


def scale_image(
    image: Image.Image, size: tuple[int, int], *, box: tuple[float, float, float, float] | None = None
) -> Image.Image:
    """Return an RGB image, or a box of it, at another (h, w), by the antialiased bilinear filter as served.

    It is Pillow's, made to repeat the last pixel behind a border, as DALI's does.
    """
    height, width = size
    if (width, height) == image.size and box in (None, (0, 0, width, height)):
        return image
    left, top, right, bottom = box = box or (0.0, 0.0, float(image.width), float(image.height))
    shrunk = image.resize((width, height), Image.Resampling.BILINEAR, box=box)
    across, down = (right - left) / width, (bottom - top) / height
    if across > 1 or down > 1:  # the filter reaches behind the borders from the outermost pixels
        for y in (0, height - 1):
            row = (left, top + y * down, right, top + (y + 1) * down)
            shrunk.paste(_part(image, row, (width, 1)), (0, y))
        for x in (0, width - 1):
            column = (left + x * across, top, left + (x + 1) * across, bottom)
            shrunk.paste(_part(image, column, (1, height)), (x, 0))
    return shrunk


def _interpolated(
    image: npt.NDArray[Any], size: tuple[int, int], extent: tuple[float, float] | None = None
) -> npt.NDArray[Any]:
    import torch

    given = torch.from_numpy(image).permute(2, 0, 1)[None]  # (h, w, 3) -> (1, 3, h, w)
    factors: Sequence[float | None] = (None, None)
    if extent and extent != size and image.shape[:2] != size:  # which `interpolate` takes beside no size
        factors = [new / old for new, old in zip(extent, image.shape[:2], strict=True)]
    (scaled,) = torch.ops.aten.upsample_bilinear2d(given, size, False, *factors)
    found: npt.NDArray[Any] = scaled.permute(1, 2, 0).numpy()
    return found


def _interpolated_bytes(image: Pixels, size: tuple[int, int]) -> Pixels:
    """Return (h, w, 3) as OpenCV's INTER_LINEAR does: of a row 7 bits below a level are kept, of a product 2."""
    (top, bottom, down), (left, right, across) = map(_neighbours, image.shape[:2], size)
    across, down = across[:, None], down[:, None, None]
    given = image.astype(np.int32)
    rows = (given[:, left] * (2048 - across) + given[:, right] * across) >> 4
    quarters = (rows[top] * (2048 - down) >> 16) + (rows[bottom] * down >> 16)
    found: Pixels = (quarters + 2 >> 2).astype(np.uint8)
    return found


def _neighbours(old: int, new: int) -> tuple[npt.NDArray[np.int32], ...]:
    """Return each new pixel's two old ones along an axis, and what the second weighs, in 2048ths."""
    at = ((np.arange(new) + 0.5) * (old / new) - 0.5).astype(np.float32)
    first = np.floor(at)
    weight = np.rint(2048 * (at - first)).astype(np.int32)
    ends = (np.clip(each, 0, old - 1).astype(np.int32) for each in (first, first + 1))
    return (*ends, weight)


def _blurred(image: npt.NDArray[np.float32], size: tuple[int, int]) -> npt.NDArray[np.float32]:
    """Return (h, w, 3) after the Gaussian that skimage's resize to `size` begins with; borders are mirrored."""
    import torch

    for axis, side in enumerate(size):
        sigma = max(0.0, (image.shape[axis] / side - 1) / 2)
        reach = int(4 * sigma + 0.5)
        if reach:
            weights = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
            ends = [(reach, reach) if each == axis else (0, 0) for each in range(3)]
            given = torch.from_numpy(np.pad(image, ends, "reflect")).permute(2, 0, 1)[:, None]  # (3, 1, h, w)
            kernel = (weights / weights.sum()).view(1, 1, *((-1, 1), (1, -1))[axis])
            image = torch.nn.functional.conv2d(given, kernel)[:, 0].permute(1, 2, 0).numpy()
    return image


def _part(image: Image.Image, box: tuple[float, float, float, float], size: tuple[int, int]) -> Image.Image:
    """Return a box (x1, y1, x2, y2) of an image at (w, h), with the last pixels repeated behind the borders."""
    (x1, y1, x2, y2), (width, height) = box, size
    reach_x, reach_y = math.ceil((x2 - x1) / width) + 1, math.ceil((y2 - y1) / height) + 1
    left, top = math.floor(x1) - reach_x, math.floor(y1) - reach_y
    right, bottom = math.ceil(x2) + reach_x, math.ceil(y2) + reach_y
    inner = (max(0, left), max(0, top), min(image.width, right), min(image.height, bottom))
    behind = ((inner[1] - top, bottom - inner[3]), (inner[0] - left, right - inner[2]), (0, 0))
    cropped = np.asarray(image.crop(inner))  # (h, w, 3), or of floats one band
    grown = Image.fromarray(np.pad(cropped, behind[: cropped.ndim], "edge"))
    return grown.resize(size, Image.Resampling.BILINEAR, box=(x1 - left, y1 - top, x2 - left, y2 - top))
