"""What every backbone costs on this machine in every precision, as a Markdown table.

    python -m retinaserve.scripts.lab.model_table --work runs/model_table      # half an hour on two idle cores

Times are of random weights: they take as long as trained ones in the network, and find next to nothing. The
precisions of a backbone are served side by side and take turns, so a ratio holds within a backbone; between
backbones the machine may have changed. What is measured is kept: the same command goes on where it stopped.
"""

import argparse
import json
import shutil
import statistics
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Self

import torch
from torch.utils.flop_counter import FlopCounterMode

from retinaserve.build_tools.export import ExportOptions, export_detector
from retinaserve.build_tools.quantize.calibrate import Int8Options
from retinaserve.build_tools.repository.builder import build_repository
from retinaserve.build_tools.repository.configs import INT8_ARITHMETIC, BuildOptions
from retinaserve.eval.bench.bench import Bench
from retinaserve.eval.bench.perf_analyzer import Demand
from retinaserve.eval.client.transport import Endpoint
from retinaserve.scripts.drills.fixture import Log
from retinaserve.scripts.lab import run
from retinaserve.scripts.precisions import random_checkpoint, random_spec, ratios
from retinaserve.scripts.server.installation import usable_cores
from retinaserve.scripts.server.triton import ServerOptions, TritonServer, ask_to_stop
from retinaserve.scripts.shapes.draw import draw_dataset
from retinaserve.training.errors import Exit, UserError
from retinaserve.training.files import write_json
from retinaserve.training.layouts import BACKBONES
from retinaserve.training.machine import BF16_FLAGS, flags, machine
from retinaserve.training.model import build_model
from retinaserve.training.spec import RETINANET, DetectorSpec
from retinaserve.training.trainer.record import git_commit

IMAGES, CALIBRATION = 8, 4  # of random weights only the time matters, so few images will do
ALONE, FULL = 1, 4  # requests in flight: for latency, and for throughput
HEADER = """\
| backbone | parameters, M | GFLOPs | precision | file, MB | model, ms | request, ms | images/s | x fp32 |
|---|---:|---:|---|---:|---:|---:|---:|---:|"""


@dataclass(frozen=True)
class Options:
    """What all rows of a table have in common."""

    size: int = 640
    rounds: int = 3
    seconds: float = 10.0  # of each load


@dataclass
class Row:
    """A backbone in one precision; a list has one number a round."""

    precision: str
    megabytes: float  # of the ONNX file
    model_ms: list[float] = field(default_factory=list)  # in the graph, alone, by the server's own clock
    request_ms: list[float] = field(default_factory=list)  # median from bytes to boxes, alone
    ips: list[float] = field(default_factory=list)  # with FULL requests in flight


@dataclass
class Table:
    """All that was measured so far, kept in a file of the working folder after every backbone."""

    folder: Path
    options: Options
    backbones: dict[str, list[Row]] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path, options: Options) -> Self:
        """Return the table of a folder, or an empty one. Raises UserError for one of other options."""
        table = cls(folder, options)
        if not table.path.is_file():
            return table
        try:
            stored = json.loads(table.path.read_text())
            same = Options(**stored["options"]) == options
            table.backbones = {name: [Row(**row) for row in rows] for name, rows in stored["backbones"].items()}
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f"{table.path}: not the results of an earlier run", "remove it") from None
        if not same:
            raise UserError(
                f"{table.path} was measured with {stored['options']}",
                "give the same to go on with it, name another --work, or remove the file",
                code=Exit.USAGE,
            )
        return table

    @property
    def path(self) -> Path:
        """The file with all numbers."""
        return self.folder / "model_table.json"

    def save(self) -> None:
        """Write the file."""
        rows = {name: [asdict(row) for row in rows] for name, rows in self.backbones.items()}
        about = {**machine(), "date": datetime.now(UTC).date().isoformat(), "git": git_commit()}
        write_json(self.path, {"options": asdict(self.options), "about": about, "backbones": rows})


def network_cost(spec: DetectorSpec) -> tuple[int, int]:
    """Return a detector's parameters, and the floating-point operations of one image up to the heads' outputs.

    A multiplication and an addition count as two. Nothing is computed: the tensors have shapes and no values.
    """
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model = build_model(spec).eval()
        model(torch.empty(1, 3, *spec.size))
    return sum(parameter.numel() for parameter in model.parameters()), counter.get_total_flops()


def measure(table: Table, backbone: str, *, log: Log) -> list[Row]:
    """Export, build, serve and time a backbone in every precision of this processor, and store it in the table."""
    options, folder = table.options, table.folder / backbone
    drawn = table.folder / "drawn"
    if not (drawn / "annotations.json").is_file():
        draw_dataset(drawn, images=IMAGES, seed=0)
    rows, servers = list[Row](), list[TritonServer]()
    try:
        with ExitStack() as stack:
            for precision, graph, repository in _build(backbone, folder, drawn / "images", options, log):
                free = ServerOptions.free_ports(threads=usable_cores())
                servers.append(stack.enter_context(TritonServer(repository, free)))
                servers[-1].wait_until_ready(600)
                rows.append(Row(precision, graph.stat().st_size / 1e6))
            stack.callback(ask_to_stop, servers)
            files = sorted((drawn / "images").iterdir())
            benches = [Bench.prepare([Endpoint.parse(server.grpc_url)], files) for server in servers]
            for number in range(1, options.rounds + 1):
                for row, bench in zip(rows, benches, strict=True):
                    _load(row, bench, options.seconds, backbone)
                times = ", ".join(f"{row.precision} {row.model_ms[-1]:.0f} ms {row.ips[-1]:.2f}/s" for row in rows)
                log(f"{backbone}: round {number} of {options.rounds}: {times}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # a gigabyte for the large ones
    table.backbones[backbone] = rows
    table.save()
    return rows


def _build(
    backbone: str, folder: Path, images: Path, options: Options, log: Log
) -> Iterator[tuple[str, Path, Path]]:
    """Yield precision, graph and repository; bf16 is the float graph, computed otherwise."""
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
    checkpoint, plain, quantized = (folder / name for name in ("random.pth", "fp32.onnx", "int8.onnx"))
    random_checkpoint(backbone, checkpoint, (options.size, options.size))
    log(f"{backbone}: export")
    export_detector(checkpoint, plain)
    yield "fp32", plain, build_repository(plain, folder / "fp32").repository
    if flags().intersection(BF16_FLAGS):
        yield "bf16", plain, build_repository(plain, folder / "bf16", options=BuildOptions("bf16")).repository
    log(f"{backbone}: calibrate")
    int8 = Int8Options(images, count=CALIBRATION, calibrator="minmax")
    export_detector(checkpoint, quantized, ExportOptions(int8=int8))
    built = build_repository(quantized, folder / "int8", options=BuildOptions(INT8_ARITHMETIC))
    yield "int8", quantized, built.repository


def _load(row: Row, bench: Bench, seconds: float, backbone: str) -> None:
    """Add a round. Raises UserError where the server did not bear it."""
    alone, full = bench.run([Demand(ALONE), Demand(FULL)], seconds=seconds)
    for level in (alone, full):
        if level.load is None:
            raise UserError(
                f"{backbone}, {row.precision}: {level.problem}",
                "is the machine busy with something else? The backbones before this one are kept",
                code=Exit.CHECK_FAILED,
            )
    assert alone.load and full.load
    row.model_ms.append(alone.steps[RETINANET].infer_ms)
    row.request_ms.append(alone.load.p50)
    row.ips.append(full.load.throughput_ips)


def lines(table: Table, backbone: str) -> Iterator[str]:
    """Yield a backbone's rows, one a precision; dashes where nothing was measured."""
    parameters, operations = network_cost(random_spec(backbone, (table.options.size,) * 2))
    head = [backbone, f"{parameters / 1e6:.1f}", f"{operations / 1e9:.0f}"]
    rows = table.backbones.get(backbone, [])
    for row in rows:
        yield _line(
            [
                *(head if row is rows[0] else ["", "", ""]),
                row.precision,
                f"{row.megabytes:.1f}",
                f"{statistics.median(row.model_ms):.0f}",
                f"{statistics.median(row.request_ms):.0f}",
                f"{statistics.median(row.ips):.2f}",
                _spread(ratios(row.ips, rows[0].ips)),
            ]
        )
    if not rows:
        yield _line([*head, *"-" * 6])


def _spread(values: Sequence[float]) -> str:
    """Return the median, and how far the rounds lie apart if that shows in two decimals."""
    lowest, median, highest = (f"{of(values):.2f}" for of in (min, statistics.median, max))
    return median if lowest == highest else f"{median} ({lowest} to {highest})"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Measure every backbone in every precision through the server, and print the table."""
    usual = Options()
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--work", type=Path, default=Path("runs/model_table"), help="Where results are kept.")
    parser.add_argument("--backbone", choices=[*BACKBONES], nargs="*", default=[*BACKBONES], help="Only these.")
    parser.add_argument("--size", type=int, default=usual.size, help="Input height and width.")
    parser.add_argument("--rounds", type=int, default=usual.rounds, help="Turns of a backbone's precisions.")
    parser.add_argument("--seconds", type=float, default=usual.seconds, help="Length of each load; two a turn.")
    given = parser.parse_args()
    table = Table.open(given.work, Options(given.size, given.rounds, given.seconds))
    for backbone in given.backbone:
        if backbone not in table.backbones:
            measure(table, backbone, log=partial(print, file=sys.stderr))
    print(HEADER, *(line for backbone in given.backbone for line in lines(table, backbone)), sep="\n")


if __name__ == "__main__":
    run(main)
