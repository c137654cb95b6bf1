"""The page's own server on a free port, in a thread, for tests over HTTP and in a browser."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from urllib.parse import urlsplit

import uvicorn

from eval.web.app import create_app
from eval.web.command import listen
from eval.web.gateway import Gateway
from eval.web.guard import UPLOAD


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
