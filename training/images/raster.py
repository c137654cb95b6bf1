"""Windows of an image that may be larger than memory: read from disk in the order they are needed.

    with open_raster(Path("survey.tif")) as raster:
        for pixels in raster.windows(tile_windows(raster.size, (640, 640))):
            ...                                     # (h, w, 3) uint8 RGB, None where no pixel has data

Images of up to MOST_DECODED pixels are decoded whole by Pillow; TIFFs, and everything larger, are read a run of
windows at a time by rasterio (`pip install 'retinaserve[tiles]'`). Both apply an EXIF orientation. 16 bits are
scaled to 8; other depths are refused.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image, JpegImagePlugin, TiffImagePlugin

from retinaserve.training.errors import UserError
from retinaserve.training.images.letterbox import ORIENTATION, SIDEWAYS, UNREADABLE, Pixels, load_image

Windows = npt.NDArray[np.int64]
Size = tuple[int, int]

MOST_DECODED = 64_000_000  # pixels; the server's own limit
RUN_BYTES = 64 << 20  # of neighbouring windows that are read at once
CACHE_BYTES = 128 << 20  # GDAL's, for blocks that the next row of windows needs again
REDUCED = 2048  # px, the longer side of a large image that is shown or asked whole
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# Orientations that mirror the upright image's x and y, after SIDEWAYS have exchanged rows and columns.
MIRROR_X, MIRROR_Y = (2, 3, 6, 7), (3, 4, 7, 8)
RGB_BANDS = (3, 4, 5)  # of GDAL's GCI_: red, green, blue


@dataclass(frozen=True)
class Georeference:
    """Where a raster lies: GDAL's name of its coordinate system, and x = a*column + b*row + c, y = d.. e.. f."""

    crs: str
    transform: tuple[float, float, float, float, float, float]


class Raster(Protocol):
    """An image that is read by windows."""

    size: Size  # (h, w), upright
    georeference: Georeference | None

    def windows(self, windows: Windows) -> Iterator[Pixels | None]:
        """Yield the pixels of each window x1 y1 x2 y2 inside the image; None where none has data."""

    def reduced(self, longer: int = REDUCED) -> Image.Image:
        """Return the whole image, at most so large."""


@contextmanager
def open_raster(source: Path | bytes) -> Iterator[Raster]:
    """Open an image file, or its content. Raises UserError for what can't be read, or not by windows."""
    if isinstance(source, bytes) or (_fits(source) and not (_is_tiff(source) and find_spec("rasterio"))):
        yield _Decoded(load_image(source))
        return
    import rasterio

    try:
        with rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES >> 20, GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR"):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
                dataset = rasterio.open(source)
            with dataset:
                yield _Windowed(source, dataset)
    except rasterio.errors.RasterioError as error:
        raise UserError(f"{source}: the image can't be read: {error.__cause__ or error}") from None


def _is_tiff(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(4) in TIFF
    except OSError as error:
        raise UserError(f"{path}: the file can't be read: {error.strerror or error}") from None


def _fits(path: Path) -> bool:
    """Return whether Pillow may decode it whole. Raises UserError for what is no image."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                return image.width * image.height <= MOST_DECODED
    except Image.DecompressionBombError:
        return False
    except UNREADABLE as error:
        if _is_tiff(path):  # of a kind that Pillow does not know
            return False
        raise UserError(f"{path}: the image can't be read: {error}") from None


class _Decoded:
    """An image that is in memory."""

    def __init__(self, image: Image.Image) -> None:
        self.georeference: Georeference | None = None
        self._image = image
        self.size = (image.height, image.width)

    def windows(self, windows: Windows) -> Iterator[Pixels | None]:
        pixels = np.asarray(self._image)
        for x1, y1, x2, y2 in windows:
            yield pixels[y1:y2, x1:x2]

    def reduced(self, longer: int = REDUCED) -> Image.Image:
        size = _within(self.size, longer)
        return self._image.resize((size[1], size[0]), Image.Resampling.BILINEAR)


class _Windowed:
    """An image on disk, by rasterio."""

    def __init__(self, path: Path, dataset: Any) -> None:
        from rasterio.enums import ColorInterp, MaskFlags

        self._dataset = dataset
        kinds, kind = dataset.colorinterp, dataset.dtypes[0]
        if kind not in ("uint8", "uint16"):
            raise UserError(
                f"{path}: its pixels are {kind}; 8 or 16 bits without sign are expected",
                "gdal_translate -ot Byte -scale makes them so",
            )
        colours = [kinds.index(each) + 1 for each in RGB_BANDS if each in kinds]
        opaque = [number for number, each in enumerate(kinds, 1) if each != ColorInterp.alpha]
        self._palette = _palette(dataset) if ColorInterp.palette in kinds else None
        # RGB where the file says so, or GDAL makes it so (CMYK); otherwise the first three bands, or one as grey.
        self._bands = colours if len(colours) == 3 else opaque[: 3 if len(opaque) >= 3 else 1]
        self._deep = kind == "uint16"
        self._holes = any(MaskFlags.all_valid not in flags for flags in dataset.mask_flag_enums)
        self._orientation = _orientation(path)
        self._sideways = self._orientation in SIDEWAYS
        self.size: Size = dataset.shape[::-1] if self._sideways else dataset.shape
        self.georeference: Georeference | None = None
        if dataset.crs and self._orientation == 1:
            self.georeference = Georeference(dataset.crs.to_string(), tuple(dataset.transform)[:6])

    def windows(self, windows: Windows) -> Iterator[Pixels | None]:
        start = 0
        while start < len(windows):
            run = self._run(windows[start:])
            left, top = run[0, :2]
            pixels, valid = self._read(np.append(run[0, :2], run[-1, 2:]))
            for x1, y1, x2, y2 in run:
                place = slice(y1 - top, y2 - top), slice(x1 - left, x2 - left)
                yield pixels[place] if valid is None or valid[place].any() else None
            start += len(run)

    def reduced(self, longer: int = REDUCED) -> Image.Image:
        from rasterio.enums import Resampling

        height, width = _within(self._dataset.shape, longer)
        bands = self._dataset.read(
            self._bands,
            out_shape=(len(self._bands), height, width),
            resampling=Resampling.nearest if self._palette is not None else Resampling.average,
        )
        return Image.fromarray(self._upright(self._rgb(bands)))

    @staticmethod
    def _run(windows: Windows) -> Windows:
        """Return the first windows that lie in one row, as many as may be read at once."""
        first = windows[0]
        same = (windows[:, [1, 3]] == first[[1, 3]]).all(axis=1)
        fits = 3 * (windows[:, 2] - first[0]) * (first[3] - first[1]) <= RUN_BYTES
        wrong = np.flatnonzero(~(same & fits))
        return windows[: max(1, int(wrong[0])) if len(wrong) else len(windows)]

    def _read(self, window: Windows) -> tuple[Pixels, npt.NDArray[np.bool_] | None]:
        from rasterio.windows import Window

        x1, y1, x2, y2 = window
        height, width = self.size
        if self._orientation in MIRROR_X:
            x1, x2 = width - x2, width - x1
        if self._orientation in MIRROR_Y:
            y1, y2 = height - y2, height - y1
        if self._sideways:
            x1, y1, x2, y2 = y1, x1, y2, x2
        place = Window(int(x1), int(y1), int(x2 - x1), int(y2 - y1))
        pixels = self._upright(self._rgb(self._dataset.read(self._bands, window=place)))
        if not self._holes:
            return pixels, None
        return pixels, self._upright(self._dataset.dataset_mask(window=place) > 0)

    def _rgb(self, bands: npt.NDArray[Any]) -> Pixels:
        """Return bands (1 or 3, h, w) as RGB (h, w, 3)."""
        if self._deep:
            bands = ((bands.astype(np.uint32) + 128) // 257).astype(np.uint8)
        if self._palette is not None:
            colours: Pixels = self._palette[bands[0]]
            return colours
        return np.moveaxis(np.broadcast_to(bands, (3, *bands.shape[1:])), 0, -1)

    def _upright(self, stored: npt.NDArray[Any]) -> npt.NDArray[Any]:
        turned = stored.swapaxes(0, 1) if self._sideways else stored
        turned = turned[:, ::-1] if self._orientation in MIRROR_X else turned
        return turned[::-1] if self._orientation in MIRROR_Y else turned


def _palette(dataset: Any) -> Pixels:
    table = np.zeros((256, 3), np.uint8)
    for index, colour in dataset.colormap(1).items():
        table[index] = colour[:3]
    return table


def _orientation(path: Path) -> int:
    """Return the EXIF orientation of a TIFF or JPEG, which GDAL does not look at; 1 where there is none."""
    for kind in (TiffImagePlugin.TiffImageFile, JpegImagePlugin.JpegImageFile):
        with suppress(*UNREADABLE), kind(path) as image:  # not Image.open, which refuses what is large
            image.info.pop("xmp", None)  # it never decides (training/pixels/orientation.py)
            return int(image.getexif().get(ORIENTATION, 1))
    return 1


def _within(size: Size, longer: int) -> Size:
    scale = min(1.0, longer / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
