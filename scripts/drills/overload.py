"""Four times more than the server can do: what is answered, what is refused, and how it is afterwards.

    result = overload(Path("repository"), OverloadOptions(seconds=30))

Floods and peaks take turns, and goodput is a flood's rate over that of the peaks before and after it, because
machines drift. The load comes from this process, on the same machine: what it costs is the server's loss, and is
shown beside the goodput.
"""

import asyncio
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

from retinaserve.build_tools.repository.configs import read_config
from retinaserve.eval.client.transport import Endpoint
from retinaserve.scripts.drills.drill import Check, Fixture, Log, Result, Usage, fixture
from retinaserve.scripts.drills.load import (
    Request,
    closed_loop,
    good,
    milliseconds,
    open_loop,
    percentile,
    rate_of,
)
from retinaserve.scripts.server.installation import usable_cores
from retinaserve.training.spec import PREPROCESS


@dataclass(frozen=True)
class OverloadOptions:
    """How much and how long."""

    factor: float = 4.0  # of the peak
    seconds: float = 20.0  # of each load
    rounds: int = 3  # floods
    in_flight: int = 32  # of the closed loop that finds the peak; two batches keep the engine busy
    recovery: float = 5.0
    protocol: str = "grpc"


@dataclass(frozen=True)
class Load:
    """One flood or peak: its answers, their rate, and what making it took of all cores."""

    requests: Sequence[Request]
    rate: float
    share: float
    seen: Sequence[Usage]


def overload(
    repository: Path, options: OverloadOptions, *, images: list[bytes] | None = None, log: Log = lambda _: None
) -> Result:
    """Run the drill; a round takes three times `seconds` and the time of the last answers."""
    with fixture(repository, images=images) as fix:
        endpoint = fix.endpoint if options.protocol == "grpc" else fix.http
        return asyncio.run(_drill(fix, endpoint, options, log))


async def _drill(fix: Fixture, endpoint: Endpoint, options: OverloadOptions, log: Log) -> Result:
    images, seconds = fix.images, options.seconds
    await closed_loop(endpoint, images, in_flight=4, seconds=min(2.0, seconds))  # warm-up

    async def peak() -> Load:
        load = closed_loop(endpoint, images, in_flight=min(options.in_flight, fix.queue), seconds=seconds)
        return await _watched(fix, asyncio.create_task(load), skip=0.1 * seconds)

    async def flood(rate: float) -> Load:
        load = open_loop(endpoint, images, rate=rate, seconds=seconds, timeout=120)
        return await _watched(fix, asyncio.create_task(load), skip=0.2 * seconds)

    async def calm() -> list[Request]:
        return await closed_loop(endpoint, images, in_flight=1, seconds=seconds / 4)

    calms, peaks, floods = [await calm()], [await peak()], list[Load]()
    for number in range(options.rounds):
        rate = options.factor * peaks[-1].rate
        log(f"round {number + 1}: peak {peaks[-1].rate:.1f} images/s; now {rate:.1f} a second for {seconds:g} s")
        floods.append(await flood(rate))
        over = max(request.start for request in floods[-1].requests)
        await asyncio.sleep(max(0.0, over + options.recovery - time.monotonic()))
        calms.append(await calm())
        peaks.append(await peak())
    return _result(floods, peaks, calms, options, capacity=_capacity(fix))


def _result(
    floods: Sequence[Load],
    peaks: Sequence[Load],
    calms: Sequence[Sequence[Request]],
    options: OverloadOptions,
    *,
    capacity: int,
) -> Result:
    goodputs = [
        each.rate / ((before.rate + after.rate) / 2)
        for each, (before, after) in zip(floods, pairwise(peaks), strict=True)
    ]
    requests = [request for each in floods for request in each.requests]
    accepted, refused = good(requests), [request for request in requests if request.status == "unavailable"]
    goodput = statistics.median(goodputs)
    share, share_at_peak = (statistics.fmean(each.share for each in loads) for loads in (floods, peaks))
    left = goodput * (1 - share_at_peak) / (1 - share)
    peak = statistics.fmean(each.rate for each in peaks)
    memory = max(use.memory_bytes for each in floods for use in each.seen) / peaks[0].seen[-1].memory_bytes
    medians = [milliseconds(good(each))["p50"] for each in calms]
    failed = [request for each in calms[1:] for request in each if request.status != "ok"]
    late = sum(request.seconds > 1 for request in refused)
    by_round = f"by round {', '.join(f'{each:.3f}' for each in goodputs)}; " if len(goodputs) > 1 else ""
    takes = f"it takes {share:.1%} of them, and {share_at_peak:.1%} at the peak"
    waited = f"; {late} had waited too long: build --max-queue makes the queue shorter" if late else ""
    checks = [
        Check("refused / offered", len(refused) / len(requests), at_least=0.2, note="or it was no overload"),
        Check(
            "goodput / peak",
            goodput,
            at_least=0.95,
            note=f"{by_round}{left:.3f} on the cores that the load leaves: {takes}",
        ),
        Check(
            "refused within, ms (p99)",
            percentile((1000 * request.seconds for request in refused), 0.99),
            at_most=50,
            note=f"{len(refused)} of {len(requests)}{waited}",
        ),
        Check("neither answered nor UNAVAILABLE", len(requests) - len(accepted) - len(refused), at_most=0),
        Check(
            "p99 of the accepted, s",
            percentile((request.seconds for request in accepted), 0.99),
            at_most=1.5 * capacity / peak,
            note=f"bound: 1.5 x {capacity} waiting or under way / peak",
        ),
        Check("memory / at the peak", memory, at_most=1.25),
        Check(
            f"calm p50 / before, {options.recovery:g} s later",
            statistics.median(after / before for before, after in pairwise(medians)),
            at_most=1.5,
        ),
        Check("failed afterwards", len(failed), at_most=0),
    ]
    figures = {
        "options": asdict(options),
        "peak_ips": [round(each.rate, 2) for each in peaks],
        "flood_ips": [round(each.rate, 2) for each in floods],
        "goodput": [round(each, 4) for each in goodputs],
        "load_share_of_cores": {
            "floods": [round(each.share, 4) for each in floods],
            "peaks": [round(each.share, 4) for each in peaks],
        },
        "answers": dict(Counter(request.status for request in requests)),
        "accepted_ms": milliseconds(accepted),
        "refused_ms": milliseconds(refused),
        "calm_ms": [milliseconds(good(each)) for each in calms],
    }
    return Result("overload", checks, figures)


async def _watched(fix: Fixture, load: "asyncio.Task[list[Request]]", *, skip: float) -> Load:
    """Wait for a load and look at the server each second: a look costs some refusals, so all loads bear it."""
    wall, own = time.monotonic(), time.process_time()
    seen = [fix.usage()]
    while not load.done():
        await asyncio.wait({load}, timeout=1.0)
        seen.append(fix.usage())
    requests = await load
    share = (time.process_time() - own) / (time.monotonic() - wall) / usable_cores()
    return Load(requests, rate_of(requests, skip=skip), share, seen)


def _capacity(fix: Fixture) -> int:
    """Return how many requests the server holds: its queue, a batch formed for each step, and one under way."""
    batch = read_config(fix.repository / PREPROCESS / "config.pbtxt").max_batch_size
    return fix.queue + 3 * int(batch)
