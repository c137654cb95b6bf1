"""What each precision costs and saves: one checkpoint exported every way, served, scored and timed in one run.

    rows = compare(checkpoint, options, log=print)      # Row("fp32"), Row("int8 minmax"), ...
    markdown(rows)

Scores are taken through the server, bytes in and boxes out. For throughput all servers stand side by side and take
turns, because machines drift: only ratios within a round count.
"""

import shutil
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retinaserve.build_tools.export import ExportOptions, export_detector
from retinaserve.build_tools.openvino_cpu import compile_for_cpu
from retinaserve.build_tools.repository.builder import build_repository
from retinaserve.build_tools.repository.configs import INT8_ARITHMETIC, BuildOptions
from retinaserve.eval.bench.bench import MOST_IMAGES
from retinaserve.eval.bench.perf_analyzer import Demand, Load, LoadError, PerfAnalyzer
from retinaserve.eval.client.client import Client
from retinaserve.eval.client.transport import Endpoint
from retinaserve.eval.report.report import evaluate_detector
from retinaserve.scripts.server.triton import Server, ask_to_stop
from retinaserve.training.check.checks import scored_labels
from retinaserve.training.errors import UserError
from retinaserve.training.images.sources import annotated_files, find_images, read_files, spread
from retinaserve.training.machine import machine
from retinaserve.training.spec import DETECTOR, DetectorSpec

if TYPE_CHECKING:
    from retinaserve.build_tools.quantize.calibrate import Int8Options
    from retinaserve.build_tools.quantize.ranges import Calibrator

CONCURRENCY = 4


@dataclass(frozen=True)
class Options:
    """What is compared, on what, and for how long."""

    output: Path
    images: Path
    annotations: Path | None  # None: nothing is scored
    int8: "Int8Options"
    calibrators: tuple["Calibrator", ...] = ("minmax", "percentile", "entropy")
    size: tuple[int, int] | None = None
    rounds: int = 3  # 0: nothing is timed
    seconds: float = 10.0  # of a flavour in a round


@dataclass
class Row:
    """One flavour. Scores are of 1; `convolutions` counts what the CPU computes them in, `ips` is a round each."""

    name: str
    megabytes: float
    convolutions: dict[str, int]
    ap: float | None = None
    ap50: float | None = None
    ips: list[float] = field(default_factory=list)


def flavours(options: Options) -> dict[str, tuple[ExportOptions, str]]:
    """Return the ways a checkpoint is exported and what the rest is computed in, float first, by name.

    INT8 is served as `build --precision int8` does it, and once more with f32 where it is float.
    """
    plain = ExportOptions(size=options.size)
    ways = {"fp32": (plain, "f32")}
    for calibrator in options.calibrators:
        way = replace(plain, int8=replace(options.int8, calibrator=calibrator))
        ways[f"int8 {calibrator}"] = (way, INT8_ARITHMETIC)
        ways.setdefault("int8 in f32", (way, "f32"))
    return ways


def compare(checkpoint: Path, options: Options, *, log: Callable[[str], None]) -> list[Row]:
    """Export, build, serve, score and time every flavour; `log` gets a line for each step. Raises UserError."""
    rows: list[Row] = []
    graphs: dict[ExportOptions, Path] = {}  # what is only computed otherwise is exported and calibrated once
    with ExitStack() as stack:
        servers: list[Server] = []
        for name, (way, arithmetic) in flavours(options).items():
            folder = options.output / name.replace(" ", "_")
            folder.mkdir(parents=True, exist_ok=True)
            if way not in graphs:
                log(f"{name}: export")
                graphs[way] = folder / "model.onnx"
                export_detector(checkpoint, graphs[way], way)
            graph, repository = graphs[way], folder / "repository"
            log(f"{name}: build and serve")
            shutil.rmtree(repository, ignore_errors=True)  # or an earlier run's versions would be served as well
            build_repository(graph, repository, options=BuildOptions(arithmetic))
            servers.append(stack.enter_context(Server(repository)))
            row = Row(name, graph.stat().st_size / 1e6, convolution_types(graph, arithmetic))
            if options.annotations:
                log(f"{name}: scores through the server")
                with Client(servers[-1].grpc_url, timeout=300) as client:
                    labels = scored_labels(options.annotations, options.images)
                    scores = evaluate_detector(client, labels, options.images).scores
                row.ap, row.ap50 = scores.ap, scores.ap50
            rows.append(row)
        stack.callback(ask_to_stop, servers)
        if not options.rounds:
            return rows
        analyzer = stack.enter_context(PerfAnalyzer(DETECTOR, _images(options)))
        for number in range(1, options.rounds + 1):
            for row, server in zip(rows, servers, strict=True):
                endpoint = Endpoint.parse(server.grpc_url)
                row.ips.append(load_of(analyzer, endpoint, Demand(CONCURRENCY), options.seconds).throughput_ips)
            log(f"round {number}: " + ", ".join(f"{row.name} {row.ips[-1]:.2f}/s" for row in rows))
    return rows


def convolution_types(graph: Path, arithmetic: str) -> dict[str, int]:
    """Return how many convolutions OpenVINO runs in which type, by its own word."""
    operations = compile_for_cpu(str(graph), precision=arithmetic).get_runtime_model().get_ops()
    infos = [operation.get_rt_info() for operation in operations]
    convolutions = [info for info in infos if info["layerType"].astype(str) == "Convolution"]
    return dict(Counter(info["runtimePrecision"].astype(str) for info in convolutions))


def ratios(rates: Sequence[float], base: Sequence[float]) -> list[float]:
    """Return a flavour's rate over the first one's, of each round."""
    return [a / b for a, b in zip(rates, base, strict=True)]


def ratio(row: Row, base: Row) -> float | None:
    """Return the median over the rounds of a flavour's rate over the first one's."""
    return statistics.median(ratios(row.ips, base.ips)) if row.ips else None


def markdown(rows: Sequence[Row]) -> str:
    """Return the table; AP in points of 100, differences and ratios to the first row."""
    lines = [
        "| | AP | difference | AP50 | file, MB | of FP32 | images/s | ratio | convolutions run in |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    base = rows[0]
    for row in rows:
        ap = difference = ap50 = ips = faster = "-"
        if row.ap is not None and row.ap50 is not None and base.ap is not None:
            ap, ap50 = f"{100 * row.ap:.2f}", f"{100 * row.ap50:.2f}"
            difference = f"{100 * (row.ap - base.ap):+.2f}"
        if row.ips:
            ips, faster = f"{statistics.median(row.ips):.2f}", f"{ratio(row, base):.2f}"
        types = ", ".join(f"{count} {kind}" for kind, count in sorted(row.convolutions.items()))
        share = f"{row.megabytes / base.megabytes:.2f}"
        cells = (row.name, ap, difference, ap50, f"{row.megabytes:.1f}", share, ips, faster, types)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def to_dict(rows: Sequence[Row], command: str) -> dict[str, Any]:
    """Return everything for JSON."""
    base, shown = rows[0], []
    for row in rows:
        difference = None if row.ap is None or base.ap is None else row.ap - base.ap
        sizes = {"size_ratio": row.megabytes / base.megabytes, "throughput_ratio": ratio(row, base)}
        shown.append({**asdict(row), "difference": difference, **sizes})
    return {"command": command, "machine": machine(), "rows": shown}


def random_spec(backbone: str, size: tuple[int, int]) -> DetectorSpec:
    """Return the detector of 80 classes that is timed where nothing is trained."""
    return DetectorSpec.create(
        [f"class {number}" for number in range(80)], size=size, backbone=backbone, norm="none"
    )


def random_checkpoint(backbone: str, path: Path, size: tuple[int, int]) -> None:
    """Write an untrained detector of 80 classes: it finds nothing, but takes as long as one that does."""
    import torch

    from retinaserve.training.checkpoint import Checkpoint, save
    from retinaserve.training.model import build_model

    spec = random_spec(backbone, size)
    torch.manual_seed(0)
    save(path, Checkpoint(spec, build_model(spec).state_dict()))


def load_of(analyzer: PerfAnalyzer, endpoint: Endpoint, demand: Demand, seconds: float) -> Load:
    """Put a load on a server. Raises UserError where it does not bear it."""
    try:
        return analyzer.run(endpoint, demand, seconds=seconds)
    except LoadError as error:
        raise UserError(
            f"the server at {endpoint} did not bear the load: {error}", "try more --seconds, or a quiet machine"
        ) from error


def _images(options: Options) -> list[bytes]:
    truth = scored_labels(options.annotations, options.images) if options.annotations else None
    files = list(annotated_files(truth, options.images).values()) if truth else find_images([options.images])
    return [data for data in read_files(spread(files, MOST_IMAGES)) if isinstance(data, bytes)]
