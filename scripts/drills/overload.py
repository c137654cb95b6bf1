"""Four times more than the server can do: what is answered, what is refused, and how it is afterwards.

    verdict = overload(Path("repository"), OverloadOptions(seconds=30))

Peak and calm are measured before and after, in the same run, because machines drift. The load comes from this
process, on the same machine: what it costs is the server's loss, and is said beside the goodput.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from build_tools.config_schema import read_config
from eval.transport import Endpoint
from scripts.drills.load import Shot, closed_loop, good, milliseconds, open_loop, percentile, rate_of
from scripts.drills.processes import Usage
from scripts.drills.stage import Scene, stage
from scripts.drills.verdict import Check, Verdict
from scripts.installation import usable_cores
from training.spec import PREPROCESS


@dataclass(frozen=True)
class OverloadOptions:
    """How much and how long."""

    factor: float = 4.0  # of the peak
    seconds: float = 20.0  # of each load
    in_flight: int = 32  # of the closed loop that finds the peak; two batches keep the engine busy
    recovery: float = 5.0
    protocol: str = "grpc"


def overload(
    repository: Path,
    options: OverloadOptions,
    *,
    pictures: list[bytes] | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> Verdict:
    """Run the drill; about five times `seconds`."""
    with stage(repository, pictures=pictures) as scene:
        endpoint = scene.endpoint if options.protocol == "grpc" else scene.http
        return asyncio.run(_drill(scene, endpoint, options, tell))


async def _drill(
    scene: Scene, endpoint: Endpoint, options: OverloadOptions, tell: Callable[[str], None]
) -> Verdict:
    pictures, seconds = scene.pictures, options.seconds
    await closed_loop(endpoint, pictures, in_flight=4, seconds=min(2.0, seconds))  # warm-up

    async def peak() -> tuple[float, float]:
        own = _OwnShare()
        shots = await closed_loop(endpoint, pictures, in_flight=options.in_flight, seconds=seconds)
        return rate_of(shots, skip=0.1 * seconds), own.so_far()

    async def calm() -> list[Shot]:
        return await closed_loop(endpoint, pictures, in_flight=1, seconds=seconds / 4)

    calm_before, (peak_before, share_before) = await calm(), await peak()
    at_peak = scene.usage()
    tell(f"peak {peak_before:.1f} images/s; now {options.factor:g} times as many for {seconds:g} s")
    own = _OwnShare()
    load = asyncio.create_task(
        open_loop(endpoint, pictures, rate=options.factor * peak_before, seconds=seconds, timeout=120)
    )
    seen = await _watch(scene, load)
    shots, share = await load, own.so_far()
    await asyncio.sleep(max(0.0, max(shot.start for shot in shots) + options.recovery - time.monotonic()))
    tell("over; is it itself again?")
    calm_after, (peak_after, share_after) = await calm(), await peak()

    peak_rate = (peak_before + peak_after) / 2
    share_at_peak = (share_before + share_after) / 2
    goodput = rate_of(shots, skip=0.2 * seconds) / peak_rate
    accepted, refused = good(shots), [shot for shot in shots if shot.status == "unavailable"]
    others = len(shots) - len(accepted) - len(refused)
    late = percentile((1000 * shot.seconds for shot in refused), 0.99)
    most_waiting = _capacity(scene.repository)
    memory = max(each.memory_bytes for each in seen) / at_peak.memory_bytes
    before, after = (milliseconds(good(each)) for each in (calm_before, calm_after))
    checks = [
        Check("refused / offered", len(refused) / len(shots), at_least=0.2, note="or it was no overload"),
        Check(
            "goodput / peak",
            goodput,
            at_least=0.95,
            note=f"{goodput * (1 - share_at_peak) / (1 - share):.3f} on the cores that the load leaves: "
            f"it takes {share:.1%} of them, and {share_at_peak:.1%} at the peak",
        ),
        Check("refused within, ms (p99)", late, at_most=50, note=f"{len(refused)} of {len(shots)}"),
        Check("neither answered nor UNAVAILABLE", others, at_most=0),
        Check(
            "p99 of the accepted, s",
            percentile((shot.seconds for shot in accepted), 0.99),
            at_most=1.5 * most_waiting / peak_rate,
            note=f"bound: 1.5 x {most_waiting} waiting or under way / peak",
        ),
        Check("memory / at the peak", memory, at_most=1.25),
        Check(f"calm p50 / before, {options.recovery:g} s later", after["p50"] / before["p50"], at_most=1.5),
        Check("failed afterwards", len(calm_after) - len(good(calm_after)), at_most=0),
    ]
    figures = {
        "options": asdict(options),
        "peak_ips": [round(peak_before, 2), round(peak_after, 2)],
        "load_share_of_cores": {"overload": round(share, 4), "peak": round(share_at_peak, 4)},
        "offered_ips": round(options.factor * peak_before, 2),
        "answers": dict(Counter(shot.status for shot in shots)),
        "accepted_ms": milliseconds(accepted),
        "refused_ms": milliseconds(refused),
        "calm_ms": {"before": before, "after": after},
    }
    return Verdict("overload", checks, figures)


class _OwnShare:
    """What this process, which makes the load, takes of all cores from now on."""

    def __init__(self) -> None:
        self._start = time.monotonic(), time.process_time()

    def so_far(self) -> float:
        wall, own = self._start
        return (time.process_time() - own) / (time.monotonic() - wall) / usable_cores()


async def _watch(scene: Scene, load: "asyncio.Task[list[Shot]]") -> list[Usage]:
    seen = [scene.usage()]
    while not load.done():
        await asyncio.wait({load}, timeout=1.0)
        seen.append(scene.usage())
    return seen


def _capacity(repository: Path) -> int:
    """Return how many requests the server holds: its queue, a batch formed for each step, and one under way."""
    config = read_config(repository / PREPROCESS / "config.pbtxt")
    return int(config.dynamic_batching.default_queue_policy.max_queue_size + 3 * config.max_batch_size)
