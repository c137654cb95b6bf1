"""How many requests are under way, and to which of two servers: one that is killed takes none with it."""

import asyncio
import os
import select
import signal
import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from retinaserve.eval.client.client import Client
from retinaserve.eval.client.servers import Replicas, Slots
from retinaserve.eval.client.transport import Endpoint
from retinaserve.scripts.server.triton import ServerOptions, TritonServer
from retinaserve.training.detections import Detections
from retinaserve.training.errors import UserError
from tests.images import checker, encode

FREE = ServerOptions.free_ports()
IMAGES = [encode(checker(40 + n, 30, cell=10)) for n in range(16)]


def test_servers_take_turns_without_those_set_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 100.0
    monkeypatch.setattr("retinaserve.eval.client.servers.time.monotonic", lambda: clock)
    replicas = Replicas([Endpoint("grpc", host, 1) for host in "abc"])
    a, b, c = replicas.all
    assert [replicas.next() for _ in range(4)] == [a, b, c, a]
    assert replicas.set_aside(b), "two are left"
    assert {replicas.next() for _ in range(6)} == {a, c}
    assert replicas.first() is a
    clock += 1
    assert replicas.set_aside(a) and not replicas.set_aside(c), "none is left"
    assert replicas.first() is a
    assert replicas.next() is b, "which has been out for longest"
    clock += 1
    assert {replicas.next() for _ in range(6)} == {b}, "it is asked again"
    assert replicas.first() is b
    clock += 1
    assert {replicas.next() for _ in range(6)} == {a, b, c}


def test_refusals_leave_as_many_slots_as_the_server_took() -> None:
    async def under_way(slots: Slots, *, refused: int = 0) -> int:
        """Ask 60 at once; return how many were sent together, of which some are refused."""
        sent, end = 0, asyncio.Event()

        async def one() -> None:
            nonlocal sent
            async with slots:
                sent += 1
                number = sent
                await end.wait()
                if number <= refused:
                    slots.refused()

        tasks = [asyncio.create_task(one()) for _ in range(60)]
        await asyncio.sleep(0.01)
        together = sent
        end.set()
        await asyncio.gather(*tasks)
        return together

    async def burst() -> list[int]:
        slots = Slots(40)
        return [await under_way(slots, refused=35), await under_way(slots)]

    assert asyncio.run(burst()) == [40, 5]


def test_one_slot_is_always_left_and_each_round_of_answers_opens_one() -> None:
    async def narrow() -> list[int]:
        slots = Slots(4)
        for _ in range(9):
            async with slots:
                slots.refused()
        widths = [slots.width]
        for _ in range(9):
            async with slots:
                slots.answered()
            widths.append(slots.width)
        return widths

    assert asyncio.run(narrow()) == [1, 2, 2, 3, 3, 3, 4, 4, 4, 4]


def url(server: TritonServer, protocol: str) -> str:
    return server.grpc_url if protocol == "grpc" else f"http://{server.http_url}"


def kill(server: TritonServer) -> None:
    """SIGKILL the server and its python processes, as the end of its container would."""
    os.killpg(server.process.pid, signal.SIGKILL)
    server.process.wait()


def ask_and_kill(dying: TritonServer, other: TritonServer, protocol: str, count: int) -> None:
    """Ask both `count` times, kill one halfway, and want every answer, each the right one, in order."""
    with Client(f"{url(dying, protocol)},{url(other, protocol)}", concurrency=16) as client:
        expected = [len(found) for found in client.predict(IMAGES)]

        def source() -> Iterator[bytes]:
            for number in range(count):
                if number == count // 2:
                    assert client.statistics()["detector"].requests > count // 8, "it did its share"
                    kill(dying)
                yield IMAGES[number % len(IMAGES)]

        answers = list(client.predict_many(source()))
    assert len(answers) == count
    assert [answer for answer in answers if not isinstance(answer, Detections)] == []
    found = [len(answer) for answer in answers if isinstance(answer, Detections)]
    assert found == [expected[number % len(IMAGES)] for number in range(count)]


@pytest.mark.server
def test_killing_one_of_two_fails_no_request(server: TritonServer, repository: Path) -> None:
    with TritonServer(repository, FREE) as first, TritonServer(repository, FREE) as second:
        for each in (first, second):
            each.wait_until_ready(60)
        ask_and_kill(first, second, "grpc", 2000)
        ask_and_kill(second, server, "http", 300)
        with pytest.raises(UserError, match="no Triton server answers"):
            Client(f"{first.grpc_url},{second.grpc_url}")


class Relay(socketserver.BaseRequestHandler):
    """A server's other address: passes bytes on."""

    def handle(self) -> None:
        host, port = self.server.target.split(":")  # type: ignore[attr-defined]
        with socket.create_connection((host, int(port))) as inner:
            ends = {self.request: inner, inner: self.request}
            while True:
                for ready in select.select(list(ends), [], [])[0]:
                    data = ready.recv(65536)
                    if not data:
                        return
                    self.server.passed += len(data)  # type: ignore[attr-defined]
                    ends[ready].sendall(data)


@pytest.mark.server
def test_a_server_that_comes_back_is_used_again(server: TritonServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retinaserve.eval.client.servers.DOWN_SECONDS", 0.1)
    socketserver.ThreadingTCPServer.allow_reuse_address = True
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Relay, bind_and_activate=False) as late:
        late.target, late.passed = server.grpc_url, 0  # type: ignore[attr-defined]
        late.server_bind()  # holds the port, and refuses connections as long as it does not listen
        port = late.server_address[1]
        # The first of the two is down from the beginning; the client opens all the same.
        with Client(f"127.0.0.1:{port},{server.grpc_url}") as client:
            assert client.servers == f"grpc://127.0.0.1:{port},grpc://{server.grpc_url}"
            assert len(client.predict(IMAGES)) == len(IMAGES)
            late.server_activate()
            thread = threading.Thread(target=late.serve_forever, kwargs={"poll_interval": 0.02})
            thread.start()
            deadline = time.monotonic() + 20
            while late.passed < len(IMAGES[0]):  # type: ignore[attr-defined]
                assert time.monotonic() < deadline, "the server that came back got no request"
                assert len(client.predict(IMAGES)) == len(IMAGES)
        late.shutdown()
        thread.join()
