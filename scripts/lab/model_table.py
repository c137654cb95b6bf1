"""What every backbone costs on this machine in every precision, and what the detectors trained here reach.

    table = Table.open(Path("runs/model_table"), Options())     # goes on where an interrupted run stopped
    measure(table, "resnet18", say=print)
    score(table, Trained("shapes", checkpoint, images, annotations, calibration), say=print)

Times are of random weights: they take as long as trained ones in the network, and find next to nothing. The
flavours of a backbone stand side by side and take turns, so a ratio holds within a backbone; between backbones the
machine may have changed. It writes no page (scripts/lab/model_table_page.py), and measures no GPU.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from retinaserve.eval.bench.bench import Bench, machine
from retinaserve.eval.bench.perf_analyzer import Demand
from retinaserve.eval.client.transport import Endpoint
from retinaserve.scripts.doctor.machine import BF16_FLAGS, flags
from retinaserve.scripts.precisions import Options as Comparison
from retinaserve.scripts.precisions import compare, random_checkpoint
from retinaserve.scripts.server.installation import usable_cores
from retinaserve.scripts.server.triton import ServerOptions, TritonServer, ask_to_stop
from retinaserve.training.errors import Exit, UserError
from retinaserve.training.files import write_json
from retinaserve.training.spec import RETINANET, DetectorSpec
from retinaserve.training.trainer.config import git_commit

Say = Callable[[str], None]
PRECISIONS = ("fp32", "bf16", "int8")
PICTURES, CALIBRATION = 8, 4  # of random weights only the time matters, so few pictures will do
ALONE, FULL = 1, 4  # requests in flight: for latency, and for throughput
FORMAT = 1


@dataclass(frozen=True)
class Options:
    """What all rows of a table have in common."""

    size: int = 640
    rounds: int = 3
    seconds: float = 10.0  # of each load


@dataclass
class Flavour:
    """A backbone in one precision; a list has one number a round."""

    precision: str
    megabytes: float  # of the ONNX file
    model_ms: list[float] = field(default_factory=list)  # in the graph, alone, by the server's own clock
    request_ms: list[float] = field(default_factory=list)  # median from bytes to boxes, alone
    ips: list[float] = field(default_factory=list)  # with FULL requests in flight


@dataclass(frozen=True)
class Trained:
    """A checkpoint and what to score it on; `calibration` is a folder of pictures or a COCO JSON."""

    name: str
    checkpoint: Path
    images: Path
    annotations: Path
    calibration: Path

    def check(self) -> None:
        """Raise UserError for what is not there."""
        for path in (self.checkpoint, self.images, self.annotations, self.calibration):
            if not path.exists():
                raise UserError(
                    f"--trained {self.name}: {path}: no such file or folder",
                    "NAME CHECKPOINT IMAGES ANNOTATIONS CALIBRATION are expected, in this order",
                    code=Exit.USAGE,
                )


@dataclass
class Scored:
    """What a trained detector reaches through the server, of 1, by precision."""

    spec: str
    megabytes: dict[str, float]
    ap: dict[str, float | None]
    ap50: dict[str, float | None]


@dataclass
class Table:
    """All that was measured so far, kept in a file of the working folder after every row."""

    folder: Path
    options: Options
    backbones: dict[str, list[Flavour]] = field(default_factory=dict)
    trained: dict[str, Scored] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=lambda: _about())

    @classmethod
    def open(cls, folder: Path, options: Options) -> Self:
        """Return the table of a folder, or an empty one. Raises UserError for one of other options."""
        table = cls(folder, options)
        path = table.path
        if not path.is_file():
            return table
        try:
            stored = json.loads(path.read_text())
            if stored["format"] != FORMAT:
                raise KeyError("format")
            known = Options(**stored["options"])
            table.backbones = {
                name: [Flavour(**row) for row in rows] for name, rows in stored["backbones"].items()
            }
            table.trained = {name: Scored(**row) for name, row in stored["trained"].items()}
            # Results of several commits stand side by side where a run went on.
            first, now = stored["about"], _about()
            table.about = now | {
                key: first[key]
                if first[key].endswith(now[key])
                else f"{first[key].split(' to ')[0]} to {now[key]}"
                for key in ("commit", "date")
            }
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(
                f"{path}: not the results of an earlier run", "remove it, or name another --work"
            ) from None
        differing = [
            each.name for each in fields(known) if getattr(known, each.name) != getattr(options, each.name)
        ]
        if differing:
            was = ", ".join(f"--{name} {getattr(known, name)}" for name in differing)
            raise UserError(
                f"{path} was measured with {was}",
                "give the same to go on with it, name another --work, or remove the file",
                code=Exit.USAGE,
            )
        return table

    @property
    def path(self) -> Path:
        """The file with all numbers."""
        return self.folder / "model_table.json"

    def save(self) -> None:
        """Write the file by one rename."""
        write_json(self.path, self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """Return everything for JSON."""
        return {
            "format": FORMAT,
            "options": asdict(self.options),
            "about": self.about,
            "backbones": {name: [asdict(row) for row in rows] for name, rows in self.backbones.items()},
            "trained": {name: asdict(row) for name, row in self.trained.items()},
        }


def network_cost(spec: DetectorSpec) -> tuple[int, int]:
    """Return a detector's parameters, and the floating-point operations of one picture up to the heads' outputs.

    A multiplication and an addition count as two. Nothing is computed: the tensors have shapes and no values.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from retinaserve.training.model import build_model

    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model = build_model(spec).eval()
        model(torch.empty(1, 3, *spec.size))
    return sum(parameter.numel() for parameter in model.parameters()), counter.get_total_flops()


def measure(table: Table, backbone: str, *, say: Say) -> list[Flavour]:
    """Export, build, serve and time a backbone in every precision of this processor, and store it in the table."""
    options, folder = table.options, table.folder / backbone
    pictures = _pictures(table.folder)
    rows, servers = list[Flavour](), list[TritonServer]()
    try:
        with ExitStack() as stack:
            for precision, graph, repository in _build(backbone, folder, pictures, options, say):
                servers.append(stack.enter_context(TritonServer(repository, _free())))
                servers[-1].wait_until_ready(600)
                rows.append(Flavour(precision, graph.stat().st_size / 1e6))
            stack.callback(ask_to_stop, servers)
            files = sorted(pictures.iterdir())
            benches = [Bench.prepare([Endpoint.parse(server.grpc_url)], files) for server in servers]
            for number in range(1, options.rounds + 1):
                for row, bench in zip(rows, benches, strict=True):
                    _load(row, bench, options.seconds, backbone)
                said = ", ".join(f"{row.precision} {row.model_ms[-1]:.0f} ms {row.ips[-1]:.2f}/s" for row in rows)
                say(f"{backbone}: round {number} of {options.rounds}: {said}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # a gigabyte for the large ones
    table.backbones[backbone] = rows
    table.save()
    return rows


def score(table: Table, trained: Trained, *, say: Say) -> Scored:
    """Score a checkpoint in FP32 and INT8 through the server, and store it in the table."""
    from retinaserve.build_tools.quantize.calibrate import Int8Options
    from retinaserve.training.checkpoint import load

    spec, int8 = load(trained.checkpoint).spec, Int8Options(trained.calibration)
    comparison = Comparison(
        table.folder / f"trained_{trained.name}",
        trained.images,
        trained.annotations,
        int8,
        calibrators=(int8.calibrator,),
        in_f32=False,
        rounds=0,
    )
    rows = compare(trained.checkpoint, comparison, say=lambda text: say(f"{trained.name}: {text}"))
    shutil.rmtree(comparison.output)
    named = {row.name.split()[0]: row for row in rows}
    found = Scored(
        spec.to_json(),
        {name: row.megabytes for name, row in named.items()},
        {name: row.ap for name, row in named.items()},
        {name: row.ap50 for name, row in named.items()},
    )
    table.trained[trained.name] = found
    table.save()
    return found


def _build(
    backbone: str, folder: Path, pictures: Path, options: Options, say: Say
) -> Iterator[tuple[str, Path, Path]]:
    """Yield precision, graph and repository; bf16 is the float graph, computed otherwise."""
    from retinaserve.build_tools.export import ExportOptions, export_detector
    from retinaserve.build_tools.quantize.calibrate import Int8Options
    from retinaserve.build_tools.repository.builder import build_repository
    from retinaserve.build_tools.repository.configs import INT8_ARITHMETIC, BuildOptions

    shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
    checkpoint, plain, quantized = (folder / name for name in ("random.pth", "fp32.onnx", "int8.onnx"))
    random_checkpoint(backbone, checkpoint, (options.size, options.size))
    say(f"{backbone}: export")
    export_detector(checkpoint, plain)
    yield "fp32", plain, build_repository(plain, folder / "fp32").repository
    if flags().intersection(BF16_FLAGS):
        yield "bf16", plain, build_repository(plain, folder / "bf16", options=BuildOptions("bf16")).repository
    say(f"{backbone}: calibrate")
    int8 = Int8Options(pictures, count=CALIBRATION, calibrator="minmax")
    export_detector(checkpoint, quantized, ExportOptions(int8=int8))
    yield (
        "int8",
        quantized,
        build_repository(quantized, folder / "int8", options=BuildOptions(INT8_ARITHMETIC)).repository,
    )


def _load(row: Flavour, bench: Bench, seconds: float, backbone: str) -> None:
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


def _pictures(folder: Path) -> Path:
    from retinaserve.scripts.shapes.draw import draw_dataset

    drawn = folder / "pictures"
    if not (drawn / "annotations.json").is_file():
        draw_dataset(drawn, images=PICTURES, seed=0)
    return drawn / "images"


def _about() -> dict[str, Any]:
    """Return where, when and by which code a table was begun."""
    commit = git_commit() or {"commit": "unknown"}
    return {**machine(), "date": datetime.now(UTC).date().isoformat(), "commit": commit["commit"][:7]}


def _free() -> ServerOptions:
    return ServerOptions.free_ports(threads=usable_cores())
