"""The page's own server on a free port, in a thread, for tests over HTTP and in a browser."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from eval.web.app import create_app
from eval.web.command import listen
from eval.web.gateway import Gateway


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
