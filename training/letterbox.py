"""An image file on its way into the network: upright, scaled by the detector's rule, padded.

image = load_image(path)    # upright RGB, whatever the file was
pixels, sizes = letterbox(image, spec.size, spec.pad_value, spec.resizing)    # (H, W, 3), and what LETTERBOX holds
"""

import math
from mmap import ACCESS_READ, mmap
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from retinaserve.training import pixels
from retinaserve.training.errors import UserError
from retinaserve.training.resize import RESIZES, Resize

Pixels = npt.NDArray[np.uint8]

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


def upright_size(path: Path) -> tuple[int, int]:
    """Return (h, w) of the image in a file after its EXIF orientation, from its header. Raises UserError."""
    return read_header(path).upright


def letterbox(
    image: Image.Image,
    size: tuple[int, int],
    pad_value: tuple[int, int, int],
    rule: Resize = RESIZES["letterbox"],
) -> tuple[Pixels, npt.NDArray[np.float32]]:
    """Scale an image by a rule, at the top left of a canvas of the padding's colour.

    Returns (H, W, 3) uint8 and [original h, original w, resized h, resized w].
    """
    resized = rule.resized((image.height, image.width), size)
    height, width = rule.canvas(resized, size)
    canvas = Image.new("RGB", (width, height), pad_value)
    canvas.paste(scale_image(image, resized, antialias=rule.antialias), (0, 0))
    return np.array(canvas), np.array((image.height, image.width, *resized), np.float32)


def scale_image(image: Image.Image, size: tuple[int, int], *, antialias: bool = True) -> Image.Image:
    """Return an RGB image at another (h, w), by the bilinear filter that the served preprocessing uses.

    Pillow's is its antialiased triangle, made to repeat the last pixel behind a border, as DALI's does; that of
    the four nearest pixels, which Pillow has not, is torch's.
    """
    height, width = size
    if (width, height) == image.size:
        return image
    if antialias:
        shrunk = image.resize((width, height), Image.Resampling.BILINEAR)
        across, down = image.width / width, image.height / height
        if across > 1 or down > 1:  # the filter reaches behind the borders from the outermost pixels
            for x, y in ((0, 0), (0, height - 1)):
                shrunk.paste(_part(image, (0, y * down, image.width, (y + 1) * down), (width, 1)), (x, y))
            for x, y in ((0, 0), (width - 1, 0)):
                shrunk.paste(_part(image, (x * across, 0, (x + 1) * across, image.height), (1, height)), (x, y))
        return shrunk
    import torch

    given = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]  # (h, w, 3) -> (1, 3, h, w)
    scaled = torch.nn.functional.interpolate(given, size, mode="bilinear")
    return Image.fromarray(scaled[0].permute(1, 2, 0).numpy())


def _part(image: Image.Image, box: tuple[float, float, float, float], size: tuple[int, int]) -> Image.Image:
    """Return a box (x1, y1, x2, y2) of an image at (w, h), with the last pixels repeated behind the borders."""
    (x1, y1, x2, y2), (width, height) = box, size
    reach_x, reach_y = math.ceil((x2 - x1) / width) + 1, math.ceil((y2 - y1) / height) + 1
    left, top = math.floor(x1) - reach_x, math.floor(y1) - reach_y
    right, bottom = math.ceil(x2) + reach_x, math.ceil(y2) + reach_y
    inner = (max(0, left), max(0, top), min(image.width, right), min(image.height, bottom))
    behind = ((inner[1] - top, bottom - inner[3]), (inner[0] - left, right - inner[2]), (0, 0))
    grown = Image.fromarray(np.pad(np.asarray(image.crop(inner)), behind, "edge"))
    return grown.resize(size, Image.Resampling.BILINEAR, box=(x1 - left, y1 - top, x2 - left, y2 - top))
