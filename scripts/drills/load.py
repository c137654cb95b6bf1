"""Loads that a drill puts on a server, and what became of every request.

    shots = asyncio.run(closed_loop(endpoint, pictures, in_flight=32, seconds=5))
    shots = asyncio.run(open_loop(endpoint, pictures, rate=4 * rate_of(shots), seconds=10))
    latencies(shot for shot in shots if shot.status == "ok")

An open loop sends by the clock, whatever the server does (Poisson arrivals), so it can overload one; a closed loop
can't. Requests go out once: nothing is retried here, because a drill wants to see the refusals.
"""

import asyncio
import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from retinaserve.eval.client.transport import Endpoint, ServerError, Transport
from retinaserve.training.spec import DETECTOR

CONNECTIONS = 512  # of HTTP: more than any queue holds, so that no request waits on our side


@dataclass(frozen=True)
class Shot:
    """One request: when it went out (seconds of time.monotonic), how long it took, and how it ended."""

    start: float
    seconds: float
    status: str  # "ok", or the Status of retinaserve.eval.client.transport
    message: str = ""
    version: str = ""  # of the model that answered
    value: Any = None  # what `keep` made of the answer

    @property
    def end(self) -> float:
        """When the answer was there."""
        return self.start + self.seconds


Keep = Callable[[Any], Any]


class Asks(Protocol):
    """What a load needs of a transport."""

    async def infer(self, model: str, image: bytes, *, timeout: float) -> Any:
        """Send one encoded picture. Raises ServerError."""

    async def close(self) -> None:
        """Close every connection."""


# Where a load goes: a Triton, or whatever opens a transport with so many connections.
Goal = Endpoint | Callable[[int], Asks]


def _open(goal: Goal, connections: int) -> Asks:
    return Transport(goal, concurrency=connections) if isinstance(goal, Endpoint) else goal(connections)


async def shoot(
    transport: Asks, picture: bytes, *, model: str = DETECTOR, timeout: float = 60.0, keep: Keep | None = None
) -> Shot:
    """Send one picture once."""
    start = time.monotonic()
    try:
        result = await transport.infer(model, picture, timeout=timeout)
    except ServerError as error:
        return Shot(start, time.monotonic() - start, error.status, error.message)
    seconds = time.monotonic() - start
    return Shot(start, seconds, "ok", "", version_of(result), keep(result) if keep else None)


def version_of(result: Any) -> str:
    """Return the version of the model that made an answer, over either protocol; of no Triton, nothing."""
    if not hasattr(result, "get_response"):
        return ""
    answer = result.get_response()
    return str(answer["model_version"] if isinstance(answer, dict) else answer.model_version)


async def closed_loop(
    goal: Goal,
    pictures: Sequence[bytes],
    *,
    in_flight: int,
    seconds: float,
    keep: Keep | None = None,
) -> list[Shot]:
    """Keep `in_flight` requests under way for a time; return them all."""
    transport = _open(goal, in_flight)
    shots: list[Shot] = []
    deadline = time.monotonic() + seconds

    async def worker(number: int) -> None:
        turn = number
        while time.monotonic() < deadline:
            shots.append(await shoot(transport, pictures[turn % len(pictures)], keep=keep))
            turn += in_flight

    try:
        await asyncio.gather(*(worker(number) for number in range(in_flight)))
    finally:
        await transport.close()
    return shots


async def open_loop(
    goal: Goal,
    pictures: Sequence[bytes],
    *,
    rate: float,
    seconds: float,
    timeout: float = 60.0,
    seed: int = 0,
    keep: Keep | None = None,
) -> list[Shot]:
    """Send `rate` requests a second at Poisson times; return them all when the last is answered."""
    transport = _open(goal, CONNECTIONS)
    chance = random.Random(seed)
    tasks: list[asyncio.Task[Shot]] = []
    begin = due = time.monotonic()
    try:
        while due < begin + seconds:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            picture = pictures[len(tasks) % len(pictures)]
            tasks.append(asyncio.create_task(shoot(transport, picture, timeout=timeout, keep=keep)))
            due += chance.expovariate(rate)
        return list(await asyncio.gather(*tasks))
    finally:
        await transport.close()


def good(shots: Iterable[Shot]) -> list[Shot]:
    """Return those that were answered with detections."""
    return [shot for shot in shots if shot.status == "ok"]


def rate_of(shots: Sequence[Shot], *, skip: float = 0.0) -> float:
    """Return the answers a second while requests were sent, without the first `skip` seconds.

    It is the slope of the line through the answers' count over time: batches answer in steps, and a plain count
    between two moments would depend on where they fall.
    """
    begin = min(shot.start for shot in shots) + skip
    last = max(shot.start for shot in shots)
    ends = np.sort([shot.end for shot in good(shots) if begin < shot.end <= last])
    if len(ends) < 2 or ends[-1] <= ends[0]:
        return 0.0
    return float(np.polyfit(ends - ends[0], np.arange(len(ends)), 1)[0])


def percentile(values: Iterable[float], share: float) -> float:
    """Return the value that `share` of the values do not exceed (nearest rank); 0 without values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def milliseconds(shots: Iterable[Shot]) -> dict[str, float]:
    """Return the percentiles of the time the requests took, in milliseconds."""
    spent = [1000 * shot.seconds for shot in shots]
    return {f"p{round(100 * share)}": round(percentile(spent, share), 1) for share in (0.5, 0.95, 0.99)}
