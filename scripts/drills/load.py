"""Loads that a drill puts on a server, and what became of every request.

    requests = asyncio.run(closed_loop(endpoint, images, in_flight=32, seconds=5))
    requests = asyncio.run(open_loop(endpoint, images, rate=4 * rate_of(requests), seconds=10))
    milliseconds(request for request in requests if request.status == "ok")

An open loop sends by the clock, whatever the server does (Poisson arrivals), so it can overload one; a closed loop
can't. Requests go out once: nothing is retried here, because a drill wants to see the refusals.
"""

import asyncio
import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from retinaserve.eval.client.transport import Endpoint, ServerError, Transport
from retinaserve.training.spec import DETECTOR

CONNECTIONS = 512  # of HTTP: more than any queue holds, so that no request waits on our side


@dataclass(frozen=True)
class Request:
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


async def send(
    transport: Transport, image: bytes, *, model: str = DETECTOR, timeout: float = 60.0, keep: Keep | None = None
) -> Request:
    """Send one image once."""
    start = time.monotonic()
    try:
        result = await transport.infer(model, image, timeout=timeout)
    except ServerError as error:
        return Request(start, time.monotonic() - start, error.status, error.message)
    seconds = time.monotonic() - start
    return Request(start, seconds, "ok", "", version_of(result), keep(result) if keep else None)


def version_of(result: Any) -> str:
    """Return the version of the model that made an answer, over either protocol."""
    answer = result.get_response()
    return str(answer["model_version"] if isinstance(answer, dict) else answer.model_version)


async def closed_loop(
    target: Endpoint, images: Sequence[bytes], *, in_flight: int, seconds: float, keep: Keep | None = None
) -> list[Request]:
    """Keep `in_flight` requests under way for a time; return them all."""
    requests: list[Request] = []
    deadline = time.monotonic() + seconds

    async def worker(transport: Transport, turn: int) -> None:
        while time.monotonic() < deadline:
            requests.append(await send(transport, images[turn % len(images)], keep=keep))
            turn += in_flight

    async with Transport(target, concurrency=in_flight) as transport:
        await asyncio.gather(*(worker(transport, number) for number in range(in_flight)))
    return requests


async def open_loop(
    target: Endpoint,
    images: Sequence[bytes],
    *,
    rate: float,
    seconds: float,
    timeout: float = 60.0,
) -> list[Request]:
    """Send `rate` requests a second at Poisson times; return them all when the last is answered."""
    chance = random.Random(0)
    tasks: list[asyncio.Task[Request]] = []
    begin = due = time.monotonic()
    async with Transport(target, concurrency=CONNECTIONS) as transport:
        while due < begin + seconds:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            image = images[len(tasks) % len(images)]
            tasks.append(asyncio.create_task(send(transport, image, timeout=timeout)))
            due += chance.expovariate(rate)
        return list(await asyncio.gather(*tasks))


def good(requests: Iterable[Request]) -> list[Request]:
    """Return those that were answered with detections."""
    return [request for request in requests if request.status == "ok"]


def rate_of(requests: Sequence[Request], *, skip: float = 0.0) -> float:
    """Return the answers a second while requests were sent, without the first `skip` seconds.

    It is the slope of the line through the answers' count over time: batches answer in steps, and a plain count
    between two moments would depend on where they fall.
    """
    begin = min(request.start for request in requests) + skip
    last = max(request.start for request in requests)
    ends = np.sort([request.end for request in good(requests) if begin < request.end <= last])
    if len(ends) < 2 or ends[-1] <= ends[0]:
        return 0.0
    return float(np.polyfit(ends - ends[0], np.arange(len(ends)), 1)[0])


def percentile(values: Iterable[float], share: float) -> float:
    """Return the value that `share` of the values do not exceed (nearest rank); 0 without values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def milliseconds(requests: Iterable[Request]) -> dict[str, float]:
    """Return the percentiles of the time the requests took, in milliseconds."""
    spent = [1000 * request.seconds for request in requests]
    return {f"p{round(100 * share)}": round(percentile(spent, share), 1) for share in (0.5, 0.95, 0.99)}
