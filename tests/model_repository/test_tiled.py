"""`detector_tiled` on the real server: the boxes of a client that cuts the image itself."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from retinaserve.build_tools.engine.manifest import write_plan
from retinaserve.build_tools.repository.builder import build_repository
from retinaserve.build_tools.repository.configs import BuildOptions, read_config
from retinaserve.eval.client.client import Client
from retinaserve.scripts.server.triton import Server, TritonServer
from retinaserve.training.detections import ImageError
from retinaserve.training.spec import DETECTOR_TILED
from tests.images import checker, encode
from tests.toys import CLASSES, PLAN, toy_manifest

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def tiled(toy_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    folder = tmp_path_factory.mktemp("tiled") / "repository"
    build_repository(toy_onnx, folder)
    build_repository(toy_onnx, folder, options=BuildOptions(tile="auto", overlap=0.25))  # into one without it
    with Server(folder) as server:
        yield server


def test_it_answers_as_a_client_that_cuts(tiled: TritonServer) -> None:
    images = [
        encode(checker(500, 300), "PNG"),
        encode(checker(900, 260, seed=1), quality=90, orientation=6),
        encode(checker(150, 100, seed=2), "PNG"),  # one tile
        encode(Image.new("RGB", (400, 400))),  # nothing in it
    ]
    with Client(tiled.grpc_url) as client, Client(tiled.grpc_url, model=DETECTOR_TILED) as served:
        assert served.class_names == CLASSES and served.tile_size == client.tile_size == (128, 192)
        expected = client.predict(images, tile="auto", overlap=0.25)
        found = served.predict(images)
        many = list(served.predict_many(images[:1] * 6, concurrency=6))
        (plain,) = client.predict(images[2:3])
    for one, other in zip(found, expected, strict=True):
        assert one.size == other.size and one.classes.tolist() == other.classes.tolist()
        assert np.array_equal(one.boxes, other.boxes) and np.array_equal(one.scores, other.scores)
    assert len(found[0]) > 100 and found[1].size == (900, 260) and np.array_equal(found[2].boxes, plain.boxes)
    assert all(not isinstance(answer, ImageError) and len(answer) == len(found[0]) for answer in many)


def test_a_bad_image_fails_alone(tiled: TritonServer) -> None:
    good = encode(checker(500, 300), "PNG")
    with Client(tiled.grpc_url, model=DETECTOR_TILED) as served:
        answers = list(served.predict_many([b"%PDF-1.7", good, good[:-500], good]))
    assert [isinstance(answer, ImageError) for answer in answers] == [True, False, True, False]
    assert "the data is a PDF" in answers[0].message  # type: ignore[union-attr]


def test_the_gpu_profile_has_the_same_model(tiled: TritonServer, tmp_path: Path) -> None:
    write_plan(tmp_path / "toy.plan", PLAN, toy_manifest())
    built = build_repository(
        tmp_path / "toy.plan", tmp_path / "gpu", profile="gpu", options=BuildOptions(tile=(64, 96))
    )
    assert built.models[-1] == DETECTOR_TILED
    config = read_config(tmp_path / "gpu" / DETECTOR_TILED / "config.pbtxt")
    assert config.parameters["tile"].string_value == "[64, 96]" and config.backend == "python"
    here, there = (folder / DETECTOR_TILED for folder in (tiled.repository, tmp_path / "gpu"))
    files = sorted(path.relative_to(here / "2") for path in (here / "2").rglob("*.py"))
    assert files and all((here / "2" / file).read_bytes() == (there / "1" / file).read_bytes() for file in files)
