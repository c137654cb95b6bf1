"""A steady load for a long time: memory, descriptors and shared memory stay flat, latency does not drift.

    result = soak(Path("repository"), SoakOptions(minutes=30))

The first quarter is left to warm-up: pools and arenas grow to their size in it. The second quarter is compared
with the last, by medians, so that one moment decides nothing. Where 3 % are many megabytes a leak shows by the
slope of the last half, in bytes a request. Memory is what a process took itself: the pages of its libraries come
and go with the machine's other programs. What the client that makes the load holds is not looked at.
"""

import asyncio
import io
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from retinaserve.scripts.drills.drill import Check, Fixture, Log, Result, Usage, fixture, none_failed
from retinaserve.scripts.drills.load import (
    Request,
    closed_loop,
    good,
    milliseconds,
    open_loop,
    percentile,
    rate_of,
)

SMALLEST = 64 * 1024  # a process of 3 MB may grow by a page or two
# malloc hands pages back and takes them again: the server's arenas swing by half a megabyte without growing.
SWING = 512 * 1024


@dataclass(frozen=True)
class SoakOptions:
    """How long, and how much: a share of the peak found at the start, or a rate."""

    minutes: float = 30.0
    share: float = 0.7
    rate: float | None = None  # requests a second
    in_flight: int = 32  # of the closed loop that finds the peak
    growth: float = 0.03  # of each process's memory
    leak: float = 512.0  # bytes a request
    drift: float = 0.25  # of the median latency


def soak(
    repository: Path, options: SoakOptions, *, images: list[bytes] | None = None, log: Log = lambda _: None
) -> Result:
    """Run the drill for `minutes` and a little."""
    with fixture(repository, images=images) as fix:
        return asyncio.run(_drill(fix, options, log))


async def _drill(fix: Fixture, options: SoakOptions, log: Log) -> Result:
    seconds = 60 * options.minutes
    # The engine keeps memory for every batch size it has seen, each decoder for the batch of the largest images.
    # Chance would bring such a batch together late: let all of them meet it before the soak begins.
    for in_flight in (1, 2, 3, 4, 6, 8, 12, 16, 24):
        await closed_loop(fix.endpoint, fix.images, in_flight=in_flight, seconds=min(2.0, seconds / 60))
    largest, most = [max(fix.images, key=_pixels)], min(options.in_flight, fix.queue)
    await closed_loop(fix.endpoint, largest, in_flight=most, seconds=min(60.0, seconds / 30))
    full = await closed_loop(fix.endpoint, fix.images, in_flight=most, seconds=max(3.0, min(20.0, seconds / 10)))
    rate = options.rate or options.share * rate_of(full, skip=1)
    log(f"{rate:.1f} requests a second for {options.minutes:g} min")
    load = asyncio.create_task(open_loop(fix.endpoint, fix.images, rate=rate, seconds=seconds))
    begin = time.monotonic()
    seen: list[tuple[float, Usage]] = []
    while not load.done():
        await asyncio.wait({load}, timeout=min(10.0, seconds / 80))
        seen.append((time.monotonic() - begin, fix.usage()))
        if len(seen) % 30 == 0:
            own = sum(process.own_bytes for process in seen[-1][1].processes.values())
            log(f"{seen[-1][0] / 60:.1f} min: {own / 2**20:.0f} MiB")
    requests = await load

    early = [usage for at, usage in seen if 0.25 * seconds <= at < 0.5 * seconds]
    late = [usage for at, usage in seen if 0.75 * seconds <= at <= seconds]
    first = [request for request in requests if 0.25 <= (request.start - begin) / seconds < 0.5]
    last = [request for request in requests if (request.start - begin) / seconds >= 0.75]
    names = sorted(seen[-1][1].processes)

    def grown(value: Callable[[Usage], float]) -> tuple[float, float]:
        before, after = (statistics.median(map(value, usages)) for usages in (early, late))
        return after - before, after

    checks = [none_failed("failed requests", requests)]
    for name in names:
        samples = [(at, usage.processes[name].own_bytes) for at, usage in seen]
        checks += memory_checks(name, samples, seconds=seconds, requests=len(requests), options=options)
    for name in names:
        growth, after = grown(lambda usage, name=name: usage.processes[name].descriptors)  # type: ignore[misc]
        checks.append(Check(f"{name}: descriptors, growth", growth, at_most=0, note=f"{after:.0f} open"))
    checks += [
        Check("shared memory, growth in bytes", grown(lambda usage: usage.shared_bytes)[0], at_most=SMALLEST),
        Check("files in /dev/shm, growth", grown(lambda usage: usage.shared_files)[0], at_most=0),
        Check("p50, last / second quarter", _p50(last) / _p50(first), at_most=1 + options.drift),
    ]
    figures: dict[str, Any] = {
        "options": asdict(options),
        "rate": round(rate, 3),
        "requests": len(requests),
        "second_quarter_ms": milliseconds(good(first)),
        "last_quarter_ms": milliseconds(good(last)),
        "memory_mib": [
            {"s": round(at), **{name: round(each.own_bytes / 2**20, 1) for name, each in use.processes.items()}}
            for at, use in seen[:: max(1, len(seen) // 60)]
        ],
        "cpu_seconds": {name: round(each.cpu_seconds, 1) for name, each in seen[-1][1].processes.items()},
    }
    return Result("soak", checks, figures)


def memory_checks(
    name: str, samples: Sequence[tuple[float, int]], *, seconds: float, requests: int, options: SoakOptions
) -> list[Check]:
    """Judge one process's memory: `samples` are (seconds since the begin, bytes), over all `seconds`."""
    before = statistics.median(size for at, size in samples if 0.25 * seconds <= at < 0.5 * seconds)
    after = statistics.median(size for at, size in samples if at >= 0.75 * seconds)
    # Shrinking is flat enough.
    ratio = after / before if after - before > SMALLEST else 1.0
    a_request = _slope([sample for sample in samples if sample[0] >= 0.5 * seconds]) * seconds / requests
    # A short run does not show a small leak in the arenas' swing, so its bound is wider.
    bound = max(options.leak, SWING / (0.5 * requests))
    return [
        Check(
            f"{name}: memory after / before", ratio, at_most=1 + options.growth, note=f"{after / 2**20:.0f} MiB"
        ),
        Check(f"{name}: growth, bytes a request", a_request, at_most=round(bound)),
    ]


def _slope(samples: Sequence[tuple[float, int]]) -> float:
    """Return bytes a second: the median slope of all pairs (Theil and Sen), which one step hardly bends."""
    pairs = [(first, last) for index, first in enumerate(samples) for last in samples[index + 1 :]]
    return statistics.median((b - a) / (late - early) for (early, a), (late, b) in pairs)


def _pixels(image: bytes) -> int:
    width, height = Image.open(io.BytesIO(image)).size
    return width * height


def _p50(requests: Sequence[Request]) -> float:
    return percentile((request.seconds for request in good(requests)), 0.5)
