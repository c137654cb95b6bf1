"""A detector behind tiles: the same boxes wherever an object lies, and one bad image fails alone."""

import io
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from retinaserve.eval.client.client import Client
from retinaserve.eval.predictions import geojson
from retinaserve.eval.runtimes.detector import open_detector
from retinaserve.eval.tiled import TiledDetector, Tiling
from retinaserve.scripts.server.triton import TritonServer
from retinaserve.training.detections import Detections, ImageError, answered
from retinaserve.training.errors import UserError
from tests.images import checker, encode

GROUND, BAD = 200, 250


class Thresholding:
    """A detector of flat areas on a grey ground: one box a value, exact to the pixel."""

    class_names, category_ids, tile_size = ("odd", "even"), (1, 2), (64, 64)

    def __init__(self) -> None:
        self.sizes: list[tuple[int, int]] = []

    def predict(self, images: Iterable[bytes]) -> list[Detections]:
        return [answered(answer, number) for number, answer in enumerate(self.predict_many(images), 1)]

    def predict_many(self, images: Iterable[bytes | ImageError]) -> Iterator[Detections | ImageError]:
        for image in images:
            assert isinstance(image, bytes)
            pixels = np.asarray(Image.open(io.BytesIO(image)).convert("RGB"))[..., 0]
            self.sizes.append(pixels.shape)
            if (pixels == BAD).any():
                yield ImageError("the queue is full", "overloaded")
                continue
            values = [int(value) for value in np.unique(pixels) if value < GROUND]
            places = [np.nonzero(pixels == value) for value in values]
            boxes = [(x.min(), y.min(), x.max() + 1, y.max() + 1) for y, x in places]
            yield Detections(
                np.array(boxes, np.float32).reshape(-1, 4),
                np.full(len(values), 0.9, np.float32),
                np.array([1 - value % 2 for value in values], np.int32),
                pixels.shape,
            )


def scene(boxes: list[tuple[int, int, int, int]], size: tuple[int, int] = (200, 300)) -> Image.Image:
    """Return an image with the boxes in grey values of 1, 2, 3 ..."""
    pixels = np.full((*size, 3), GROUND, np.uint8)
    for value, (x1, y1, x2, y2) in enumerate(boxes, 1):
        pixels[y1:y2, x1:x2] = value
    return Image.fromarray(pixels)


def found(answer: Detections | ImageError) -> list[tuple[int, ...]]:
    assert isinstance(answer, Detections)
    return sorted((*map(int, box), int(index)) for box, index in zip(answer.boxes, answer.classes, strict=True))


# Windows of 64 with 12 shared begin at 0, 52, 104, 156, 208, 236. The boxes lie on a seam, on a corner, are wider
# than what is shared, larger than a tile, in the image's corner.
BOXES = [(48, 10, 60, 20), (100, 100, 110, 110), (30, 60, 80, 70), (120, 120, 290, 190), (0, 190, 9, 200)]


def test_boxes_are_whole_wherever_seams_lie(tmp_path: Path) -> None:
    Image.fromarray(np.full((10, 10, 3), GROUND, np.uint8)).save(tmp_path / "small.png")
    scene(BOXES).save(tmp_path / "scene.png")
    inner = Thresholding()
    detector = TiledDetector(inner, Tiling())
    files = [tmp_path / "scene.png", tmp_path / "small.png", tmp_path / "scene.png"]
    first, small, again = list(detector.predict_many(files))
    assert found(first) == found(again) == sorted((*box, number % 2) for number, box in enumerate(BOXES))
    assert found(small) == [] and isinstance(small, Detections) and small.size == (10, 10)
    assert isinstance(first, Detections) and first.size == (200, 300)
    assert inner.sizes.count((64, 64)) == 2 * 4 * 6 and inner.sizes.count((10, 10)) == 1


def test_the_whole_image_is_asked_once() -> None:
    inner = Thresholding()
    (answer,) = TiledDetector(inner, Tiling(whole=True)).predict([encode(scene(BOXES), "PNG")])
    assert inner.sizes[0] == (200, 300) and len(inner.sizes) == 1 + 4 * 6
    assert found(answer) == sorted((*box, number % 2) for number, box in enumerate(BOXES))


def test_a_bad_image_fails_alone(tmp_path: Path) -> None:
    full = scene(BOXES)
    full.putpixel((299, 199), (BAD, BAD, BAD))
    good = encode(scene(BOXES), "PNG")
    (tmp_path / "text.png").write_text("no image")
    many = [good, ImageError("gone"), tmp_path / "text.png", encode(full, "PNG"), tmp_path / "none.png", good]
    ticks: list[tuple[int, int]] = []
    detector = TiledDetector(Thresholding(), on_tile=lambda *tick: ticks.append(tick))
    answers = list(detector.predict_many(many))
    assert [isinstance(answer, Detections) for answer in answers] == [True, False, False, False, False, True]
    messages = [answer.message for answer in answers if isinstance(answer, ImageError)]
    assert messages[0] == "gone" and messages[1].startswith("the image can't be read")
    assert messages[2] == "the tile at x 236, y 136: the queue is full" and "No such file" in messages[3]
    assert answers[3].kind == "overloaded" and ticks[-1] == (72, 72)  # type: ignore[union-attr]
    with pytest.raises(UserError, match=r"image 2: the tile at x 236"):
        detector.predict([good, encode(full, "PNG")])


@pytest.mark.parametrize("wrong", [{"overlap": 1.0}, {"overlap": -0.1}, {"tile": (8, 64)}])
def test_impossible_tilings(wrong: dict[str, object]) -> None:
    with pytest.raises(UserError):
        Tiling(**wrong)  # type: ignore[arg-type]


@pytest.mark.server
def test_server_and_file_answer_alike(server: TritonServer, toy_onnx: Path) -> None:
    image = encode(checker(500, 300), "PNG")
    offline = TiledDetector(open_detector(toy_onnx, threads=1)).predict([image])[0]
    with Client(server.grpc_url) as client:
        assert client.tile_size == (128, 192)
        (served,) = client.predict([image], tile="auto")
        (single,) = client.predict([encode(checker(192, 128), "PNG")], tile=(128, 192))
        (plain,) = client.predict([encode(checker(192, 128), "PNG")])
    assert len(served) > 50 and served.size == (300, 500)
    assert np.array_equal(served.classes, offline.classes) and np.allclose(served.boxes, offline.boxes, atol=1e-2)
    assert np.array_equal(single.boxes, plain.boxes)


def test_geojson_is_in_the_coordinates_of_the_raster(tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio", reason="the extra [tiles] is not installed")
    box = Detections.from_slots(1, [[10, 20, 30, 60]], [0.5], [1])
    profile = {"driver": "GTiff", "count": 1, "height": 80, "width": 90, "dtype": "uint8"}
    profile["transform"] = rasterio.Affine(0.5, 0, 400_000, 0, -0.5, 5_000_000)
    for name, crs in (("a.tif", "EPSG:32633"), ("b.tif", "EPSG:32634")):
        with rasterio.open(tmp_path / name, "w", **profile, crs=crs):
            pass
    collection = geojson([(tmp_path / "a.tif", box)], ("odd", "even"))
    assert collection["crs"]["properties"]["name"] == "urn:ogc:def:crs:EPSG::32633"
    (feature,) = collection["features"]
    x1, y1, x2, y2 = 400_005, 4_999_990, 400_015, 4_999_970  # half a metre a pixel, northing falls with the row
    assert feature["geometry"]["coordinates"] == [[[x1, y1], [x1, y2], [x2, y2], [x2, y1], [x1, y1]]]
    assert feature["properties"] == {"file": str(tmp_path / "a.tif"), "class": "even", "score": 0.5}
    with pytest.raises(UserError, match="another coordinate system"):
        geojson([(tmp_path / "a.tif", box), (tmp_path / "b.tif", box)], ("odd", "even"))
    checker(20, 20).save(tmp_path / "c.png")
    plain = geojson([(tmp_path / "c.png", box)], ("odd", "even"))
    assert "crs" not in plain and plain["features"][0]["geometry"]["coordinates"][0][2] == [30, 60]
