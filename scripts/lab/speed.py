"""How fast detectors of random weights are served: each backbone in each precision, and one beside a plain loop.

    python -m retinaserve.scripts.lab.speed backbones --output runs/model_table    # half an hour on two idle cores
    python -m retinaserve.scripts.lab.speed overhead --output runs/bench --precision int8
    python -m retinaserve.scripts.lab.speed ceiling --output runs/ceiling --size 800 1088

Random weights take as long as trained ones in the network, and find next to nothing. What is compared takes turns,
because machines drift, and ratios are taken within a turn.
"""

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import torch
from openvino import opset13 as ops
from torch.utils.flop_counter import FlopCounterMode

from retinaserve.build_tools.graph.onnx_io import OnnxGraph
from retinaserve.build_tools.openvino_cpu import HINTS, compile_for_cpu, shared_core
from retinaserve.build_tools.preprocess import Prepared, Preprocessor
from retinaserve.build_tools.quantize.calibrate import Int8Options
from retinaserve.build_tools.repository.builder import build
from retinaserve.build_tools.repository.configs import INT8_ARITHMETIC
from retinaserve.eval.bench.perf_analyzer import Demand, PerfAnalyzer
from retinaserve.eval.client.client import Client
from retinaserve.eval.client.transport import Endpoint
from retinaserve.scripts.lab import run
from retinaserve.scripts.precisions import load_of, random_checkpoint, random_spec, ratios
from retinaserve.scripts.server.installation import usable_cores
from retinaserve.scripts.server.triton import ServerOptions, TritonServer, ask_to_stop
from retinaserve.scripts.shapes.draw import draw_dataset
from retinaserve.training.files import write_json
from retinaserve.training.layouts import BACKBONES
from retinaserve.training.machine import BF16_FLAGS, flags, machine
from retinaserve.training.model import build_model
from retinaserve.training.spec import DETECTOR, RETINANET, DetectorSpec
from retinaserve.training.trainer.record import git_commit

IMAGES, CALIBRATION = 12, 4  # of random weights only the time matters, so few images will do
ALONE, FULL = Demand(1), Demand(4)  # requests in flight: for latency, and for throughput
READY = 600.0  # seconds
HEADER = """\
| backbone | parameters, M | GFLOPs | precision | file, MB | request, ms | images/s | x fp32 |
|---|---:|---:|---|---:|---:|---:|---:|"""
COLUMNS = ("decode", "engine", "loop p50", "im/s", "p50 alone", "efficiency", "added ms")
Turn = Mapping[str, Any]
Served = tuple[list[TritonServer], list[bytes]]


@contextmanager
def served(backbone: str, size: int, precisions: Sequence[str]) -> Iterator[Served]:
    """Serve a backbone of random weights in each of the precisions; give the servers, warmed up, and images."""
    with tempfile.TemporaryDirectory(prefix="retinaserve-") as scratch, ExitStack() as stack:
        folder, servers = Path(scratch), list[TritonServer]()
        random_checkpoint(backbone, folder / "model.pth", (size, size))
        drawn = draw_dataset(folder / "drawn", images=IMAGES, seed=0).images
        images = [path.read_bytes() for path in sorted(drawn.iterdir())]
        for precision in precisions:
            int8 = Int8Options(drawn, count=CALIBRATION, calibrator="minmax") if precision == "int8" else None
            repository = folder / precision
            build(folder / "model.pth", repository, precision=precision, calibration_images=int8)
            servers.append(stack.enter_context(TritonServer(repository, ServerOptions.free_ports())))
            servers[-1].wait_until_ready(READY)
            with Client(servers[-1].grpc_url, timeout=300) as client:
                client.predict(images)
        stack.callback(ask_to_stop, servers)
        yield servers, images


def graph_of(server: TritonServer) -> Path:
    """Return the graph that a server of one version serves."""
    return server.repository / RETINANET / "1" / "model.onnx"


def network_cost(spec: DetectorSpec) -> tuple[int, int]:
    """Return a detector's parameters, and the floating-point operations of one image up to the heads' outputs.

    A multiplication and an addition count as two. Nothing is computed: the tensors have shapes and no values.
    """
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model = build_model(spec).eval()
        model(torch.empty(1, 3, *spec.size))
    return sum(parameter.numel() for parameter in model.parameters()), counter.get_total_flops()


def measure(backbone: str, given: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Return a backbone's numbers by precision: megabytes, and of each round milliseconds and images/s."""
    precisions = ["fp32", *(["bf16"] if flags().intersection(BF16_FLAGS) else []), "int8"]
    with served(backbone, given.size, precisions) as (servers, images), PerfAnalyzer(DETECTOR, images) as analyzer:
        rows: dict[str, dict[str, Any]] = {
            precision: {"megabytes": graph_of(server).stat().st_size / 1e6, "request_ms": [], "ips": []}
            for precision, server in zip(precisions, servers, strict=True)
        }
        for number in range(1, given.rounds + 1):
            for row, server in zip(rows.values(), servers, strict=True):
                endpoint = Endpoint.parse(server.grpc_url)
                alone, full = (load_of(analyzer, endpoint, demand, given.seconds) for demand in (ALONE, FULL))
                row["request_ms"].append(alone.p50)
                row["ips"].append(full.throughput_ips)
            now = ", ".join(f"{name} {row['ips'][-1]:.2f}/s" for name, row in rows.items())
            print(f"{backbone}: round {number} of {given.rounds}: {now}", file=sys.stderr)
    return rows


def lines(backbone: str, size: int, rows: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Yield a backbone's rows of the table, one a precision."""
    parameters, operations = network_cost(random_spec(backbone, (size, size)))
    head = f"{backbone} | {parameters / 1e6:.1f} | {operations / 1e9:.0f}"
    for precision, row in rows.items():
        middle = [statistics.median(row[name]) for name in ("request_ms", "ips")]
        spread = ratios(row["ips"], rows["fp32"]["ips"])
        low, ratio, high = (f"{of(spread):.2f}" for of in (min, statistics.median, max))
        faster = ratio if low == high else f"{ratio} ({low} to {high})"
        numbers = f"{row['megabytes']:.1f} | {middle[0]:.0f} | {middle[1]:.2f} | {faster}"
        yield f"| {head} | {precision} | {numbers} |"
        head = " | | "


def backbones(given: argparse.Namespace) -> None:
    """Print what each backbone costs in each precision; what --output has of an earlier run is not done again."""
    print(HEADER)
    for backbone in given.backbone:
        kept = given.output / f"{backbone}-{given.size}.json"
        if not kept.is_file():
            about = {"machine": machine(), "git": git_commit(), "seconds": given.seconds}
            write_json(kept, {**about, "rows": measure(backbone, given)})
        for line in lines(backbone, given.size, json.loads(kept.read_text())["rows"]):
            print(line, flush=True)


class PlainLoop:
    """What the server does, with its settings, in this process: one image at a time and nothing around it."""

    def __init__(self, graph: Path, images: Sequence[bytes], precision: str) -> None:
        threads = usable_cores()
        self._images = images
        self._preprocessor = Preprocessor(**OnnxGraph.read(graph).spec.preprocessing, threads=threads)
        self._infer = compile_for_cpu(str(graph), precision=precision, threads=threads).create_infer_request()

    def run(self) -> dict[str, float]:
        """Process every image; return the mean milliseconds of both steps, and the median of their sum."""
        decode, engine = [], []
        for image in self._images:
            start = time.perf_counter()
            (prepared,) = self._preprocessor.run([image])
            assert isinstance(prepared, Prepared)
            between = time.perf_counter()
            self._infer.infer({"image": prepared.image[None], "letterbox": prepared.letterbox[None]})
            decode.append(1000 * (between - start))
            engine.append(1000 * (time.perf_counter() - between))
        both = statistics.median(a + b for a, b in zip(decode, engine, strict=True))
        return {"decode": statistics.mean(decode), "engine": statistics.mean(engine), "loop p50": both}


def turns(given: argparse.Namespace) -> Iterator[Turn]:
    """Yield what loop and server did, in turns, by either protocol."""
    with (
        served(given.backbone, given.size, [given.precision]) as ([server], images),
        PerfAnalyzer(DETECTOR, images) as analyzer,
    ):
        arithmetic = INT8_ARITHMETIC if given.precision == "int8" else given.precision
        loop = PlainLoop(graph_of(server), images, arithmetic)
        loop.run()
        for _ in range(given.rounds):
            for url in (server.grpc_url, f"http://{server.http_url}"):
                endpoint, plain = Endpoint.parse(url), loop.run()
                alone, full = (load_of(analyzer, endpoint, demand, given.seconds) for demand in (ALONE, FULL))
                yield {
                    "protocol": endpoint.protocol,
                    **plain,
                    "im/s": full.throughput_ips,
                    "p50 alone": alone.p50,
                    "efficiency": full.throughput_ips * (plain["decode"] + plain["engine"]) / 1000,
                    "added ms": alone.p50 - plain["loop p50"],
                }


def overhead(given: argparse.Namespace) -> None:
    """Compare Triton with a plain loop in one process: same images, same graph, same threads."""
    print(f"{'protocol':<9}" + "".join(f"{name:>12}" for name in COLUMNS), file=sys.stderr)
    done = []
    for turn in turns(given):
        done.append(turn)
        print(f"{turn['protocol']:<9}" + "".join(f"{turn[name]:>12.3f}" for name in COLUMNS), file=sys.stderr)
    write_json(given.output / f"efficiency_{given.precision}.json", {"machine": machine(), "turns": done})
    for protocol in dict.fromkeys(turn["protocol"] for turn in done):
        own = [turn for turn in done if turn["protocol"] == protocol]
        share, added = (statistics.median(turn[name] for turn in own) for name in ("efficiency", "added ms"))
        what = f"{given.backbone} {given.size} x {given.size}, {given.precision}, medians of {given.rounds} rounds"
        print(f"{protocol}: {share:.3f} of the plain loop's rate, {added:+.2f} ms on a lone request ({what})")


def ceiling(given: argparse.Namespace) -> None:
    """Compare a ResNet50's operations with what a core does at its best: a head's convolutions of 256 channels."""
    classes = [str(index) for index in range(given.classes)]
    _, cost = network_cost(DetectorSpec.create(classes, size=tuple(given.size), backbone="resnet50"))
    shape, kernel, depth = (1, 256, 104, 136), (256, 256, 3, 3), 6
    random = np.random.default_rng(0)
    none, low, high = (np.float32(value) for value in (0, -0.1, 0.1))
    rows: dict[str, Any] = {"operations": cost, **machine()}
    for precision in ("fp32", "bf16", "int8"):
        found = image = ops.parameter(list(shape), np.float32)
        for _ in range(depth):
            weights = ops.constant(random.normal(0, 0.02, kernel).astype(np.float32))
            if precision == "int8":
                found = ops.fake_quantize(found, none, high, none, high, 256)
                weights = ops.fake_quantize(weights, low, high, low, high, 255)
            found = ops.relu(ops.convolution(found, weights, [1, 1], [1, 1], [1, 1], [1, 1]))
        hint = HINTS["fp32" if precision == "fp32" else "bf16"]
        settings = {"INFERENCE_NUM_THREADS": "1", "INFERENCE_PRECISION_HINT": hint}
        network = shared_core().compile_model(openvino.Model([found], [image]), "CPU", settings)
        values, seconds = random.random(shape, np.float32), []
        for _ in range(10):
            start = time.perf_counter()
            network(values)
            seconds.append(time.perf_counter() - start)
        rows[precision] = rate = depth * 2 * math.prod(kernel) * math.prod(shape[2:]) / min(seconds)
        print(f"{precision}: {rate / 1e9:.0f} GOP/s a core: {cost / 1e9:.0f} GFLOP in {cost / rate:.2f} CPU s")
    write_json(given.output / "ceiling.json", rows)


def main(words: Sequence[str] | None = None) -> None:
    """Measure one of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(required=True)

    def verb(work: Callable[[argparse.Namespace], None], size: int, seconds: float) -> argparse.ArgumentParser:
        added = verbs.add_parser(work.__name__, description=work.__doc__)
        added.set_defaults(work=work)
        added.add_argument("--output", type=Path, required=True, help="Where the numbers are kept.")
        added.add_argument("--size", type=int, default=size, help="Input height and width.")
        added.add_argument("--rounds", type=int, default=3, help="Turns.")
        added.add_argument("--seconds", type=float, default=seconds, help="Length of each load.")
        return added

    verb(backbones, 640, 10.0).add_argument("--backbone", choices=BACKBONES, nargs="*", default=[*BACKBONES])
    plain = verb(overhead, 512, 18.0)
    plain.add_argument("--backbone", default="resnet18")
    plain.add_argument("--precision", choices=["fp32", "bf16", "int8"], default="fp32")
    best = verbs.add_parser("ceiling", description=ceiling.__doc__)
    best.set_defaults(work=ceiling)
    best.add_argument("--output", type=Path, required=True, help="Where the numbers are kept.")
    best.add_argument("--size", type=int, nargs=2, default=(800, 1088), help="Input height and width.")
    best.add_argument("--classes", type=int, default=90, help="Of the network.")
    given = parser.parse_args(words)
    given.work(given)


if __name__ == "__main__":
    run(main)
