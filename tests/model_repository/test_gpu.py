"""The GPU profile's admission and ensemble on the embedded server, in front of the CPU profile's other two models.

With Triton's dali backend at hand (docs/export.md) its `preprocess` runs too, on a CPU instance. The rest,
decoding on a GPU and the tensorrt backend, is in docs/not-run.md.
"""

import json
import os
import random
import shutil
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as grpc

from retinaserve.build_tools.engine.manifest import write_plan
from retinaserve.build_tools.preprocess import Prepared, Preprocessor
from retinaserve.build_tools.preprocess.pipeline import serialise
from retinaserve.build_tools.repository.builder import build_repository
from retinaserve.build_tools.repository.configs import DEFAULT_BATCH, BuildOptions, read_config, write_config
from retinaserve.eval.client.client import Client
from retinaserve.scripts.server.installation import Installation
from retinaserve.scripts.server.triton import Server, TritonServer
from retinaserve.training.detections import Detections, ImageError
from retinaserve.training.pixels import decode
from tests.counted import counted
from tests.damage import damaged, good_images
from tests.images import bad_images, checker, encode, good_formats
from tests.toys import PLAN, toy_manifest, toy_spec
from tests.training.pixels.matrix import cases

pytestmark = pytest.mark.server


DALI_BACKEND = os.environ.get("RETINASERVE_DALI_BACKEND", "")
KIND_CPU = 2


def gpu_repository(folder: Path, repository: Path, *replaced: str) -> Path:
    """Build the GPU profile and put models of the CPU profile's `repository` in the places of its own."""
    write_plan(folder / "toy.plan", PLAN, toy_manifest())
    options = BuildOptions(max_batch=DEFAULT_BATCH)  # that of the CPU models put into it
    built = build_repository(folder / "toy.plan", folder / "repository", profile="gpu", options=options).repository
    for name in replaced:
        shutil.rmtree(built / name)
        shutil.copytree(repository / name, built / name)
    return built


@pytest.fixture(scope="module")
def gated(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gpu_repository(tmp_path_factory.mktemp("gated"), repository, "preprocess", "retinanet")


@pytest.fixture(scope="module")
def server(gated: Path) -> Iterator[TritonServer]:
    with Server(gated) as running:
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


def test_what_the_decoder_may_not_see_goes_on_as_pixels(server: TritonServer) -> None:
    names = {"JPEG arithmetic", "GIF animated", "TIFF grey alpha 8<", "WEBP animated lossless", "HEIC exif 6"}
    with grpc.InferenceServerClient(server.grpc_url) as client:
        for case in (case for case in cases() if case.name in names):
            tensor = grpc.InferInput("image_bytes", [1, len(case.data)], "UINT8")
            tensor.set_data_from_numpy(np.frombuffer(case.data, np.uint8)[None])
            answer = client.infer("admission", [tensor]).as_numpy("image_bytes").tobytes()
            assert answer.startswith(b"P6 ") and answer.endswith(decode(case.data).tobytes()), case.name


def test_of_a_batch_only_the_bad_pictures_fail_each_by_name(client: Client, server: TritonServer) -> None:
    good = boards(12)
    expected = {image: client.predict([image])[0] for image in good}
    bad = list(bad_images().values())
    requests = [(good[n % len(good)], "") for n in range(60)] + bad
    random.Random(0).shuffle(requests)
    before = counted(client)
    answers = list(client.predict_many([image for image, _ in requests], concurrency=len(requests)))
    spent = {name: after - before[name] for name, after in counted(client).items()}
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


@pytest.fixture
def with_dali_backend(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TritonServer]:
    """The GPU profile's `preprocess` in the real dali backend, its decoder and its instance on the CPU."""
    gpu = gpu_repository(tmp_path, repository, "retinanet")
    config = read_config(gpu / "preprocess" / "config.pbtxt")
    config.instance_group[0].kind = KIND_CPU
    write_config(gpu / "preprocess" / "config.pbtxt", config)
    version = gpu / "preprocess" / "1"
    settings = json.loads((version / "pipeline.json").read_text()) | {"decoder": "cpu", "threads": 1}
    (version / "model.dali").write_bytes(serialise(**settings))
    python_backend = Installation.backends

    def backends(self: Installation, folder: Path) -> Path:
        (python_backend(self, folder) / "dali").symlink_to(Path(DALI_BACKEND).resolve())
        return folder

    monkeypatch.setattr(Installation, "backends", backends)
    with Server(gpu) as running:
        yield running


@pytest.mark.skipif(not DALI_BACKEND, reason="RETINASERVE_DALI_BACKEND names no folder with libtriton_dali.so")
def test_the_real_dali_backend_loses_no_batch_to_a_damaged_picture(with_dali_backend: TritonServer) -> None:
    spec, good = toy_spec(), list(good_images().values())
    with grpc.InferenceServerClient(with_dali_backend.grpc_url) as direct:
        for data, wanted in zip(good, Preprocessor(spec.size, spec.pad_value, threads=1).run(good), strict=True):
            tensor = grpc.InferInput("image_bytes", [1, len(data)], "UINT8")
            tensor.set_data_from_numpy(np.frombuffer(data, np.uint8)[None])
            answer = direct.infer("preprocess", [tensor])
            assert isinstance(wanted, Prepared)
            assert (answer.as_numpy("image")[0] == wanted.image).all()
            assert (answer.as_numpy("letterbox")[0] == wanted.letterbox).all()
        # Past admission, what the backend says of a picture that it can't decode holds no path of the server.
        corrupt = bad_images()["webp corrupt"][0]
        tensor = grpc.InferInput("image_bytes", [1, len(corrupt)], "UINT8")
        tensor.set_data_from_numpy(np.frombuffer(corrupt, np.uint8)[None])
        with pytest.raises(grpc.InferenceServerException, match="Failed to decode") as caught:
            direct.infer("preprocess", [tensor])
        assert ".py" not in str(caught.value)
    with Client(with_dali_backend.grpc_url) as client:
        requests = [(data, False) for _, data in damaged(per_kind=3)]
        requests += [(good[n % len(good)], True) for n in range(len(requests))]
        random.Random(0).shuffle(requests)
        before = counted(client)
        answers = list(client.predict_many([data for data, _ in requests], concurrency=32))
        spent = counted(client)["preprocess"] - before["preprocess"]
    failed = [answer.kind for answer in answers if isinstance(answer, ImageError)]
    assert set(failed) == {"bad_image"} and len(failed) > 400  # admission's, each alone
    assert all(
        isinstance(answer, Detections) for answer, (_, is_good) in zip(answers, requests, strict=True) if is_good
    )
    assert spent.inferences == len(requests) - len(failed) > spent.executions * 1.5  # in batches
