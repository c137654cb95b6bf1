"""What serving costs: a detector through Triton against a plain loop in one process, in one run.

    python -m retinaserve.scripts.lab.efficiency --output runs/bench --precision int8

The loop does what the server does (the same DALI definition, the same graph, the same threads) with one image at
a time and nothing around it: 1 / (decode + engine time) is its rate. Loop and server take turns, and ratios are
taken within a turn, because machines drift. The weights are random: only time is measured, no accuracy.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from retinaserve.build_tools.export import ExportOptions, export_detector
from retinaserve.build_tools.graph.onnx_io import OnnxGraph
from retinaserve.build_tools.openvino_cpu import compile_for_cpu
from retinaserve.build_tools.preprocess import Prepared, Preprocessor
from retinaserve.build_tools.quantize.calibrate import Int8Options
from retinaserve.build_tools.repository.builder import build_repository
from retinaserve.build_tools.repository.configs import INT8_ARITHMETIC, BuildOptions
from retinaserve.eval.bench.perf_analyzer import Demand, PerfAnalyzer
from retinaserve.eval.client.client import Client
from retinaserve.eval.client.transport import Endpoint
from retinaserve.scripts.lab import run
from retinaserve.scripts.precisions import random_checkpoint
from retinaserve.scripts.server.installation import usable_cores
from retinaserve.scripts.server.triton import ServerOptions, TritonServer
from retinaserve.scripts.shapes.draw import draw_dataset
from retinaserve.training.files import write_json
from retinaserve.training.machine import machine

IMAGES = 24


@dataclass(frozen=True)
class EfficiencyOptions:
    """What is measured and for how long."""

    backbone: str = "resnet18"
    size: int = 512
    precision: str = "fp32"  # or bf16, or int8: as `build --precision` has them
    rounds: int = 3
    seconds: float = 18.0  # of each load
    concurrency: int = 4  # of the load that saturates


@dataclass(frozen=True)
class Loop:
    """Milliseconds an image in the plain loop; means, and the median of the sum."""

    decode: float
    engine: float
    p50: float


@dataclass(frozen=True)
class Turn:
    """One protocol in one round: the loop before it, and the server."""

    protocol: str
    loop: Loop
    throughput_ips: float
    p50_alone: float

    @property
    def efficiency(self) -> float:
        """The server's rate at saturation over the loop's."""
        return self.throughput_ips * (self.loop.decode + self.loop.engine) / 1000

    @property
    def added_ms(self) -> float:
        """What a lone request waits longer than in the loop, by the medians."""
        return self.p50_alone - self.loop.p50


class PlainLoop:
    """Decode and infer in this process, with the server's settings."""

    def __init__(self, graph: Path, images: Sequence[bytes], *, precision: str, threads: int) -> None:
        spec = OnnxGraph.read(graph).spec
        self._images = images
        self._preprocessor = Preprocessor(**spec.preprocessing, threads=threads)
        network = compile_for_cpu(str(graph), precision=precision, threads=threads)
        self._infer = network.create_infer_request()

    def run(self) -> Loop:
        """Process every image once, alone."""
        decode, engine = [], []
        for image in self._images:
            start = time.perf_counter()
            (prepared,) = self._preprocessor.run([image])
            assert isinstance(prepared, Prepared)
            between = time.perf_counter()
            self._infer.infer({"image": prepared.image[None], "letterbox": prepared.letterbox[None]})
            decode.append(1000 * (between - start))
            engine.append(1000 * (time.perf_counter() - between))
        both = [a + b for a, b in zip(decode, engine, strict=True)]
        return Loop(statistics.mean(decode), statistics.mean(engine), statistics.median(both))


def measure(output: Path, options: EfficiencyOptions) -> Iterator[Turn]:
    """Build the detector if it is not there, then yield every turn and write efficiency.json."""
    folder = output / f"{options.backbone}_{options.size}"
    name = "model_int8.onnx" if options.precision == "int8" else "model.onnx"
    graph, repository = folder / name, folder / f"repository_{options.precision}"
    images = _prepare(graph, repository, options)
    threads = usable_cores()
    loop = PlainLoop(graph, images, precision=_arithmetic(options), threads=threads)
    turns = []
    free = ServerOptions.free_ports(threads=threads)
    with TritonServer(repository, free) as server, PerfAnalyzer("detector", images) as analyzer:
        server.wait_until_ready()
        loop.run()
        with Client(server.grpc_url, timeout=300) as client:
            client.predict(images)
        endpoints = [Endpoint.parse(server.grpc_url), Endpoint.parse(f"http://{server.http_url}")]
        for _ in range(options.rounds):
            for endpoint in endpoints:
                plain = loop.run()
                alone = analyzer.run(endpoint, Demand(1), seconds=options.seconds)
                full = analyzer.run(endpoint, Demand(options.concurrency), seconds=options.seconds)
                turns.append(Turn(endpoint.protocol, plain, full.throughput_ips, alone.p50))
                yield turns[-1]
    write_json(output / f"efficiency_{options.precision}.json", report(turns, options))


def report(turns: Sequence[Turn], options: EfficiencyOptions) -> dict[str, Any]:
    """Return the turns, and the median ratio of each protocol."""
    medians = {}
    for protocol in dict.fromkeys(turn.protocol for turn in turns):
        own = [turn for turn in turns if turn.protocol == protocol]
        medians[protocol] = {
            "efficiency": round(statistics.median(turn.efficiency for turn in own), 3),
            "added_ms": round(statistics.median(turn.added_ms for turn in own), 2),
            "throughput_ips": round(statistics.median(turn.throughput_ips for turn in own), 2),
        }
    rows = [{**asdict(turn), "efficiency": turn.efficiency, "added_ms": turn.added_ms} for turn in turns]
    return {"options": asdict(options), "machine": machine(), "medians": medians, "turns": rows}


def _prepare(graph: Path, repository: Path, options: EfficiencyOptions) -> list[bytes]:
    """Make images, graph and repository where they are missing."""
    drawn = graph.parent / "images"
    if not (drawn / "annotations.json").is_file():
        draw_dataset(drawn, images=IMAGES, seed=0)
    if not graph.is_file():
        _export_random(graph, options, drawn / "images")
    if not repository.is_dir():
        build_repository(graph, repository, options=BuildOptions(_arithmetic(options)))
    return [path.read_bytes() for path in sorted((drawn / "images").iterdir())]


def _arithmetic(options: EfficiencyOptions) -> str:
    """Return what is computed in where the graph is float."""
    return INT8_ARITHMETIC if options.precision == "int8" else options.precision


def _export_random(graph: Path, options: EfficiencyOptions, images: Path) -> None:
    checkpoint = graph.with_name("random.pth")
    random_checkpoint(options.backbone, checkpoint, (options.size, options.size))
    int8 = Int8Options(images, calibrator="minmax") if options.precision == "int8" else None
    export_detector(checkpoint, graph, ExportOptions(int8=int8))
    checkpoint.unlink()


def main() -> None:
    """Compare Triton with a plain loop in one process: same images, same graph, same threads."""
    usual = EfficiencyOptions()
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--output", type=Path, default=Path("runs/bench"), help="Where models and results go.")
    parser.add_argument("--size", type=int, default=usual.size, help="Input height and width.")
    parser.add_argument("--backbone", default=usual.backbone)
    parser.add_argument("--precision", choices=["fp32", "bf16", "int8"], default=usual.precision)
    parser.add_argument("--rounds", type=int, default=usual.rounds, help="Turns of loop and server per protocol.")
    parser.add_argument("--seconds", type=float, default=usual.seconds, help="Length of each load.")
    parser.add_argument("--concurrency", type=int, default=usual.concurrency, help="Requests in flight.")
    given = vars(parser.parse_args())
    output = given.pop("output")
    options = EfficiencyOptions(**given)
    columns = ("decode", "engine", "loop p50", "im/s", "p50 alone", "efficiency", "added ms")
    print(f"{'protocol':<9}" + "".join(f"{name:>12}" for name in columns), file=sys.stderr)
    turns = []
    for turn in measure(output, options):
        turns.append(turn)
        row = f"{turn.loop.decode:12.1f}{turn.loop.engine:12.1f}{turn.loop.p50:12.1f}{turn.throughput_ips:12.2f}"
        row += f"{turn.p50_alone:12.1f}{turn.efficiency:12.3f}{turn.added_ms:12.2f}"
        print(f"{turn.protocol:<9}{row}", file=sys.stderr)
    what = f"{options.backbone} {options.size} x {options.size}, {options.precision}"
    for protocol, found in report(turns, options)["medians"].items():
        share = (
            f"{found['efficiency']:.3f} of the plain loop's rate, {found['added_ms']:+.2f} ms on a lone request"
        )
        print(f"{protocol}: {share} ({what}, medians of {options.rounds} rounds)")


if __name__ == "__main__":
    run(main)
