"""The GPU profile's admission and ensemble on the embedded server, in front of the CPU profile's other two models.

What is left of the profile, the dali and tensorrt backends, needs a GPU: docs/gpu.md lists it.
"""

import random
import shutil
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as grpc

from build_tools.config_schema import read_config, write_config
from build_tools.manifest import write_plan
from build_tools.repository import build_repository
from eval.client import Client
from eval.detections import Detections, ImageError
from scripts.triton import ServerOptions, TritonServer
from tests.pictures import bad_pictures, checker, encode, good_formats
from tests.toys import PLAN, toy_manifest

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def gated(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The GPU profile's repository with the CPU profile's `preprocess` and `retinanet` in it."""
    folder = tmp_path_factory.mktemp("gated")
    write_plan(folder / "toy.plan", PLAN, toy_manifest())
    gated = build_repository(folder / "toy.plan", folder / "repository", profile="gpu").repository
    for name in ("preprocess", "retinanet"):
        shutil.rmtree(gated / name)
        shutil.copytree(repository / name, gated / name)
    for name in ("admission", "detector"):  # the same largest batch as the others
        config = read_config(gated / name / "config.pbtxt")
        config.max_batch_size = 16
        write_config(gated / name / "config.pbtxt", config)
    return gated


@pytest.fixture(scope="module")
def server(gated: Path) -> Iterator[TritonServer]:
    with TritonServer(gated, ServerOptions(http_port=0, grpc_port=0, metrics_port=0)) as running:
        running.wait_until_ready(60)
        yield running


@pytest.fixture
def client(server: TritonServer) -> Iterator[Client]:
    with Client(server.grpc_url) as client:
        yield client


def boards(count: int) -> list[bytes]:
    return [encode(checker(200 + 37 * n, 150 + 11 * n, seed=n, cell=10 + 7 * (n % 9))) for n in range(count)]


def test_good_pictures_go_through_unchanged(server: TritonServer) -> None:
    with grpc.InferenceServerClient(server.grpc_url) as client:
        for data in good_formats().values():
            tensor = grpc.InferInput("image_bytes", [1, len(data)], "UINT8")
            tensor.set_data_from_numpy(np.frombuffer(data, np.uint8)[None])
            answer = client.infer("admission", [tensor]).as_numpy("image_bytes")
            assert answer.tobytes() == data


def test_of_a_batch_only_the_bad_pictures_fail_each_by_name(client: Client, server: TritonServer) -> None:
    good = boards(12)
    expected = {image: client.predict([image])[0] for image in good}
    bad = list(bad_pictures().values())
    requests = [(good[n % len(good)], "") for n in range(60)] + bad
    random.Random(0).shuffle(requests)
    before = client.statistics()
    answers = list(client.predict_many([image for image, _ in requests], concurrency=len(requests)))
    spent = {name: after - before[name] for name, after in client.statistics().items()}
    for (image, words), answer in zip(requests, answers, strict=True):
        if words:
            assert isinstance(answer, ImageError) and answer.kind == "bad_image" and words in answer.message
            assert "/" not in answer.message  # no path of the server
        else:
            assert isinstance(answer, Detections)
            assert answer.classes.tolist() == expected[image].classes.tolist()
            np.testing.assert_allclose(answer.boxes, expected[image].boxes, atol=1e-2)
    assert spent["admission"].executions < spent["admission"].inferences  # they did share batches
    assert spent["preprocess"].inferences == 60  # the next step never saw a bad one
    assert server.is_ready()


def test_bad_pictures_are_counted(client: Client, server: TritonServer) -> None:
    def count() -> float:
        lines = urllib.request.urlopen(server.metrics_url).read().decode().splitlines()
        wanted = [line for line in lines if line.startswith('retinaserve_bad_images{model="admission"')]
        return sum(float(line.split()[-1]) for line in wanted)

    before = count()
    list(client.predict_many([b"no picture"] * 3))
    assert count() == before + 3
