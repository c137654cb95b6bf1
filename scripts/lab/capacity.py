"""The highest rate of Poisson arrivals at which p99 stays under a bound, found by search.

    python -m retinaserve.scripts.lab.capacity model.onnx --max-p99 500 --json capacity.json

Three services of one graph, threads and images, in one run: this project's Triton over gRPC and over HTTP, and the
web service one would write by hand (baseline.py). They stand side by side and take turns, load by load, because
machines drift. Arrivals wait for no answer, latencies count from when a request went out, and nothing is retried.
"""

import argparse
import asyncio
import hashlib
import http.client
import io
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from retinaserve.build_tools.repository.builder import build_repository
from retinaserve.build_tools.repository.configs import BuildOptions
from retinaserve.eval.client.transport import Endpoint, ServerError
from retinaserve.scripts.drills.fixture import Log, drawn, usage
from retinaserve.scripts.drills.load import Request, Target, closed_loop, good, milliseconds, open_loop, rate_of
from retinaserve.scripts.lab import run
from retinaserve.scripts.server.installation import usable_cores
from retinaserve.scripts.server.triton import Server, ServerOptions, free_ports
from retinaserve.training.errors import UserError
from retinaserve.training.files import write_json
from retinaserve.training.images import find_images
from retinaserve.training.machine import machine

SERVICES = ("triton-grpc", "triton-http", "web")
FIRST_STEP = 1.25  # what a rate is multiplied or divided by until the bound lies between two


@dataclass(frozen=True)
class CapacityOptions:
    """What is measured and for how long."""

    bound_ms: float = 500.0  # of p99
    seconds: float = 20.0  # of each load
    repeats: int = 1  # loads of a trial, whose medians count: one moment of a busy machine decides nothing
    in_flight: int = 4  # of the closed loop that finds the peak
    resolution: float = 0.05  # the search ends when the rates that hold and fail are this near
    warm_up: float = 2.0  # seconds of the closed loop, which count for nothing
    pause: float = 1.0  # between trials: what is left in queues is not the next one's
    seed: int = 0


@dataclass(frozen=True)
class Trial:
    """One rate and what came of it; latencies are milliseconds, medians over the loads."""

    rate: float
    answered: int
    failed: int
    p50: float
    p99: float

    def holds(self, bound_ms: float) -> bool:
        """Whether everything was answered, and 99 of 100 in time."""
        return self.answered > 0 and self.failed == 0 and self.p99 <= bound_ms


@dataclass(frozen=True)
class Measured:
    """What one service bears."""

    service: str
    peak: float  # images/s of the closed loop
    p50_alone: float  # ms, one request at a time
    capacity: float  # the highest rate that held; 0 where none did
    trials: tuple[Trial, ...]
    cpu_seconds: dict[str, float]  # of each process, in all of it
    memory_mb: dict[str, float]  # of each process, at its end


@dataclass(frozen=True)
class Service:
    """A service that runs."""

    name: str
    target: Target
    pid: int
    shared_memory: str


def measure(
    graph: Path,
    repository: Path,
    images: Sequence[bytes],
    options: CapacityOptions,
    *,
    precision: str = "fp32",
    services: Sequence[str] = SERVICES,
    log: Log = lambda _: None,
) -> list[Measured]:
    """Measure the services side by side."""

    async def together(running: Sequence[Service]) -> list[Measured]:
        # One load at a time. asyncio's lock is fair: all services that wait get it before one gets it again.
        turn = asyncio.Lock()
        return await asyncio.gather(*(_measure(each, list(images), options, log, turn) for each in running))

    with ExitStack() as stack:
        return asyncio.run(
            together([stack.enter_context(_running(name, graph, repository, precision)) for name in services])
        )


async def _measure(
    service: Service, images: list[bytes], options: CapacityOptions, log: Log, turn: asyncio.Lock
) -> Measured:
    async def closed(in_flight: int, seconds: float) -> list[Request]:
        async with turn:
            return await closed_loop(service.target, images, in_flight=in_flight, seconds=seconds)

    await closed(options.in_flight, options.warm_up)
    before = usage(service.pid, service.shared_memory).processes
    alone = await closed(1, options.seconds / 2)
    full = await closed(options.in_flight, options.seconds)
    peak = rate_of(full, skip=0.1 * options.seconds)
    if not peak:
        raise UserError(f"{service.name} answered nothing", full[0].message if full else "it took no request")
    log(f"{service.name}: {peak:.1f} images/s with {options.in_flight} in flight")
    trials: list[Trial] = []

    async def attempt(rate: float) -> bool:
        loads = []
        for repeat in range(options.repeats):
            # The same seeds for all rates scale the same arrivals; others would let luck decide.
            poisson = partial(open_loop, rate=rate, seconds=options.seconds, seed=options.seed + repeat)
            async with turn:
                loads.append(await poisson(service.target, images))
                await asyncio.sleep(options.pause)
        trial = trial_of(rate, loads)
        trials.append(trial)
        held = trial.holds(options.bound_ms)
        times = f"p50 {trial.p50:7.1f}  p99 {trial.p99:7.1f} ms"
        log(f"  {service.name:<12}{rate:7.1f}/s  {times}  {'holds' if held else 'fails'}")
        return held

    capacity = await highest(attempt, start=0.8 * peak, resolution=options.resolution)
    after = usage(service.pid, service.shared_memory).processes
    return Measured(
        service=service.name,
        peak=round(peak, 2),
        p50_alone=milliseconds(good(alone))["p50"],
        capacity=round(capacity, 2),
        trials=tuple(trials),
        cpu_seconds={
            name: round(after[name].cpu_seconds - before[name].cpu_seconds, 2) for name in after if name in before
        },
        memory_mb={name: round(process.memory_bytes / 1e6, 1) for name, process in after.items()},
    )


def trial_of(rate: float, loads: Sequence[Sequence[Request]]) -> Trial:
    """Return what came of a rate's loads: counts of all, and the medians of their latencies."""
    spent = [milliseconds(good(requests)) for requests in loads]
    answered = sum(len(good(requests)) for requests in loads)
    p50, p99 = (statistics.median(each[name] for each in spent) for name in ("p50", "p99"))
    return Trial(round(rate, 2), answered, sum(map(len, loads)) - answered, p50, p99)


async def highest(attempt: Callable[[float], Awaitable[bool]], *, start: float, resolution: float) -> float:
    """Return the highest rate for which `attempt` is true, within `resolution`; 0 where a hundredth is too much.

    It steps up or down by a quarter until one rate holds and one fails, then halves the space between them.
    """
    low, high, rate = 0.0, 0.0, start
    while not (low and high):
        if await attempt(rate):
            low, rate = rate, rate * FIRST_STEP
        else:
            high, rate = rate, rate / FIRST_STEP
        if rate < start / 100:
            return 0.0
    while high / low > 1 + resolution:
        middle = (low * high) ** 0.5
        if await attempt(middle):
            low = middle
        else:
            high = middle
    return low


@contextmanager
def _running(name: str, graph: Path, repository: Path, precision: str) -> Iterator[Service]:
    """Start a service; stop it at the end."""
    if name == "web":
        with _web(graph, precision) as (port, pid):
            yield Service(name, partial(Web, port), pid, "none")
        return
    with Server(repository, ServerOptions.free_ports(threads=usable_cores())) as server:
        url = server.grpc_url if name == "triton-grpc" else f"http://{server.http_url}"
        yield Service(name, Endpoint.parse(url), server.process.pid, server.shared_memory)


@contextmanager
def _web(graph: Path, precision: str) -> Iterator[tuple[int, int]]:
    """Start the hand-written service in a process group of its own; give its port and process id."""
    (port,) = free_ports(1)
    words = [str(graph), "--port", str(port), "--threads", str(usable_cores()), "--precision", precision]
    process = subprocess.Popen([sys.executable, "-m", "retinaserve.scripts.lab.baseline", *words], process_group=0)
    try:
        deadline = time.monotonic() + 120
        while not _listens(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise UserError("the hand-written web service did not start", f"exit code {process.returncode}")
            time.sleep(0.1)
        yield port, process.pid
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def _listens(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


class Web:
    """The hand-written service, asked like a Triton: what the loads need of a Transport."""

    def __init__(self, port: int, connections: int) -> None:
        import aiohttp

        self._url = f"http://127.0.0.1:{port}/detect"
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=connections))

    async def infer(self, model: str, image: bytes, *, timeout: float) -> bytes:
        """Send one encoded image; return the JSON. Raises ServerError."""
        import aiohttp

        try:
            limit = aiohttp.ClientTimeout(total=timeout)
            async with self._session.post(self._url, data=image, timeout=limit) as answer:
                body = await answer.read()
                if answer.status != http.client.OK:
                    raise ServerError("invalid", body.decode(errors="replace"))
                return body
        except (aiohttp.ClientError, TimeoutError) as error:
            raise ServerError("unavailable", str(error) or type(error).__name__) from None

    async def close(self) -> None:
        """Close every connection."""
        await self._session.close()


def mix(images: Sequence[bytes]) -> list[dict[str, Any]]:
    """Describe what was sent: the manifest that makes two measurements comparable."""
    found = []
    for data in images:
        with Image.open(io.BytesIO(data)) as image:
            size = (image.width, image.height)
        found.append({"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data), "width_height": size})
    return found


def beside(measured: Sequence[Measured], baseline: str = "web") -> dict[str, float]:
    """Return each service's capacity over the baseline's; nothing where that held no rate."""
    own = next((each.capacity for each in measured if each.service == baseline), 0.0)
    return {each.service: round(each.capacity / own, 3) for each in measured if own and each.service != baseline}


def main() -> None:
    """Find the rate that a graph bears on this machine: about eight rates a service."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("model", type=Path, help="An ONNX graph of `export`.")
    parser.add_argument("--images", nargs="*", help="Images to send; drawn ones of 640 x 480 if not given.")
    parser.add_argument("--max-p99", type=float, default=500.0, help="Milliseconds that p99 may take.")
    parser.add_argument("--seconds", type=float, default=20.0, help="Length of each load.")
    parser.add_argument("--repeats", type=int, default=1, help="Loads of each rate, whose medians count.")
    parser.add_argument("--in-flight", type=int, default=4, help="Requests of the load that finds the peak.")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32", help="Where the graph is float.")
    parser.add_argument("--service", choices=SERVICES, action="append", help="Only this one; may be repeated.")
    parser.add_argument("--json", type=Path, help="Write all numbers to this file.")
    given = parser.parse_args()
    options = CapacityOptions(given.max_p99, given.seconds, given.repeats, given.in_flight)
    with tempfile.TemporaryDirectory(prefix="retinaserve-") as scratch:
        build = BuildOptions(arithmetic=given.precision)
        repository = build_repository(given.model, Path(scratch) / "repository", options=build).repository
        files = find_images(given.images)[:64] if given.images else []
        images = [path.read_bytes() for path in files] or drawn(Path(scratch))
        measured = measure(
            given.model,
            repository,
            images,
            options,
            precision=given.precision,
            services=given.service or SERVICES,
            log=partial(print, file=sys.stderr),
        )
    print("service          peak/s  alone ms  capacity/s   CPU s  memory MB")
    for each in measured:
        row = f"{each.service:<14}{each.peak:>9.1f}{each.p50_alone:>10.1f}{each.capacity:>12.1f}"
        print(f"{row}{sum(each.cpu_seconds.values()):>8.1f}{sum(each.memory_mb.values()):>11.0f}")
    for service, ratio in beside(measured).items():
        print(f"{service}: {ratio:.2f} of the web service's rate")
    if given.json:
        report = {
            "machine": machine(),
            "options": asdict(options),
            "mix": mix(images),
            "beside_web": beside(measured),
            "measured": [asdict(each) for each in measured],
        }
        write_json(given.json, report)


if __name__ == "__main__":
    run(main)
