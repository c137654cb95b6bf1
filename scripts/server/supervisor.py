"""Keeps a server up: starts it again when it dies, or lives and answers no image any more.

    supervisor = Supervisor(lambda: TritonServer(repository, options), image, log=print)
    supervisor.run(stop)                        # until `stop` is set; raises UserError when it gives up

Triton 2.51 never restarts a python-backend process that died, and goes on saying that it is ready while every
request fails. So health is that none of its processes is dead and that images are answered: the server counts
them under load, otherwise it is sent one. A server that refuses because its queue is full is busy, not ill, unless
nothing at all comes out of it for long.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import psutil

from retinaserve.eval.client.client import Client
from retinaserve.scripts.server.triton import TritonServer
from retinaserve.training.detections import Detections
from retinaserve.training.errors import Exit, UserError
from retinaserve.training.spec import DETECTOR

Health = Literal["well", "busy", "ill"]


@dataclass(frozen=True)
class RestartPolicy:
    """When a server is looked at, restarted and given up; times in seconds."""

    interval: float = 2.0  # between looks
    patience: float = 10.0  # for the answer to one image; a loaded server takes seconds
    busy: float = 60.0  # without any answer, however busy
    first_pause: float = 0.5  # before a restart; doubles with each failure in the window
    longest_pause: float = 30.0
    failures: int = 5  # in the window, and no more restarts
    window: float = 300.0
    ready: float = 120.0  # for the models to load
    start_once: bool = False  # a first server that does not become ready is a failure that is raised at once


class Supervisor:
    """One server at a time, and the failures of the last minutes."""

    def __init__(
        self,
        start: Callable[[], TritonServer],
        image: bytes,
        *,
        policy: RestartPolicy | None = None,
        log: Callable[[str], None] = lambda _: None,
        started: Callable[[TritonServer], None] = lambda _: None,
    ) -> None:
        """`started` is called with every server that has become ready, `log` with what happens."""
        self._start = start
        self._image = image
        self._policy = policy or RestartPolicy()
        self._log = log
        self._started = started
        self._failures: deque[float] = deque()
        self._was_ready = False

    def run(self, stop: threading.Event) -> None:
        """Serve until `stop` is set.

        Raises UserError with the last cause after too many failures.
        """
        while not stop.is_set():
            try:
                cause = self._serve_once(stop)
            except UserError as error:
                if self._policy.start_once and not self._was_ready:
                    raise
                cause = error.message
            if stop.is_set():
                return
            self._wait_or_give_up(cause, stop)

    def _serve_once(self, stop: threading.Event) -> str:
        """Return why the server is of no use any more; what is left of it is stopped."""
        with self._start() as server:
            server.wait_until_ready(self._policy.ready, cancelled=stop.is_set)
            if stop.is_set():
                return "stopped"
            self._was_ready = True
            self._started(server)
            return self._watch(server, stop)

    def _watch(self, server: TritonServer, stop: threading.Event) -> str:
        answered, last, dead = 0, time.monotonic(), set[int]()
        while not stop.wait(self._policy.interval):
            if server.process.poll() is not None:
                return server.explain()[0]
            # One of two instances may be dead while the other answers. What a model that is unloaded leaves for a
            # moment is gone at the next look.
            before, dead = dead, _dead_children(server.process.pid)
            if before & dead:
                return "a python-backend process died"
            health, count, why = self._look(server, answered)
            now = time.monotonic()
            if health == "well":
                answered, last = count, now
            elif health == "ill" and server.process.poll() is None:
                return why
            elif now - last > self._policy.busy:
                return f"no image was answered for {now - last:.0f} s"
        return "stopped"

    def _look(self, server: TritonServer, answered: int) -> tuple[Health, int, str]:
        """Say how the server is, how many it has answered, and why it is ill."""
        try:
            # HTTP, because it is never encrypted: it listens on loopback where gRPC asks for certificates.
            url = f"http://{server.http_url}"
            with Client(url, timeout=self._policy.patience, concurrency=1) as client:
                count = client.statistics()[DETECTOR].requests
                if count > answered:
                    return "well", count, ""
                (answer,) = client.predict_many([self._image])
        except UserError as error:
            return "ill", answered, error.message
        if isinstance(answer, Detections):
            return "well", answered, ""
        # It waits for its turn, or for a place to wait: images before it may be large, and are many.
        return ("busy" if answer.kind in ("timeout", "overloaded") else "ill"), answered, answer.message

    def _wait_or_give_up(self, cause: str, stop: threading.Event) -> None:
        policy, now = self._policy, time.monotonic()
        self._failures.append(now)
        while self._failures[0] < now - policy.window:
            self._failures.popleft()
        count = len(self._failures)
        if count >= policy.failures:
            raise UserError(
                f"the server failed {count} times in {policy.window:.0f} s, the last time: {cause}",
                "remove the cause and start it again",
                code=Exit.CHECK_FAILED,
            )
        pause = min(policy.longest_pause, policy.first_pause * 2 ** (count - 1))
        self._log(f"{cause}; starting it again in {pause:g} s ({count} of {policy.failures} failures)")
        stop.wait(pause)


def _dead_children(server: int) -> set[int]:
    """Return the server's zombies: it doesn't collect a python-backend process that was killed."""
    try:
        children = psutil.Process(server).children()
        return {child.pid for child in children if child.status() == psutil.STATUS_ZOMBIE}
    except psutil.NoSuchProcess:  # the server, or a child just collected: the next look shows it
        return set()
