"""An image file on its way into the network: upright, scaled with its aspect kept, padded.

image = load_image(path)                                    # upright RGB, whatever the file was
pixels, sizes = letterbox(image, spec.size, spec.pad_value)   # (H, W, 3) uint8, and what `LETTERBOX` holds
"""

import math
from mmap import ACCESS_READ, mmap
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from retinaserve.training import pixels
from retinaserve.training.errors import UserError

Pixels = npt.NDArray[np.uint8]

ORIENTATION = 0x0112  # of EXIF
SIDEWAYS = (5, 6, 7, 8)  # the orientations that exchange width and height
SUFFIXES = frozenset(  # of images in folders
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif", ".heic", ".heif"}
)
UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)  # what Pillow raises for bad files


def load_image(source: Path | bytes) -> Image.Image:
    """Return an image file, or its content, as the network sees it: RGB, upright. Raises UserError."""
    name = "" if isinstance(source, bytes) else f"{source}: "
    try:
        data = source if isinstance(source, bytes) else source.read_bytes()
        bad = pixels.inspect(data)
        if isinstance(bad, pixels.BadImage):
            raise UserError(f"{name}the image can't be read: {bad.message}")
        return Image.fromarray(np.ascontiguousarray(pixels.decode(data)))
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


def upright_size(path: Path) -> tuple[int, int]:
    """Return (h, w) of the image in a file after its EXIF orientation, from its header. Raises UserError."""
    return read_header(path).upright


def scaled_size(original: tuple[int, int], scale: float | np.float32) -> tuple[int, int]:
    """Return (h, w) of a scaled image, rounded half up per axis, at least 1.

    In float32, as the served preprocessing computes it.
    """
    factor, half = np.float32(scale), np.float32(0.5)
    height, width = (max(1, math.floor(np.float32(side) * factor + half)) for side in original)
    return height, width


def letterbox_size(original: tuple[int, int], size: tuple[int, int], *, zoom: float = 1.0) -> tuple[int, int]:
    """Return (h, w) of an image scaled into `size`; `zoom` is a further factor, for augmentation."""
    scale = min(np.float32(size[0]) / np.float32(original[0]), np.float32(size[1]) / np.float32(original[1]))
    return scaled_size(original, scale * np.float32(zoom))


def letterbox(
    image: Image.Image, size: tuple[int, int], pad_value: tuple[int, int, int]
) -> tuple[Pixels, npt.NDArray[np.float32]]:
    """Scale an image into `size` at the top left and pad it.

    Returns (H, W, 3) uint8 and [original h, original w, resized h, resized w]. Pillow's bilinear filter is the
    antialiased triangle that the served preprocessing uses.
    """
    height, width = letterbox_size((image.height, image.width), size)
    canvas = Image.new("RGB", (size[1], size[0]), pad_value)
    canvas.paste(image.resize((width, height), Image.Resampling.BILINEAR), (0, 0))
    return np.array(canvas), np.array((image.height, image.width, height, width), np.float32)
