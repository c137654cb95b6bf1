"""The CPU profile on the real server: batches form, answers don't depend on them, bad pictures fail alone."""

import random
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from retinaserve.build_tools.preprocess import Prepared, Preprocessor
from retinaserve.eval.client.client import Client
from retinaserve.scripts.server.triton import TritonServer
from retinaserve.training.detections import Detections, ImageError
from tests.counted import counted
from tests.images import bad_images, checker, encode
from tests.toys import CATEGORY_IDS, CLASSES, toy_spec

pytestmark = pytest.mark.server


def pictures(count: int) -> list[bytes]:
    """Return different pictures: many detections, few, none, and more than there are slots."""
    flat = [encode(Image.new("RGB", (300, 200), colour)) for colour in ("white", (124, 116, 104))]
    boards = [encode(checker(200 + 37 * n, 150 + 11 * n, seed=n, cell=10 + 7 * (n % 9))) for n in range(count - 2)]
    return boards + flat


@pytest.fixture
def client(server: TritonServer, request: pytest.FixtureRequest) -> Iterator[Client]:
    protocol = getattr(request, "param", "grpc")
    url = server.grpc_url if protocol == "grpc" else f"http://{server.http_url}"
    with Client(url) as client:
        yield client


def assert_same(found: Detections, expected: Detections, *, pixels: float = 1e-2) -> None:
    assert found.classes.tolist() == expected.classes.tolist()
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)
    np.testing.assert_allclose(found.boxes, expected.boxes, atol=pixels)


def test_the_client_reads_names_and_limits_from_the_server(client: Client) -> None:
    assert client.class_names == CLASSES
    assert client.category_ids == CATEGORY_IDS
    assert client.served.max_image_pixels == 64_000_000


@pytest.mark.parametrize("client", ["grpc", "http"], indirect=True)
def test_answers_equal_the_graph_run_offline(client: Client, toy_onnx: Path) -> None:
    import onnxruntime

    images = pictures(8)
    session = onnxruntime.InferenceSession(toy_onnx)
    spec = toy_spec()
    prepared = [p for p in Preprocessor(spec.size, spec.pad_value).run(images) if isinstance(p, Prepared)]
    counts = set()
    for found, one in zip(client.predict(images), prepared, strict=True):
        number, boxes, scores, classes = session.run(
            None, {"image": one.image[None], "letterbox": one.letterbox[None]}
        )
        assert_same(found, Detections.from_slots(int(number[0, 0]), boxes[0], scores[0], classes[0]))
        counts.add(len(found))
        height, width = one.letterbox[:2]
        assert (found.boxes >= 0).all() and (found.boxes <= [width, height, width, height]).all()
    assert 0 in counts and 100 in counts  # none and more than fit, among others


def test_sixteen_pictures_at_once_share_executions_and_answer_as_alone(client: Client) -> None:
    images = pictures(16)
    alone = [client.predict([image])[0] for image in images]
    before = counted(client)
    together = list(client.predict_many(images, concurrency=16))
    after = counted(client)
    for model in ("preprocess", "retinanet"):
        spent = after[model] - before[model]
        assert spent.inferences == 16 and spent.executions < 16
    for found, expected in zip(together, alone, strict=True):
        assert isinstance(found, Detections)
        assert_same(found, expected)


def test_a_burst_that_nothing_follows_is_not_left_waiting(client: Client) -> None:
    images = pictures(24)

    def burst(times: int) -> float:
        start = time.monotonic()
        found = list(client.predict_many(images * times, concurrency=len(images)))
        assert len(found) == times * len(images)
        return time.monotonic() - start

    # Triton would look at the rest of the queue after half a second, see preprocess/config.pbtxt. A burst that is
    # twice as long waits once too: the difference is without what the pictures take on this machine.
    waits = [2 * burst(1) - burst(2) for _ in range(5)]
    assert statistics.median(waits) < 0.25, waits


@pytest.mark.parametrize("client", ["grpc", "http"], indirect=True)
def test_of_200_concurrent_pictures_only_the_40_bad_ones_fail(client: Client, server: TritonServer) -> None:
    good = pictures(16)
    bad = list(bad_images().values())
    requests = [(good[n % len(good)], "") for n in range(160)] + [bad[n % len(bad)] for n in range(40)]
    random.Random(0).shuffle(requests)
    expected = {image: client.predict([image])[0] for image in good}
    answers = list(client.predict_many([image for image, _ in requests], concurrency=200))
    for (image, words), answer in zip(requests, answers, strict=True):
        if words:
            assert isinstance(answer, ImageError) and answer.kind == "bad_image" and words in answer.message
            assert "/" not in answer.message, "no path of the server"
        else:
            assert isinstance(answer, Detections)
            assert_same(answer, expected[image])
    assert server.is_ready()
