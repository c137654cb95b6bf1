"""The page's own server on a free port, in a thread, and requests to it, for tests over HTTP and in a browser."""

import http.client
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import uvicorn

from retinaserve.eval.web.app import create_app
from retinaserve.eval.web.gateway import Gateway
from retinaserve.eval.web.guard import UPLOAD
from retinaserve.scripts.cli.ask.web import listen

ROOT = Path(__file__).parents[3]


class Reply(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def ask(url: str, path: str, body: bytes | None = None, **headers: str) -> Reply:
    """Send one request; `headers` are written with underscores, and one of "" is left out."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=30)
    sent = {"content-type": UPLOAD} if body is not None else {}
    sent |= {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        connection.request("GET" if body is None else "POST", path, body, {k: v for k, v in sent.items() if v})
        answer = connection.getresponse()
        return Reply(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
    finally:
        connection.close()


def run_web(*arguments: str) -> "subprocess.Popen[str]":
    """Start the page as a user does."""
    command = [sys.executable, "-m", "retinaserve", "web", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)


@contextmanager
def page_of(gateway: Gateway, *, port: int = 0, hosts: frozenset[str] = frozenset()) -> Iterator[str]:
    """Serve the page; gives its address, http://127.0.0.1:PORT."""
    with listen("127.0.0.1", port) as listener:
        config = uvicorn.Config(create_app(gateway, hosts=hosts), log_level="warning", timeout_graceful_shutdown=1)
        running = uvicorn.Server(config)
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            while not running.started:
                assert thread.is_alive(), "the page did not start"
                time.sleep(0.02)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            running.should_exit = True
            thread.join()


@contextmanager
def stuck_uploads(url: str, count: int) -> Iterator[None]:
    """Hold `count` uploads open that never end, as slow or malicious senders do."""
    address = urlsplit(url)
    header = f"POST /api/detect HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Type: {UPLOAD}\r\n"
    with ExitStack() as stack:
        for _ in range(count):
            sender = stack.enter_context(socket.create_connection((str(address.hostname), address.port or 0)))
            sender.sendall(f"{header}Content-Length: 1000\r\n\r\nbegun".encode())
        time.sleep(0.5)
        yield
