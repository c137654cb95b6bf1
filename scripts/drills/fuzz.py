"""Thousands of damaged pictures, among good ones: the server stays up, answers each, and says what is wrong.

verdict = fuzz(Path("repository"), FuzzOptions(count=10_000))
"""

import asyncio
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from retinaserve.build_tools.preprocess import MAX_PIXELS
from retinaserve.eval.client.transport import Transport
from retinaserve.scripts.drills.corpus import Sample, corpus
from retinaserve.scripts.drills.load import Shot, milliseconds, shoot
from retinaserve.scripts.drills.processes import stubs
from retinaserve.scripts.drills.stage import Scene, stage
from retinaserve.scripts.drills.verdict import Check, Verdict

# A reason is a sentence about the picture, not what a library said of itself.
REASON = re.compile(r"^(in ensemble 'detector', )?(\[request id: \S+ )?the (image|data|[A-Z]+ image)\b.{5,300}$")
EVERY = 25  # samples to a good picture


@dataclass(frozen=True)
class FuzzOptions:
    """How many, which ones, and how many at a time."""

    count: int = 10_000
    seed: int = 0
    in_flight: int = 8


def fuzz(repository: Path, options: FuzzOptions, *, tell: Callable[[str], None] = lambda _: None) -> Verdict:
    """Run the drill; the time is that of the good pictures' inferences."""
    with stage(repository) as scene:
        assert scene.server
        before = stubs(scene.server.process.pid)
        answers, good, memory = asyncio.run(_drill(scene, options, tell))
        alive = scene.server.process.poll() is None
        restarted = sum(pid != stubs(scene.server.process.pid).get(name) for name, pid in before.items())
    wrong = [sample.name for sample, shot in answers if sample.expected not in ("either", shot.status)]
    broken = [(sample.name, shot) for sample, shot in answers if shot.status not in ("ok", "invalid")]
    refused = [(sample.name, shot) for sample, shot in answers if shot.status == "invalid"]
    unclear = [f"{name}: {shot.message}" for name, shot in refused if not REASON.match(shot.message)]
    checks = [
        Check("the server's processes that died", restarted + (not alive), at_most=0),
        Check("neither detections nor a reason", len(broken), at_most=0, note=f"of {len(answers)}"),
        Check("refused without naming the cause", len(unclear), at_most=0, note=f"of {len(refused)} refused"),
        Check("answered otherwise than known", len(wrong), at_most=0, note=", ".join(wrong[:3])),
        Check("good pictures between them that failed", good.count(False), at_most=0, note=f"of {len(good)}"),
        Check(
            "memory, growth in MB",
            (memory[-1] - memory[0]) / 1e6,
            at_most=3 * MAX_PIXELS / 1e6,
            note="bound: the largest picture that is taken, decoded, stays in the decoder's pools",
        ),
    ]
    reasons = Counter(re.sub(r"\d+", "N", shot.message.split("', ")[-1])[:60] for _, shot in refused)
    figures = {
        "options": asdict(options),
        "answers": dict(Counter(shot.status for _, shot in answers)),
        "memory_mib": [round(each / 2**20) for each in memory],
        "refused_ms": milliseconds(shot for _, shot in refused),
        "reasons": dict(reasons.most_common(20)),
        "unclear": unclear[:20],
        "broken": [f"{name}: {shot.status} {shot.message}" for name, shot in broken[:20]],
        "answered_otherwise": wrong[:20],
    }
    return Verdict("fuzz", checks, figures)


async def _drill(
    scene: Scene, options: FuzzOptions, tell: Callable[[str], None]
) -> tuple[list[tuple[Sample, Shot]], list[bool], list[int]]:
    """Return every sample's shot, whether the good ones were answered, and the memory in bytes at twenty times."""
    transport = Transport(scene.endpoint, concurrency=options.in_flight)
    gate = asyncio.Semaphore(options.in_flight)
    answers: list[tuple[Sample, Shot]] = []
    good: list[bool] = []
    try:
        for picture in scene.pictures:  # the pools of the decoder grow to their size
            await shoot(transport, picture)
        memory = [scene.usage().memory_bytes]
        tasks: set[asyncio.Task[None]] = set()
        for number, sample in enumerate(corpus(options.count, seed=options.seed)):
            await gate.acquire()
            tasks.add(asyncio.create_task(_one(transport, gate, sample, answers)))
            if number % EVERY == 0:
                shot = await shoot(transport, scene.pictures[number % len(scene.pictures)])
                good.append(shot.status == "ok")
            tasks = {task for task in tasks if not task.done()}
            if number % max(1, options.count // 20) == 0:
                memory.append(scene.usage().memory_bytes)
                tell(f"{number} of {options.count} sent, {memory[-1] / 2**20:.0f} MiB")
        await asyncio.gather(*tasks)
    finally:
        await transport.close()
    return answers, good, [*memory, scene.usage().memory_bytes]


async def _one(
    transport: Transport, gate: asyncio.Semaphore, sample: Sample, answers: list[tuple[Sample, Shot]]
) -> None:
    try:
        answers.append((sample, await shoot(transport, sample.data)))
    finally:
        gate.release()
