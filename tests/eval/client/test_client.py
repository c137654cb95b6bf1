"""The client on the real server; tests/model_repository holds the answers themselves to other implementations."""

import asyncio
import os
import signal
import threading
from collections.abc import Iterator
from itertools import chain

import pytest

from retinaserve.eval.client.client import AsyncClient, Client
from retinaserve.scripts.server.triton import TritonServer
from retinaserve.training.detections import Detections, ImageError
from retinaserve.training.errors import UserError
from tests.images import checker, encode

pytestmark = pytest.mark.server
PROTOCOLS = ("grpc", "http")
IMAGE = encode(checker(300, 200))


def url(server: TritonServer, protocol: str) -> str:
    return server.grpc_url if protocol == "grpc" else f"http://{server.http_url}"


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_no_images_give_no_answers_and_a_bad_one_is_named(server: TritonServer, protocol: str) -> None:
    with Client(url(server, protocol)) as client:
        assert client.predict([]) == [] and list(client.predict_many([])) == []
        with pytest.raises(UserError, match=r"image 2: .*empty"):
            client.predict([IMAGE, b""])


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_nothing_is_sent_after_the_first_error(server: TritonServer, protocol: str) -> None:
    rest = iter([IMAGE] * 300)

    async def call() -> None:
        async with AsyncClient(url(server, protocol), concurrency=4) as client:
            await client.predict(chain([b""], rest))  # type: ignore[arg-type]

    with pytest.raises(UserError, match=r"image 1: .*empty"):
        asyncio.run(call())
    assert len(list(rest)) > 200


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_answers_come_in_order_with_errors_in_their_place(server: TritonServer, protocol: str) -> None:
    widths = [50 + 7 * n for n in range(40)]
    images: list[bytes | ImageError] = [encode(checker(width, 60)) for width in widths]
    images[3], images[17] = b"no image", ImageError("the file can't be read")
    with Client(url(server, protocol)) as client:
        answers = list(client.predict_many(images, concurrency=7))
    assert [isinstance(answer, ImageError) for answer in answers] == [n in (3, 17) for n in range(40)]
    assert answers[17] == images[17]
    bad = answers[3]
    assert isinstance(bad, ImageError) and bad.kind == "bad_image"
    assert bad.message.startswith("the data is text, not an image"), "without the ensemble's prefix"
    sizes = {n: answer.size for n, answer in enumerate(answers) if isinstance(answer, Detections)}
    assert sizes == {n: (60, width) for n, width in enumerate(widths) if n in sizes}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_asyncio_gives_what_blocking_gives(server: TritonServer, protocol: str) -> None:
    async def ask() -> tuple[list[Detections], list[Detections | ImageError]]:
        async with AsyncClient(url(server, protocol)) as client:
            many = [answer async for answer in client.predict_many([IMAGE, b"", IMAGE], concurrency=2)]
            return await client.predict([IMAGE]), many

    one, many = asyncio.run(ask())
    with Client(url(server, protocol)) as client:
        (expected,) = client.predict([IMAGE])
    for found in (one[0], many[0], many[2]):
        assert isinstance(found, Detections) and len(found) > 0
        assert found.boxes.tolist() == expected.boxes.tolist()
        assert found.scores.tolist() == expected.scores.tolist()
    assert isinstance(many[1], ImageError) and "empty" in many[1].message


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_cancelled_call_leaves_the_client_of_use(server: TritonServer, protocol: str) -> None:
    async def cancel() -> list[Detections]:
        async with AsyncClient(url(server, protocol), concurrency=4) as client:
            call = asyncio.create_task(client.predict([IMAGE] * 200))
            await asyncio.sleep(0.05)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            assert not [task for task in left if "answer" in repr(task.get_coro())], "its requests are gone too"
            return await client.predict([IMAGE])

    (found,) = asyncio.run(cancel())
    assert len(found) > 0


def test_images_are_read_only_as_far_as_needed(server: TritonServer) -> None:
    read = 0

    def source() -> Iterator[bytes]:
        nonlocal read
        for _ in range(1000):
            read += 1
            yield IMAGE

    with Client(server.grpc_url) as client:
        answers = client.predict_many(source(), concurrency=4)
        for _ in range(10):
            next(answers)
        assert read <= 10 + 2 * 4
        answers.close()  # type: ignore[attr-defined]
        assert isinstance(client.predict([IMAGE])[0], Detections), "the client is of use afterwards"


def test_a_closed_client_leaves_no_thread(server: TritonServer) -> None:
    before = threading.active_count()
    client = Client(server.grpc_url)
    assert threading.active_count() > before
    answers = client.predict_many([IMAGE] * 50, concurrency=8)
    next(answers)
    client.close()
    client.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "triton-client"]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("retinnet", r"has no model 'retinnet'.*unknown model"),
        ("preprocess", r"model 'preprocess' at .* does not say its class names"),
    ],
    ids=["unknown", "no detector"],
)
def test_a_wrong_model_is_named(server: TritonServer, protocol: str, model: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Client(url(server, protocol), model=model)


def test_the_other_protocols_port_is_explained(server: TritonServer) -> None:
    with pytest.raises(UserError, match="no Triton server answers at grpc://") as grpc:
        Client(server.http_url)
    with pytest.raises(UserError, match="no Triton server answers at http://") as http:
        Client(f"http://{server.grpc_url}")
    assert f"for HTTP write http://{server.http_url}" in grpc.value.hint and "port 8001" in grpc.value.hint
    assert "grpc://HOST:8001" in http.value.hint


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_image_that_takes_too_long_fails_alone(server: TritonServer, protocol: str) -> None:
    with Client(url(server, protocol), timeout=0.001) as client:
        (answer,) = client.predict_many([IMAGE])
    assert answer == ImageError("no answer in 0.001 s", "timeout")


def test_a_file_over_the_servers_limit_is_not_sent(server: TritonServer) -> None:
    with Client(server.grpc_url) as client:
        failed = client.statistics()["detector"].failed
        (answer,) = client.predict_many([bytes(client.served.max_image_bytes + 1)])
        assert client.statistics()["detector"].failed == failed
    assert isinstance(answer, ImageError) and "more than the server takes (33554432)" in answer.message


async def _ask(address: str) -> list[Detections]:
    async with AsyncClient(address, timeout=20, concurrency=10) as client:
        return await client.predict([IMAGE] * 20)


def test_an_overloaded_server_is_asked_again_and_a_dead_one_is_not(narrow: TritonServer) -> None:
    with Client(narrow.grpc_url, timeout=20) as client, Client(f"http://{narrow.http_url}", timeout=20) as other:
        answers = list(client.predict_many([IMAGE] * 20, concurrency=10))
        rejected = client.statistics()["detector"].failed
        assert rejected > 0, "the queues were never full, so nothing was tested"
        assert all(isinstance(answer, Detections) for answer in answers)
        answers = list(other.predict_many([IMAGE] * 20, concurrency=10))
        assert all(isinstance(answer, Detections) for answer in answers)
        assert client.statistics()["detector"].failed > rejected
        assert len(asyncio.run(_ask(narrow.grpc_url))) == 20
        answers = list(client.predict_many([IMAGE] * 60, concurrency=60))
        assert all(isinstance(answer, Detections) for answer in answers), "it sends fewer at a time by itself"

        os.killpg(narrow.process.pid, signal.SIGKILL)  # its python processes hold its sockets too
        narrow.process.wait()
        for each in (client, other):
            with pytest.raises(UserError, match="no Triton server answers"):
                list(each.predict_many([IMAGE] * 3))
