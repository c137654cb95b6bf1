"""Windows of every kind of file, against the same pixels read at once."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from retinaserve.plugins.tiles import tile_windows
from retinaserve.training.errors import UserError
from retinaserve.training.images import raster as module
from retinaserve.training.images.letterbox import load_image
from retinaserve.training.images.raster import open_raster
from tests.images import checker

rasterio = pytest.importorskip("rasterio", reason="the extra [tiles] is not installed")
HEIGHT, WIDTH = 150, 230
PIXELS = np.asarray(checker(WIDTH, HEIGHT, cell=7))
KINDS = {
    "tiled": {"tiled": True, "blockxsize": 64, "blockysize": 64},
    "striped": {"blockysize": 5},
    "one strip": {"blockysize": HEIGHT},
    "deflate": {"tiled": True, "blockxsize": 64, "blockysize": 64, "compress": "deflate"},
    "BigTIFF": {"BIGTIFF": "YES"},
    "planes": {"interleave": "band"},
}


def write(path: Path, bands: np.ndarray, **options: object) -> Path:
    """Write bands (n, h, w) as a GeoTIFF."""
    profile = {"driver": "GTiff", "count": len(bands), "height": bands.shape[1], "width": bands.shape[2]}
    profile |= {"dtype": bands.dtype, "crs": "EPSG:32633", "transform": rasterio.Affine(0.5, 0, 4e5, 0, -0.5, 5e6)}
    with rasterio.open(path, "w", **profile | options) as file:
        file.write(bands)
    return path


def assembled(path: Path, tile: tuple[int, int] = (64, 64)) -> np.ndarray:
    """Return the image put together from its windows."""
    with open_raster(path) as raster:
        whole = np.zeros((*raster.size, 3), np.uint8)
        windows = tile_windows(raster.size, tile, 0.1)
        for (x1, y1, x2, y2), pixels in zip(windows, raster.windows(windows), strict=True):
            assert pixels is not None and pixels.dtype == np.uint8
            whole[y1:y2, x1:x2] = pixels
    return whole


@pytest.fixture(params=["at once", "one by one"])
def run_bytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "one by one":
        monkeypatch.setattr(module, "RUN_BYTES", 1)


@pytest.mark.usefixtures("run_bytes")
@pytest.mark.parametrize("kind", KINDS)
def test_tiff_windows_are_its_pixels(kind: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", np.moveaxis(PIXELS, -1, 0), **KINDS[kind])
    assert np.array_equal(assembled(path), PIXELS)
    with open_raster(path) as raster:
        assert raster.georeference is not None and raster.georeference.crs == "EPSG:32633"
        assert raster.georeference.transform == (0.5, 0, 4e5, 0, -0.5, 5e6)
        assert raster.reduced(46).size == (46, 30)


def test_bands_become_rgb(tmp_path: Path) -> None:
    bands = np.moveaxis(PIXELS, -1, 0)
    grey = np.repeat(PIXELS[..., :1], 3, axis=-1)
    opaque = np.full((1, HEIGHT, WIDTH), 255, np.uint8)
    cases = {
        "alpha.tif": (np.concatenate((bands, opaque)), {"photometric": "RGB"}, PIXELS),
        "infrared.tif": (np.concatenate((bands, opaque // 2)), {"photometric": "MINISBLACK"}, PIXELS),
        "grey.tif": (bands[:1], {}, grey),
        "two.tif": (bands[:2], {"photometric": "MINISBLACK"}, grey),
        "ink.tif": (np.concatenate((255 - bands, opaque - 255)), {"photometric": "CMYK"}, PIXELS),
        "deep.tif": (bands.astype(np.uint16) * 257, {}, PIXELS),
    }
    for name, (stored, options, expected) in cases.items():
        assert np.array_equal(assembled(write(tmp_path / name, stored, **options)), expected), name


def test_palette(tmp_path: Path) -> None:
    image = Image.fromarray(PIXELS).quantize(16)
    image.save(tmp_path / "a.tif")
    assert np.array_equal(assembled(tmp_path / "a.tif"), np.asarray(image.convert("RGB")))


@pytest.mark.usefixtures("run_bytes")
@pytest.mark.parametrize("name", ["a.jpg", "a.tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(name: str, orientation: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(PIXELS).save(tmp_path / name, exif=exif, quality=95, subsampling=0)
    upright = np.asarray(load_image(tmp_path / name)).astype(int)
    decoded = assembled(tmp_path / name)
    monkeypatch.setattr(module, "MOST_DECODED", 0)
    windowed = assembled(tmp_path / name)
    assert decoded.shape == windowed.shape == upright.shape
    assert np.abs(decoded - upright).max() == 0 and np.abs(windowed - upright).max() <= 3, "two JPEG decoders"


def test_windows_without_data_are_left_out(tmp_path: Path) -> None:
    bands = np.moveaxis(PIXELS, -1, 0).copy()
    bands[:, :, 100:] = 0
    bands[0, :, :100] |= 1
    windows = np.array([[0, 0, 50, 50], [80, 0, 130, 50], [100, 0, 150, 50], [150, 100, 230, 150]])
    alpha = np.where(bands[:1] > 0, 255, 0).astype(np.uint8)
    for path in (
        write(tmp_path / "nodata.tif", bands, nodata=0),
        write(tmp_path / "alpha.tif", np.concatenate((bands, alpha)), photometric="RGB", alpha="YES"),
    ):
        with open_raster(path) as raster:
            assert [pixels is None for pixels in raster.windows(windows)] == [False, False, True, True], path.name


BAD = {
    "no such file": ("none.tif", None, "No such file"),
    "text": ("a.tif", b"a text", "can't be read"),
    "cut": ("b.tif", b"II*\0", "can't be read"),
    "floats": ("c.tif", np.zeros((1, 9, 9), np.float32), "its pixels are float32"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_can_not_be_read(case: str, tmp_path: Path) -> None:
    name, content, words = BAD[case]
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    elif content is not None:
        write(tmp_path / name, content)
    with pytest.raises(UserError, match=words), open_raster(tmp_path / name) as raster:
        list(raster.windows(tile_windows(raster.size, (64, 64))))


def test_memory_does_not_grow_with_the_image(tmp_path: Path) -> None:
    """12,000 x 12,000 pixels are 432 MB; reading them by windows takes a fraction."""
    path = tmp_path / "large.tif"
    profile = {"driver": "GTiff", "count": 3, "height": 12_000, "width": 12_000}
    profile |= {"dtype": "uint8", "transform": rasterio.Affine(1, 0, 5, 0, -1, 5)}
    with rasterio.open(path, "w", **profile, compress="deflate", blockysize=16):
        pass  # sparse: nothing was written, everything reads as 0
    code = f"""if True:
        import resource
        from pathlib import Path
        from retinaserve.plugins.tiles import tile_windows
        from retinaserve.training.images.raster import open_raster
        peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
        with open_raster(Path({str(path)!r})) as raster:
            windows = tile_windows(raster.size, (640, 640))
            before = peak()
            assert sum(pixels.size for pixels in raster.windows(windows[: len(windows) // 3])) > 12_000**2
        print(peak() - before)
    """
    result = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) < 260, "MB: a run of windows three times over, and GDAL's cache"


def test_overviews_beside_the_image_are_not_its_pixels(tmp_path: Path) -> None:
    path = write(tmp_path / "photo.tif", np.full((3, 64, 64), 200, np.uint8))
    with rasterio.Env(TIFF_USE_OVR=True), rasterio.open(path, "r+") as image:
        image.build_overviews([2])
    assert (tmp_path / "photo.tif.ovr").is_file()
    Image.new("RGB", (64, 64), (10, 20, 30)).save(path)  # corrected in place; the overviews are the old one's
    with open_raster(path) as raster:
        assert np.unique(np.asarray(raster.reduced(32)).reshape(-1, 3), axis=0).tolist() == [[10, 20, 30]]
