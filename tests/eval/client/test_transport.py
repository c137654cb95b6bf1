import asyncio
import socket
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest

from retinaserve.eval.client.client import AsyncClient, Client
from retinaserve.eval.client.transport import Endpoint, Protocols, ServerError, Transport, image_error
from retinaserve.training.errors import UserError

ADDRESSES: dict[str, tuple[str, Protocols | None, str]] = {
    "host and port": ("localhost:8001", None, "grpc://localhost:8001"),
    "another port": ("10.0.0.1:9", None, "grpc://10.0.0.1:9"),
    "http by its scheme": ("http://gpu-1:8000", None, "http://gpu-1:8000"),
    "http by --protocol": ("gpu-1:8000", "http", "http://gpu-1:8000"),
    "both say the same": ("http://gpu-1:8000", "http", "http://gpu-1:8000"),
    "grpc by its scheme": ("grpc://gpu-1:7", None, "grpc://gpu-1:7"),
    "no port, gRPC": ("gpu-1", None, "grpc://gpu-1:8001"),
    "no port, HTTP": ("http://gpu-1/", None, "http://gpu-1:8000"),
    "encrypted gRPC": ("grpcs://gpu-1", None, "grpcs://gpu-1:8001"),
    "encrypted gRPC, both say it": ("grpcs://gpu-1:443", "grpc", "grpcs://gpu-1:443"),
    "HTTPS of a proxy": ("https://gpu-1", None, "https://gpu-1:443"),
    "IPv6": ("http://[::1]:8000", None, "http://[::1]:8000"),
}


@pytest.mark.parametrize("case", ADDRESSES)
def test_addresses_are_read(case: str) -> None:
    server, protocol, expected = ADDRESSES[case]
    assert str(Endpoint.parse(server, protocol)) == expected


WRONG_ADDRESSES: dict[str, tuple[str, Protocols | None]] = {
    "empty": ("", None),
    "only a port": (":8001", None),
    "a port of letters": ("localhost:abc", None),
    "a port too large": ("localhost:99999", None),
    "a path": ("http://localhost:8000/v2", None),
    "another scheme": ("ftp://localhost", None),
    "two protocols": ("http://localhost:8000", "grpc"),
    "two protocols, encrypted": ("https://localhost:8000", "grpc"),
}


@pytest.mark.parametrize("case", WRONG_ADDRESSES)
def test_a_wrong_address_is_a_usage_error(case: str) -> None:
    server, protocol = WRONG_ADDRESSES[case]
    with pytest.raises(UserError, match=f"server {server!r}") as caught:
        Endpoint.parse(server, protocol)
    assert caught.value.code == 2 and "HOST:PORT" in caught.value.hint


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that takes connections and says nothing."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


@pytest.fixture
def website_port() -> Iterator[int]:
    """A web server that is no Triton: it answers everything with a page."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>hello</html>")

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Page) as website:
        thread = Thread(target=website.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield website.server_port
        website.shutdown()
        thread.join()


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_a_server_that_is_down_or_no_triton_is_named(scheme: str, website_port: int) -> None:
    for port in (closed_port(), website_port):
        address = f"{scheme}://127.0.0.1:{port}"
        with pytest.raises(UserError, match=f"no Triton server answers at {address}") as caught:
            Client(address)
        assert "\n" not in caught.value.message
        assert port == website_port or "retinaserve serve" in caught.value.hint


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_a_silent_server_times_out(scheme: str, silent_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retinaserve.eval.client.client.CONTROL_TIMEOUT", 0.3)
    start = time.monotonic()
    with pytest.raises(UserError, match="did not answer in time"):
        Client(f"{scheme}://127.0.0.1:{silent_port}")
    assert time.monotonic() - start < 4.5  # 5 s without the patch


def test_waiting_for_a_server_ends() -> None:
    async def connect() -> None:
        async with AsyncClient(f"127.0.0.1:{closed_port()}", wait=0.5):
            raise AssertionError("there is no server")

    for ask in (lambda: Client(f"127.0.0.1:{closed_port()}", wait=0.5), lambda: asyncio.run(connect())):
        start = time.monotonic()
        with pytest.raises(UserError, match="no Triton server answers"):
            ask()
        assert 0.5 <= time.monotonic() - start < 10


@pytest.mark.parametrize("turns", range(4))
def test_a_cancellation_is_not_lost_to_an_answer_that_came_with_it(turns: int) -> None:
    async def cancel() -> None:
        answer = asyncio.get_running_loop().create_future()

        async def method() -> None:
            await answer

        transport = Transport(Endpoint.parse("http://localhost:1"), concurrency=1)
        call = asyncio.create_task(transport._wire.call(method, 5.0))
        for _ in range(4):
            await asyncio.sleep(0)
        answer.set_result(None)
        for _ in range(turns):
            await asyncio.sleep(0)
        if call.cancel():
            with pytest.raises(asyncio.CancelledError):
                await call
        await transport.close()

    asyncio.run(cancel())


def test_a_step_without_an_answer_is_not_the_images_fault() -> None:
    message = "in ensemble 'detector', [request id: 1] unexpected deadlock, at least one output is not set"
    assert image_error(ServerError("invalid", message), timeout=1).kind == "server"
    assert image_error(ServerError("invalid", "the data is a GIF"), timeout=1).kind == "bad_image"
