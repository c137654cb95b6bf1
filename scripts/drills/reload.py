"""A new version beside the old one, canary, switch, rollback and a broken version, while requests flow.

    result = reload(Path("repository"), ReloadOptions())

The next version is made here: the newest one's graph with its scores halved, so that an answer shows whose it is.
Every answer is compared, after the load, with what its version answers at rest.
"""

import asyncio
import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from retinaserve.build_tools.repository.versions import CANARY, models_of, versions_of
from retinaserve.eval.client.transport import Endpoint, Transport
from retinaserve.scripts.drills.drill import Check, Fixture, Log, Result, fixture, none_failed
from retinaserve.scripts.drills.load import Request, closed_loop, good, milliseconds, send
from retinaserve.scripts.server.rollout import Deployment
from retinaserve.training.errors import UserError
from retinaserve.training.spec import DETECTOR, NUM_DETECTIONS, RETINANET, SCORES

Step = tuple[str, float, str]  # what was done, the seconds it took, and what came of it


@dataclass(frozen=True)
class ReloadOptions:
    """The load, and the time between the steps."""

    in_flight: int = 4
    pause: float = 1.0


def reload(
    repository: Path, options: ReloadOptions, *, images: list[bytes] | None = None, log: Log = lambda _: None
) -> Result:
    """Run the drill: under a minute with a small model."""
    with fixture(repository, images=images, reload=True) as fix:
        old = versions_of(fix.repository)[-1]
        add_version(fix.repository, old + 1)
        add_version(fix.repository, old + 2, broken=True)
        return asyncio.run(_drill(fix, old, options, log))


async def _drill(fix: Fixture, old: int, options: ReloadOptions, log: Log) -> Result:
    deployment = Deployment(fix.repository, fix.endpoint, fix.options.admin_token)
    new, broken = old + 1, old + 2
    rest = {str(old): await _ask(fix.endpoint, fix.images)}
    steps: list[Step] = []
    canary: list[Request] = []

    changes: list[tuple[str, Callable[[], object]]] = [
        ("canary", lambda: deployment.canary(new)),
        ("use", lambda: deployment.use(new)),
        ("rollback", deployment.rollback),
        ("use", lambda: deployment.use(new)),
        ("use broken", lambda: deployment.use(broken)),
        ("unload", lambda: deployment.unload(old)),
    ]

    def change() -> None:
        for name, act in changes:
            time.sleep(options.pause)
            start = time.monotonic()
            try:
                act()
                result = "done"
            except UserError as error:
                result = error.message
            steps.append((name, round(time.monotonic() - start, 2), result))
            log(f"{name}: {result[:90]} ({steps[-1][1]:.1f} s)")
            if name == "canary":
                canary.extend(asyncio.run(_ask(fix.endpoint, fix.images, model=CANARY)))
        time.sleep(options.pause)

    changing = asyncio.get_running_loop().run_in_executor(None, change)
    requests: list[Request] = []
    while not changing.done():
        requests += await closed_loop(
            fix.endpoint, fix.images, in_flight=options.in_flight, seconds=1, keep=_scores
        )
    await changing
    rest[str(new)] = await _ask(fix.endpoint, fix.images)

    apart = sum(not np.allclose(a.value, b.value, atol=1e-3) for a, b in zip(*rest.values(), strict=True))
    mixed = sum(not _belongs(request, rest) for request in good(requests))
    order = [request.version for request in sorted(good(requests), key=lambda request: request.start)]
    refused = [result for name, _, result in steps if name == "use broken"]
    checks = [
        none_failed("failed requests", requests),
        Check("answers that are of no one version", mixed, at_most=0, note="compared with the version at rest"),
        Check("images that the versions answer differently", apart, at_least=1, note="others prove nothing"),
        Check("answers of the old version", order.count(str(old)), at_least=1),
        Check("answers of the new version", order.count(str(new)), at_least=1),
        Check(
            "canary's answers of the new version",
            sum(request.version == str(new) and _belongs(request, rest) for request in canary),
            at_least=len(fix.images),
            note="while the old one served",
        ),
        Check(
            "broken version refused, the old serves",
            float(refused != ["done"] and set(order[-options.in_flight :]) == {str(new)}),
            at_least=1,
            note=refused[0][:60],
        ),
        Check("steps done", sum(result == "done" for _, _, result in steps), at_least=5, note="of 5"),
    ]
    figures = {
        "options": asdict(options),
        "steps": [{"step": name, "seconds": seconds, "result": result} for name, seconds, result in steps],
        "answers": dict(Counter(order)),
        "latency_ms": milliseconds(good(requests)),
        "longest_ms": round(1000 * max(request.seconds for request in requests), 1),
    }
    return Result("reload", checks, figures)


def add_version(repository: Path, version: int, *, broken: bool = False) -> None:
    """Copy the newest version under a new number, with halved scores or a graph that can't be read."""
    newest = versions_of(repository)[-1]
    for name in models_of(repository):
        shutil.copytree(repository / name / str(newest), repository / name / str(version))
    graph = repository / RETINANET / str(version) / "model.onnx"
    if broken:
        graph.write_bytes(graph.read_bytes()[:1000])
    else:
        halve_scores(graph)


def halve_scores(graph: Path) -> None:
    """Put a multiplication before the output `scores`."""
    import onnx

    model = onnx.load(graph)
    for node in model.graph.node:
        node.output[:] = ["scores_before" if name == SCORES else name for name in node.output]
        node.input[:] = ["scores_before" if name == SCORES else name for name in node.input]
    half = onnx.numpy_helper.from_array(np.array(0.5, np.float32), "half")
    model.graph.initializer.append(half)
    model.graph.node.append(onnx.helper.make_node("Mul", ["scores_before", "half"], [SCORES]))
    onnx.save(model, graph)


async def _ask(endpoint: Endpoint, images: Sequence[bytes], *, model: str = DETECTOR) -> list[Request]:
    """Send every image once, one at a time."""
    async with Transport(endpoint, concurrency=1) as transport:
        return [await send(transport, image, model=model, keep=_scores) for image in images]


def _belongs(request: Request, rest: dict[str, list[Request]]) -> bool:
    """Say whether an answer equals one that the version it names gave at rest."""
    return any(np.allclose(request.value, other.value, atol=1e-3) for other in rest.get(request.version, []))


def _scores(result: Any) -> Any:
    """Return the scores, in the fixed number of slots, and the number of detections behind them."""
    return np.append(result.as_numpy(SCORES)[0], result.as_numpy(NUM_DETECTIONS)[0])
