"""The whole road on synthetic data: draw, train, export, build, serve, predict, evaluate, measure.

    run_demo(Path("runs/demo"))     # the summary, also in runs/demo/summary.json

Every step is a `retinaserve` command, printed before it runs, so each can be repeated by hand. What a previous,
interrupted run finished is kept; training goes on from its checkpoint. It is a tour, not a test: the numbers are
what this machine gives.
"""

import contextlib
import importlib.metadata
import json
import platform
import shlex
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from retinaserve.scripts.cli.output import INNER
from retinaserve.scripts.demo.recipe import DEMO, Recipe
from retinaserve.scripts.server.triton import ServerOptions, TritonServer
from retinaserve.training.errors import Exit, UserError
from retinaserve.training.files import write_json

PACKAGES = ("torch", "onnx", "onnxruntime", "openvino", "nvidia-dali-cuda120", "nvidia-pytriton", "tritonclient")
PICTURES = 12  # of the contact sheet
BENCH_CONCURRENCY, BENCH_SECONDS = "1:4", 3
INTERRUPTED, TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM


@dataclass
class Demo:
    """Where the demo writes, and how long its steps took."""

    root: Path
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def val(self) -> Path:
        """The held-out pictures."""
        return self.root / "data" / "val"

    @contextlib.contextmanager
    def step(self, name: str, title: str) -> Iterator[None]:
        """Announce a step and keep its time."""
        click.secho(f"\n[{len(self.seconds) + 1}] {title}", bold=True, err=True)
        start = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - start, 1)
        click.secho(f"    {self.seconds[name]:.1f} s", dim=True, err=True)

    def build(self, source: Path) -> Path:
        """Export a checkpoint and build a new repository of it, and return where that is."""
        graph, repository = self.root / "model.onnx", self.root / "repository"
        with self.step("export", "Export to ONNX and graft preprocessing, decode and NMS onto it"):
            self.run("export", source, graph)
        with self.step("build", "Build the Triton repository"):
            shutil.rmtree(repository, ignore_errors=True)
            self.run("build", graph, "--profile", "cpu", "--output", repository)
        return repository

    @contextlib.contextmanager
    def serve(self, repository: Path) -> Iterator[TritonServer]:
        """Start Triton on free ports; it stops at the end of the block."""
        with contextlib.ExitStack() as stack:
            with self.step("serve", "Start Triton"):
                click.secho(f"    $ retinaserve serve {shlex.quote(str(repository))}", fg="cyan", err=True)
                options = ServerOptions.free_ports()
                server = stack.enter_context(TritonServer(repository, options))
                server.wait_until_ready()
            click.echo(f"    HTTP {server.http_url}, gRPC {server.grpc_url}", err=True)
            yield server

    def run(self, *arguments: object) -> None:
        """Print a `retinaserve` command and run it in this process."""
        from retinaserve.scripts.cli.main import main

        words = [str(argument) for argument in arguments]
        click.secho(f"    $ retinaserve {shlex.join(words)}", fg="cyan", err=True)
        try:
            main.main(words, standalone_mode=False, obj=INNER)
        except SystemExit as end:  # the verb has said why
            if end.code == INTERRUPTED:
                raise KeyboardInterrupt from None
            if end.code == TERMINATED:
                raise
            if end.code:
                raise UserError(
                    f"the demo stopped at `retinaserve {words[0]}`", code=Exit(int(end.code))
                ) from None


def run_demo(root: Path, recipe: Recipe = DEMO) -> dict[str, Any]:
    """Run all steps under `root` and return the summary."""
    demo = Demo(root)
    root.mkdir(parents=True, exist_ok=True)
    checkpoint, graph = root / "checkpoint.pth", root / "model.onnx"
    images, annotations = demo.val / "images", demo.val / "annotations.json"
    held_out = ("--images", images, "--annotations", annotations)

    with demo.step("draw", "Draw a labelled data set"):
        if annotations.is_file():
            click.echo(f"    kept {root / 'data'}", err=True)
        else:
            demo.run("data", "shapes", root / "data", "--force", *recipe.data_flags())
    with demo.step("train", "Train a small RetinaNet from scratch on the CPU"):
        train = root / "data" / "train"
        on = ("--images", train / "images", "--annotations", train / "annotations.json")
        demo.run("train", checkpoint, *on, *recipe.train_flags())
    repository = demo.build(checkpoint)
    with demo.step("offline", "Evaluate offline: torch, then ONNX"):
        demo.run("infer", checkpoint, *held_out, "--json", root / "eval_torch.json")
        demo.run("infer", graph, *held_out, "--json", root / "eval_onnx.json")
    with demo.serve(repository) as server:
        pictures = sorted(images.iterdir())[:PICTURES]
        with demo.step("predict", "Send pictures over gRPC and over HTTP"):
            grpc, http = server.grpc_url, f"http://{server.http_url}"
            demo.run("predict", *pictures[:2], "--server", http)
            demo.run("predict", *pictures, "--server", grpc, "--output", root / "predictions", "--quiet")
        with demo.step("eval", "Evaluate through the server"):
            to = ("--json", root / "eval_server.json", "--output", root / "report")
            demo.run("eval", "--server", grpc, *held_out, *to, "--report", root / "report.html")
        with demo.step("bench", "Measure the server"):
            flags = ("--concurrency", BENCH_CONCURRENCY, "--seconds", BENCH_SECONDS)
            to = ("--json", root / "bench.json", "--plot", root / "bench.png")
            demo.run("bench", "--server", f"grpc://{grpc}", "--server", http, "--images", images, *flags, *to)
    summary = _summary(demo)
    write_json(root / "summary.json", summary)
    return summary


def _summary(demo: Demo) -> dict[str, Any]:
    """Collect what people ask for first; everything else is in the files beside."""
    names = ("server", "torch", "onnx")
    reports = {name: json.loads((demo.root / f"eval_{name}.json").read_text()) for name in names}
    bench = json.loads((demo.root / "bench.json").read_text())
    best = max(bench["runs"], key=lambda run: float(run["throughput_ips"]))
    alone = bench["runs"][0]["latency_ms"]
    return {
        "ap": reports["server"]["scores"]["ap"],
        "ap50": reports["server"]["scores"]["ap50"],
        "ap_offline_torch": reports["torch"]["scores"]["ap"],
        "ap_offline_onnx": reports["onnx"]["scores"]["ap"],
        "images": reports["server"]["images"],
        "throughput_ips": best["throughput_ips"],
        "latency_ms_p50": alone["p50"],
        "latency_ms_p99": alone["p99"],
        "seconds": demo.seconds,
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in ("retinaserve", *PACKAGES)},
        },
    }
