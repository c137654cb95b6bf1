"""How fast a server answers: perf_analyzer over protocols and concurrencies, with the time inside each step.

    bench = Bench.prepare([Endpoint.parse("localhost:8001")], files)
    for level in bench.run([Demand(concurrency=4), Demand(rate=10)], seconds=6): ...

With N requests in flight (closed loop) a slow server slows the load down too; at a rate (open loop, Poisson) it
does not, and queues show. The time in the steps is what the server counted meanwhile. Nothing is averaged away: a
demand that is repeated is a line of its own, and the spread is for the reader to see.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from retinaserve.eval.bench.perf_analyzer import Demand, Load, LoadError, PerfAnalyzer
from retinaserve.eval.client.client import Client
from retinaserve.eval.client.server_info import ModelStatistics, whole
from retinaserve.eval.client.transport import Endpoint
from retinaserve.training.detections import ImageError
from retinaserve.training.errors import UserError
from retinaserve.training.images.sources import read_files, spread
from retinaserve.training.machine import machine
from retinaserve.training.spec import DETECTOR

MOST_IMAGES = 64  # sent in turn; more would only make the input larger
WARM_UP_CONCURRENCY = 4


@dataclass(frozen=True)
class Level:
    """One measurement: a protocol, what was asked, and what came of it."""

    protocol: str
    demand: Demand
    load: Load | None  # None when the server did not bear it
    steps: dict[str, ModelStatistics]
    problem: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the level for JSON."""
        asked = {"rate": self.demand.rate} if self.demand.rate else {"concurrency": self.demand.concurrency}
        head = {"protocol": self.protocol, **asked}
        if self.load is None:
            return {**head, "problem": self.problem}
        latency = {name: getattr(self.load, name) for name in ("p50", "p90", "p95", "p99")}
        return {
            **head,
            "requests": self.load.requests,
            "throughput_ips": self.load.throughput_ips,
            "latency_ms": latency,
            "steps": {name: _step(spent) for name, spent in self.steps.items()},
        }


@dataclass(frozen=True)
class Bench:
    """Endpoints of one server and the images it accepted."""

    endpoints: tuple[Endpoint, ...]
    images: tuple[bytes, ...]
    refused: dict[str, str]  # file: why; not part of the load
    steps: tuple[str, ...]

    @classmethod
    def prepare(cls, endpoints: Sequence[Endpoint], files: Sequence[Path], *, wait: float = 0.0) -> Self:
        """Send up to 64 images, spread over `files`, once each: that warms the server up and finds bad ones.

        Raises UserError when the server accepts none of them.
        """
        chosen = spread(files, MOST_IMAGES)
        images, refused = [], {}
        first = endpoints[0]
        with Client(str(first), wait=wait, concurrency=WARM_UP_CONCURRENCY, tls=first.tls) as client:
            steps = client.served.steps
            read = list(read_files(chosen))
            for path, data, answer in zip(chosen, read, client.predict_many(read), strict=True):
                if isinstance(answer, ImageError):
                    refused[str(path)] = answer.message
                elif isinstance(data, bytes):
                    images.append(data)
        if not images:
            file, message = next(iter(refused.items()))
            raise UserError("the server refused all images", f"{file}: {message}")
        return cls(tuple(endpoints), tuple(images), refused, steps)

    def run(self, demands: Sequence[Demand], *, seconds: float) -> Iterator[Level]:
        """Measure every protocol under every demand, `seconds` each, and yield as it goes."""
        with PerfAnalyzer(DETECTOR, self.images) as analyzer:
            for endpoint in self.endpoints:
                with Client(str(endpoint), tls=endpoint.tls) as client:
                    for demand in demands:
                        yield self._measure(analyzer, client, demand, seconds)

    def _measure(self, analyzer: PerfAnalyzer, client: Client, demand: Demand, seconds: float) -> Level:
        before = client.statistics()
        load, problem = None, ""
        try:
            load = analyzer.run(client.endpoint, demand, seconds=seconds)
        except LoadError as error:
            problem = str(error)
        after = client.statistics()
        spent = {name: counted - before.get(name, ModelStatistics()) for name, counted in after.items()}
        steps = {name: spent for name, spent in whole(spent, client.served).items() if name in self.steps}
        return Level(client.endpoint.protocol, demand, load, steps, problem)


def concurrencies(text: str) -> list[int]:
    """Read 4 (one), 1:8 (doubling: 1 2 4 8), 1:8:2 (in steps: 1 3 5 7) or 1,4,16. Raises ValueError."""
    parts = [int(part) for part in text.replace(",", ":").split(":")]
    match parts:
        case _ if "," in text:
            found = parts
        case [one]:
            found = [one]
        case [start, end]:
            found = [start * 2**power for power in range(32) if start * 2**power <= end]
        case [start, end, step]:
            found = list(range(start, end + 1, step))
        case _:
            found = []
    if not found or min(found) < 1:
        raise ValueError(f"{text!r} holds no concurrency")
    return found


def header(steps: Sequence[str]) -> str:
    """Return the two head lines of the table that `row` fills."""
    above = f"{'latency ms':>54}{'':>10}"
    names = f"{'protocol':<9}{'asked':>9}{'im/s':>10}  {'p50':>7}{'p90':>8}{'p99':>9}  {'requests':>8}"
    for step in steps:
        above += f"  | {step + ', ms':<23}"
        names += f"  | {'queue':>7}{'compute':>9}{'batch':>7}"
    return f"{above.rstrip()}\n{names}"


def row(level: Level) -> str:
    """Return one line of the table."""
    head = f"{level.protocol:<9}{level.demand!s:>9}"
    if level.load is None:
        return f"{head}{'failed':>10}  {level.problem}"
    load = level.load
    line = (
        f"{head}{load.throughput_ips:>10.1f}  {load.p50:>7.1f}{load.p90:>8.1f}{load.p99:>9.1f}  {load.requests:>8}"
    )
    for spent in level.steps.values():
        compute = spent.input_ms + spent.infer_ms + spent.output_ms
        line += f"  | {spent.queue_ms:>7.1f}{compute:>9.1f}{spent.mean_batch:>7.2f}"
    return line


def to_dict(bench: Bench, levels: Sequence[Level], *, seconds: float, command: str) -> dict[str, Any]:
    """Return everything for JSON: the numbers, and what is needed to judge and repeat them."""
    return {
        "command": command,
        "servers": [str(endpoint) for endpoint in bench.endpoints],
        "pictures": len(bench.images),
        "picture_bytes": sum(map(len, bench.images)),
        "mix": [hashlib.sha256(image).hexdigest() for image in bench.images],
        "refused": bench.refused,
        "seconds_per_level": seconds,
        "machine": machine(),
        "runs": [level.to_dict() for level in levels if level.load],
        "failures": [level.to_dict() for level in levels if not level.load],
    }


def plot(levels: Sequence[Level], path: Path) -> None:
    """Draw throughput and latency into a PNG, a colour for each protocol: over the requests in flight where there
    are such, and over the rate in a second row where rates were asked.
    """
    from matplotlib.figure import Figure

    loads = [(level.protocol, level.load) for level in levels if level.load]
    rows = [
        ("requests in flight", [each for each in loads if not each[1].demand.rate]),
        ("requests a second asked", [each for each in loads if each[1].demand.rate]),
    ]
    rows = [row for row in rows if row[1]] or rows[:1]
    figure = Figure(figsize=(11, 4.5 * len(rows)), dpi=120, layout="constrained")
    for axes, (label, measured) in zip(figure.subplots(len(rows), 2, squeeze=False), rows, strict=True):
        _plot_row(axes, label, measured)
    figure.savefig(path)


def _plot_row(axes: Any, label: str, loads: Sequence[tuple[str, Load]]) -> None:
    left, right = axes
    names, colours = {"grpc": "gRPC", "http": "HTTP"}, {"grpc": "#2563eb", "http": "#f97316"}
    for protocol in dict.fromkeys(protocol for protocol, _ in loads):
        own = sorted((load for its, load in loads if its == protocol), key=_asked)
        x = [_asked(load) for load in own]
        style: dict[str, Any] = {"color": colours[protocol], "marker": "o", "linewidth": 2}
        left.plot(x, [load.throughput_ips for load in own], label=names[protocol], **style)
        right.plot(x, [load.p50 for load in own], label=f"{names[protocol]} p50", **style)
        right.plot(x, [load.p99 for load in own], label=f"{names[protocol]} p99", linestyle=":", **style)
    left.set_title("Throughput")
    left.set(xlabel=label, ylabel="images a second", ylim=(0, None))
    right.set_title("Latency")
    right.set(xlabel=label, ylabel="milliseconds", ylim=(0, None))
    for each in (left, right):
        each.set_xticks(sorted({_asked(load) for _, load in loads}))
        each.grid(alpha=0.25)
        if each.lines:
            each.legend(frameon=False)


def _asked(load: Load) -> float:
    return load.demand.rate or load.demand.concurrency


def _step(spent: ModelStatistics) -> dict[str, Any]:
    return {
        **{name: round(getattr(spent, name), 3) for name in ("queue_ms", "input_ms", "infer_ms", "output_ms")},
        "mean_batch": round(spent.mean_batch, 3),
        **{name: value for name, value in asdict(spent).items() if not name.endswith("_ns")},
    }
