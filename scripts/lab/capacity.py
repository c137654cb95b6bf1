"""What a service bears: the highest rate of Poisson arrivals at which p99 stays under a bound, found by search.

    for measured in measure(graph, repository, pictures, CapacityOptions(bound_ms=500)):
        print(measured.service, measured.capacity)

Three services of one graph, threads and pictures, in one run: this project's Triton over gRPC and over HTTP, and
the web service one would write by hand (scripts/lab/baseline.py). They stand side by side and take turns, load by
load, because machines drift. Arrivals are an open loop: they wait for nobody. Latencies count from when a request
went out. Nothing is retried.
"""

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
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from retinaserve.eval.client.transport import Endpoint, ServerError
from retinaserve.scripts.drills.load import Goal, Shot, closed_loop, good, milliseconds, open_loop, rate_of
from retinaserve.scripts.drills.processes import usage
from retinaserve.scripts.server.installation import usable_cores
from retinaserve.scripts.server.triton import ServerOptions, TritonServer
from retinaserve.training.errors import UserError

SERVICES = ("triton-grpc", "triton-http", "web")
FIRST_STEP = 1.25  # what a rate is multiplied or divided by until the bound lies between two


@dataclass(frozen=True)
class CapacityOptions:
    """What is measured and for how long."""

    bound_ms: float = 500.0  # of p99
    seconds: float = 20.0  # of each load
    repeats: int = 1  # loads of a trial, whose medians count: one moment of a busy machine decides nothing
    in_flight: int = 4  # of the closed loop that says where to begin
    resolution: float = 0.05  # the search ends when the rates that hold and fail are this near
    rounds: int = 1
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
    """One service in one round."""

    service: str
    round: int
    peak: float  # images/s of the closed loop
    p50_alone: float  # ms, one request at a time
    capacity: float  # the highest rate that held; 0 where none did
    trials: tuple[Trial, ...]
    cpu_seconds: dict[str, float]  # of each process, in all of it
    memory_mb: dict[str, float]  # of each process, at its end

    def to_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Target:
    """A service that runs."""

    name: str
    goal: Goal
    process_group: int
    shared_memory: str


def measure(
    graph: Path,
    repository: Path,
    pictures: Sequence[bytes],
    options: CapacityOptions,
    *,
    precision: str = "f32",
    services: Sequence[str] = SERVICES,
    tell: Callable[[str], None] = lambda _: None,
) -> Iterator[Measured]:
    """Measure every service once a round, and give those of a round when it is done."""
    for number in range(options.rounds):
        with ExitStack() as stack:
            targets = [stack.enter_context(_running(name, graph, repository, precision)) for name in services]
            yield from asyncio.run(_round(targets, number, list(pictures), options, tell))


async def _round(
    targets: Sequence[Target],
    number: int,
    pictures: list[bytes],
    options: CapacityOptions,
    tell: Callable[[str], None],
) -> list[Measured]:
    # One load at a time. The lock is fair: who had a turn waits until all others have had theirs.
    turn = asyncio.Lock()
    searches = [_measure(target, number, pictures, options, tell, turn) for target in targets]
    return await asyncio.gather(*searches)


async def _measure(
    target: Target,
    number: int,
    pictures: list[bytes],
    options: CapacityOptions,
    tell: Callable[[str], None],
    turn: asyncio.Lock,
) -> Measured:
    async with turn:
        await closed_loop(target.goal, pictures, in_flight=options.in_flight, seconds=options.warm_up)
    before = usage(target.process_group, target.shared_memory)
    async with turn:
        alone = await closed_loop(target.goal, pictures, in_flight=1, seconds=options.seconds / 2)
    async with turn:
        full = await closed_loop(target.goal, pictures, in_flight=options.in_flight, seconds=options.seconds)
    peak = rate_of(full, skip=0.1 * options.seconds)
    if not peak:
        raise UserError(f"{target.name} answered nothing", full[0].message if full else "it took no request")
    tell(f"{target.name}: {peak:.1f} images/s with {options.in_flight} in flight")
    trials: list[Trial] = []

    async def attempt(rate: float) -> bool:
        loads = []
        for repeat in range(options.repeats):
            # Other seeds for each rate would let luck decide; the same ones scale the same arrivals.
            seed = options.seed + repeat
            async with turn:
                shots = await open_loop(
                    target.goal, pictures, rate=rate, seconds=options.seconds, timeout=60, seed=seed
                )
                await asyncio.sleep(options.pause)
            loads.append(shots)
        trial = trial_of(rate, loads)
        trials.append(trial)
        held = trial.holds(options.bound_ms)
        tell(
            f"  {target.name:<12}{rate:7.1f}/s  p50 {trial.p50:7.1f}  p99 {trial.p99:7.1f} ms  "
            f"{'holds' if held else 'fails'}"
        )
        return held

    capacity = await highest(attempt, start=0.8 * peak, resolution=options.resolution)
    after = usage(target.process_group, target.shared_memory)
    spent = {
        name: round(process.cpu_seconds - before.processes[name].cpu_seconds, 2)
        for name, process in after.processes.items()
        if name in before.processes
    }
    return Measured(
        service=target.name,
        round=number,
        peak=round(peak, 2),
        p50_alone=milliseconds(good(alone))["p50"],
        capacity=round(capacity, 2),
        trials=tuple(trials),
        cpu_seconds=spent,
        memory_mb={name: round(process.memory_bytes / 1e6, 1) for name, process in after.processes.items()},
    )


def trial_of(rate: float, loads: Sequence[Sequence[Shot]]) -> Trial:
    """Return what came of a rate's loads: counts of all, and the medians of their latencies."""
    spent = [milliseconds(good(shots)) for shots in loads]
    answered = sum(len(good(shots)) for shots in loads)
    return Trial(
        round(rate, 2),
        answered,
        sum(map(len, loads)) - answered,
        statistics.median(each["p50"] for each in spent),
        statistics.median(each["p99"] for each in spent),
    )


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
def _running(name: str, graph: Path, repository: Path, precision: str) -> Iterator[Target]:
    """Start a service; stop it at the end."""
    if name == "web":
        with _web(graph, precision) as (port, pid):
            yield Target(name, lambda connections: Web(port, connections), pid, "none")
        return
    options = ServerOptions.free_ports(threads=usable_cores())
    with TritonServer(repository, options) as server:
        server.wait_until_ready()
        spoken = name.removeprefix("triton-")
        url = server.grpc_url if spoken == "grpc" else f"http://{server.http_url}"
        endpoint = Endpoint.parse(url)
        yield Target(name, endpoint, server.process.pid, server.shared_memory)


@contextmanager
def _web(graph: Path, precision: str) -> Iterator[tuple[int, int]]:
    """Start the hand-written service in a process group of its own; give its port and process id."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
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
        """Send one encoded picture; return the JSON. Raises ServerError."""
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


def mix(pictures: Sequence[bytes]) -> list[dict[str, Any]]:
    """Describe what was sent: the manifest that makes two measurements comparable."""
    found = []
    for data in pictures:
        with Image.open(io.BytesIO(data)) as image:
            size = (image.width, image.height)
        found.append({"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data), "width_height": size})
    return found


def beside(measured: Sequence[Measured], baseline: str = "web") -> dict[str, list[float]]:
    """Return each service's capacity over the baseline's, a number a round: machines drift between rounds.

    Without the rounds in which the baseline held no rate.
    """
    own = {each.round: each.capacity for each in measured if each.service == baseline and each.capacity}
    result: dict[str, list[float]] = {}
    for each in measured:
        if each.service != baseline and each.round in own:
            result.setdefault(each.service, []).append(round(each.capacity / own[each.round], 3))
    return result


def ceiling(
    measured: Sequence[Measured], limits: Sequence[Mapping[str, float]], baseline: str = "web"
) -> float | None:
    """Return the network's own rate, the best way of `engine_limit`, over the baseline's peak; means of all turns.

    Both do the network's work, so that is all a server can gain. None without the baseline.
    """
    peaks = [each.peak for each in measured if each.service == baseline]
    if not peaks:
        return None
    return round(statistics.fmean(max(limit.values()) for limit in limits) / statistics.fmean(peaks), 3)


def summary(measured: Sequence[Measured]) -> dict[str, dict[str, float]]:
    """Return the medians over the rounds and, of the capacity, the lowest and highest."""
    result = {}
    for service in dict.fromkeys(each.service for each in measured):
        own = [each for each in measured if each.service == service]
        rates = [each.capacity for each in own]
        result[service] = {
            "capacity": statistics.median(rates),
            "lowest": min(rates),
            "highest": max(rates),
            "peak": statistics.median(each.peak for each in own),
            "p50_alone_ms": statistics.median(each.p50_alone for each in own),
        }
    return result


def plot(measured: Sequence[Measured], options: CapacityOptions, path: Path) -> None:
    """Draw p99 over the rate, a colour a service, with the bound."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.5), dpi=120, layout="constrained")
    axes = figure.subplots()
    colours = dict(zip(SERVICES, ("#2563eb", "#f97316", "#6b7280"), strict=True))
    for service in dict.fromkeys(each.service for each in measured):
        trials = sorted(
            (trial.rate, trial.p99) for each in measured if each.service == service for trial in each.trials
        )
        rates, p99 = zip(*trials, strict=True)
        axes.plot(rates, p99, marker="o", linewidth=2, color=colours[service], label=service)
    axes.axhline(options.bound_ms, color="#dc2626", linestyle="--", linewidth=1, label=f"{options.bound_ms:g} ms")
    axes.set(
        xlabel="requests a second, Poisson", ylabel="p99 (ms)", ylim=(0, 3 * options.bound_ms), xlim=(0, None)
    )
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    figure.savefig(path)
