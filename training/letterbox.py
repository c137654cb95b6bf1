"""An image file on its way into the network: upright, scaled with its aspect kept, padded.

image = load_image(path)                                    # upright RGB, whatever the file was
pixels, sizes = letterbox(image, spec.size, spec.pad_value)   # (H, W, 3) uint8, and what `LETTERBOX` holds
"""

import io
import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from retinaserve.training.errors import UserError

Pixels = npt.NDArray[np.uint8]

ORIENTATION = 0x0112  # of EXIF
SIDEWAYS = (5, 6, 7, 8)  # the orientations that exchange width and height
SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp", ".tif", ".tiff"})  # of images in folders
UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)  # what Pillow raises for bad files


def load_image(source: Path | bytes) -> Image.Image:
    """Return an image file, or its content, as RGB, its EXIF orientation applied, its alpha dropped.

    Raises UserError.
    """
    name = "" if isinstance(source, bytes) else f"{source}: "
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except UNREADABLE as error:
        raise UserError(f"{name}the image can't be read: {error}") from None


def upright_size(path: Path) -> tuple[int, int]:
    """Return (h, w) of the image in a file after its EXIF orientation, from its header. Raises UserError."""
    try:
        with Image.open(path) as image:
            width, height = image.size
            return (width, height) if is_sideways(image) else (height, width)
    except UNREADABLE as error:
        raise UserError(f"{path}: the image can't be read: {error}") from None


def is_sideways(image: Image.Image) -> bool:
    """Return whether the EXIF orientation of an image that was just opened exchanges width and height."""
    return image.getexif().get(ORIENTATION) in SIDEWAYS


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
