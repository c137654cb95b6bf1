"""A steady load for a long time: memory, descriptors and shared memory stay flat, latency does not drift.

    verdict = soak(Path("repository"), SoakOptions(minutes=30))

The first quarter is left to warm-up: pools and arenas grow to their size in it. The second quarter is compared
with the last, by medians, so that one moment decides nothing.
"""

import asyncio
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scripts.drills.load import Shot, closed_loop, good, milliseconds, open_loop, percentile, rate_of
from scripts.drills.processes import Usage
from scripts.drills.stage import Scene, stage
from scripts.drills.verdict import Check, Verdict

SMALLEST = 64 * 1024  # a process of 3 MB may grow by a page or two


@dataclass(frozen=True)
class SoakOptions:
    """How long, and how much: a share of the peak found at the start, or a rate."""

    minutes: float = 30.0
    share: float = 0.7
    rate: float | None = None  # requests a second
    in_flight: int = 32  # of the closed loop that finds the peak
    growth: float = 0.03  # of each process's memory
    drift: float = 0.25  # of the median latency


def soak(
    repository: Path,
    options: SoakOptions,
    *,
    pictures: list[bytes] | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> Verdict:
    """Run the drill for `minutes` and a little."""
    with stage(repository, pictures=pictures) as scene:
        return asyncio.run(_drill(scene, options, tell))


async def _drill(scene: Scene, options: SoakOptions, tell: Callable[[str], None]) -> Verdict:
    seconds = 60 * options.minutes
    # The engine keeps memory for every batch size it has seen: let it see them before the soak begins.
    for in_flight in (1, 2, 3, 4, 6, 8, 12, 16, 24):
        await closed_loop(scene.endpoint, scene.pictures, in_flight=in_flight, seconds=min(2.0, seconds / 60))
    full = await closed_loop(
        scene.endpoint, scene.pictures, in_flight=options.in_flight, seconds=max(3.0, min(20.0, seconds / 10))
    )
    rate = options.rate or options.share * rate_of(full, skip=1)
    tell(f"{rate:.1f} requests a second for {options.minutes:g} min")
    load = asyncio.create_task(open_loop(scene.endpoint, scene.pictures, rate=rate, seconds=seconds))
    begin = time.monotonic()
    seen: list[tuple[float, Usage]] = []
    while not load.done():
        await asyncio.wait({load}, timeout=min(10.0, seconds / 80))
        seen.append((time.monotonic() - begin, scene.usage()))
        if len(seen) % 30 == 0:
            tell(f"{seen[-1][0] / 60:.1f} min: {seen[-1][1].memory_bytes / 2**20:.0f} MiB")
    shots = await load

    early = [usage for at, usage in seen if 0.25 * seconds <= at < 0.5 * seconds]
    late = [usage for at, usage in seen if 0.75 * seconds <= at <= seconds]
    first = [shot for shot in shots if 0.25 <= (shot.start - begin) / seconds < 0.5]
    last = [shot for shot in shots if (shot.start - begin) / seconds >= 0.75]
    checks = [
        Check("failed requests", len(shots) - len(good(shots)), at_most=0, note=f"of {len(shots)}"),
        *(_memory(name, early, late, options.growth) for name in sorted(seen[-1][1].processes)),
        *(_descriptors(name, early, late) for name in sorted(seen[-1][1].processes)),
        Check(
            "shared memory, growth in bytes",
            _median(late, lambda usage: usage.shared_bytes) - _median(early, lambda usage: usage.shared_bytes),
            at_most=SMALLEST,
        ),
        Check(
            "files in /dev/shm, growth",
            _median(late, lambda usage: usage.shared_files) - _median(early, lambda usage: usage.shared_files),
            at_most=0,
        ),
        Check("p50, last / second quarter", _p50(last) / _p50(first), at_most=1 + options.drift),
    ]
    figures: dict[str, Any] = {
        "options": asdict(options),
        "rate": round(rate, 3),
        "requests": len(shots),
        "second_quarter_ms": milliseconds(good(first)),
        "last_quarter_ms": milliseconds(good(last)),
        "memory_mib": [
            {"s": round(at), **{name: round(each.memory_bytes / 2**20, 1) for name, each in use.processes.items()}}
            for at, use in seen[:: max(1, len(seen) // 60)]
        ],
        "cpu_seconds": {name: round(each.cpu_seconds, 1) for name, each in seen[-1][1].processes.items()},
    }
    return Verdict("soak", checks, figures)


def _memory(name: str, early: Sequence[Usage], late: Sequence[Usage], growth: float) -> Check:
    before, after = (_median(each, lambda usage: usage.processes[name].memory_bytes) for each in (early, late))
    # Shrinking is flat enough.
    ratio = after / before if after - before > SMALLEST else 1.0
    return Check(f"{name}: memory after / before", ratio, at_most=1 + growth, note=f"{after / 2**20:.0f} MiB")


def _descriptors(name: str, early: Sequence[Usage], late: Sequence[Usage]) -> Check:
    before, after = (_median(each, lambda usage: usage.processes[name].descriptors) for each in (early, late))
    return Check(f"{name}: descriptors, growth", after - before, at_most=0, note=f"{after:.0f} open")


def _median(usages: Sequence[Usage], value: Callable[[Usage], float]) -> float:
    return statistics.median(value(usage) for usage in usages)


def _p50(shots: Sequence[Shot]) -> float:
    return percentile((shot.seconds for shot in good(shots)), 0.5)
