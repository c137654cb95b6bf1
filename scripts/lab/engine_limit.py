"""How many images/s the network alone allows on this machine: no server around it can answer more.

    engine_limit(Path("model.onnx"), threads=2, precision="bf16", seconds=10)  # {"together": 13.1, "apart": 14.0}

    python -m retinaserve.scripts.lab.engine_limit before.onnx after.onnx    # side by side
    python -m retinaserve.scripts.lab.engine_limit model.onnx --profile    # where a core's time goes

Inputs are ready and outputs unread. It says nothing about decoding, which takes the same cores.
"""

import argparse
import statistics
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

LEAST = 0.1  # milliseconds of an operator that is worth a word


class Network:
    """A graph compiled as it is served; `streams` pictures at a time share the threads."""

    def __init__(self, graph: Path, *, threads: int, precision: str, streams: int, profile: bool = False) -> None:
        from retinaserve.build_tools.graph.onnx_io import OnnxGraph
        from retinaserve.build_tools.openvino_cpu import compile_for_cpu

        height, width = OnnxGraph.read(graph).spec.size
        # Noise, so nothing is detected and decode and NMS cost their least.
        self._inputs = {
            "image": np.random.default_rng(0).integers(0, 256, (1, 3, height, width), dtype=np.uint8),
            "letterbox": np.asarray([[height, width, height, width]], np.float32),
        }
        compiled = compile_for_cpu(
            str(graph), precision=precision, threads=threads, streams=streams, profile=profile
        )
        self._requests: list[Any] = [compiled.create_infer_request() for _ in range(streams)]
        for request in self._requests:  # the first run of each is slower
            request.infer(self._inputs)

    def operators(self, runs: int = 15) -> dict[str, float]:
        """Return the milliseconds of each kind of operator in a picture, the largest first; needs `profile`.

        Medians over the runs of each operator, added up.
        """
        (request,) = self._requests
        spent: dict[tuple[str, str], list[float]] = {}
        for _ in range(runs):
            request.infer(self._inputs)
            for operator in request.get_profiling_info():
                key = (operator.node_type, operator.node_name)
                spent.setdefault(key, []).append(1000 * operator.real_time.total_seconds())
        kinds: defaultdict[str, float] = defaultdict(float)
        for (kind, _), times in spent.items():
            kinds[kind] += statistics.median(times)
        return dict(sorted(kinds.items(), key=lambda item: -item[1]))

    def rate(self, seconds: float) -> float:
        """Return the images/s."""
        for request in self._requests:
            request.start_async(self._inputs)
        done, start = 0, time.perf_counter()
        while (spent := time.perf_counter() - start) < seconds:
            request = self._requests[done % len(self._requests)]
            request.wait()
            request.start_async(self._inputs)
            done += 1
        for request in self._requests:
            request.wait()
        return done / spent


def engine_limit(graph: Path, *, threads: int, precision: str, seconds: float) -> dict[str, float]:
    """Return the images/s of OpenVINO with all cores on one picture, and with a core a picture."""
    ways = (("together", 1), ("apart", threads))
    return {
        name: round(Network(graph, threads=threads, precision=precision, streams=streams).rate(seconds), 2)
        for name, streams in ways
    }


def main() -> None:
    """Compare graphs: they take turns of a moment, and a ratio is taken within a round, because machines drift."""
    from retinaserve.scripts.server.installation import usable_cores

    parser = argparse.ArgumentParser(description="The network alone, of several graphs in turns.")
    parser.add_argument("graphs", type=Path, nargs="+")
    parser.add_argument("--precision", default="f32", choices=["f32", "bf16"])
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--seconds", type=float, default=0.5, help="of a turn")
    parser.add_argument("--profile", action="store_true", help="the time of each kind of operator, on one core")
    options = parser.parse_args()
    if options.profile:
        for graph in options.graphs:
            network = Network(graph, threads=1, precision=options.precision, streams=1, profile=True)
            kinds = {kind: spent for kind, spent in network.operators().items() if spent >= LEAST}
            print(f"{graph}: {', '.join(f'{kind} {spent:.1f}' for kind, spent in kinds.items())} ms")  # noqa: T201
        return
    threads = usable_cores()
    for name, streams in (("all cores on a picture", 1), ("a core a picture", threads)):
        networks = [
            Network(graph, threads=threads, precision=options.precision, streams=streams)
            for graph in options.graphs
        ]
        rounds = [[network.rate(options.seconds) for network in networks] for _ in range(options.rounds)]
        for graph, rates in zip(options.graphs, zip(*rounds, strict=True), strict=True):
            ratio = statistics.median(rate / first[0] for rate, first in zip(rates, rounds, strict=True))
            print(f"{name}: {graph}: {statistics.median(rates):.2f} images/s, {ratio:.3f} of the first")  # noqa: T201


if __name__ == "__main__":
    main()
