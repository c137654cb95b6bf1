"""Everything on synthetic data: draw, train, export, build, serve, predict, evaluate, measure.

    run_demo(Path("runs/demo"), run, show)           # the summary, also in runs/demo/summary.json
    run_quickstart(Path("runs/quickstart"), run, show)     # without training; the folder of annotated images

Every step is a `retinaserve` command that is shown before `run` runs it, so each can be repeated by hand. What an
interrupted run has finished is kept; training goes on from its checkpoint.
"""

import importlib.metadata
import json
import platform
import shlex
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from retinaserve.scripts.server.triton import Server
from retinaserve.training.errors import UserError
from retinaserve.training.files import write_json

PACKAGES = ("torch", "onnx", "onnxruntime", "openvino", "nvidia-dali-cuda120", "nvidia-pytriton", "tritonclient")
RECIPE = "shapes"  # of training/recipes
FASTER = ("--optimizer", "muon", "--iters", 950)  # about the AP of its 1,800 iterations by AdamW
DRAWN = ("--train", 1500, "--val", 150, "--seed", 0)
CONTACT_SHEET = 12  # images that are sent and drawn
BENCH = ("--concurrency", "1:4", "--seconds", 3)
# The quickstart's checkpoint, made by `make checkpoint`, and images that it was not trained on: neighbouring seeds
# share none. Scores of so small a network are spread wide.
CHECKPOINT = Path(__file__).parents[1] / "examples" / "shapes.pth"
QUICK = ("--train", 4, "--val", 12, "--seed", 1)
QUICK_SCORE = 0.5

Run = Callable[[Sequence[str]], None]
Show = Callable[[str, str], None]


@dataclass
class Demo:
    """Where the demo writes, and how long its steps took.

    `run` runs the words of a `retinaserve` command; `show` prints a text of the kind "step", "command" or "note".
    """

    root: Path
    run: Run
    show: Show
    seconds: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True)

    @property
    def val(self) -> Path:
        """The held-out images."""
        return self.root / "data" / "val"

    @contextmanager
    def step(self, name: str, title: str) -> Iterator[None]:
        """Announce a step and keep its time."""
        self.show("step", f"\n[{len(self.seconds) + 1}] {title}")
        start = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - start, 1)
        self.show("note", f"    {self.seconds[name]:.1f} s")

    def command(self, *words: object) -> None:
        """Show a `retinaserve` command and run it."""
        given = [str(word) for word in words]
        self.show("command", f"    $ retinaserve {shlex.join(given)}")
        try:
            self.run(given)
        except UserError as error:
            raise UserError(
                f"the demo stopped at `retinaserve {given[0]}`: {error.message}", error.hint, code=error.code
            ) from error

    def build(self, source: Path) -> Path:
        """Export a checkpoint and build a new repository of it, and return where that is."""
        graph, repository = self.root / "model.onnx", self.root / "repository"
        with self.step("export", "Export to ONNX and graft preprocessing, decode and NMS onto it"):
            self.command("export", source, graph)
        with self.step("build", "Build the Triton repository"):
            shutil.rmtree(repository, ignore_errors=True)
            self.command("build", graph, "--profile", "cpu", "--output", repository)
        return repository

    @contextmanager
    def serve(self, repository: Path) -> Iterator[Server]:
        """Start Triton on free ports; it stops at the end of the block."""
        with ExitStack() as stack:
            with self.step("serve", "Start Triton"):
                self.show("command", f"    $ retinaserve serve {shlex.quote(str(repository))}")
                server = stack.enter_context(Server(repository))
            self.show("text", f"    HTTP {server.http_url}, gRPC {server.grpc_url}")
            yield server


def run_quickstart(root: Path, run: Run, show: Show, *, checkpoint: Path = CHECKPOINT) -> Path:
    """Serve a checkpoint that is there, and return where its annotated images are. Raises UserError."""
    if not checkpoint.is_file():
        raise UserError(
            f"{checkpoint}: no such checkpoint", "it comes with a clone; `retinaserve demo` trains one"
        )
    demo, predictions = Demo(root, run, show), root / "predictions"
    with demo.step("draw", "Draw images"):
        demo.command("data", "shapes", root / "data", "--force", *QUICK)
    repository = demo.build(checkpoint)
    with demo.serve(repository) as server, demo.step("predict", "Send it the images, draw what it answers"):
        shutil.rmtree(predictions, ignore_errors=True)
        to = ("--server", server.grpc_url, "--output", predictions)
        demo.command("predict", demo.val / "images", *to, "--score", QUICK_SCORE, "--quiet")
    return predictions


def run_demo(root: Path, run: Run, show: Show) -> dict[str, Any]:
    """Run all steps under `root` and return the summary. Raises UserError where a step fails."""
    demo = Demo(root, run, show)
    checkpoint, graph = root / "checkpoint.pth", root / "model.onnx"
    images, annotations = demo.val / "images", demo.val / "annotations.json"
    held_out = ("--images", images, "--annotations", annotations)

    with demo.step("draw", "Draw a labelled data set"):
        if annotations.is_file():
            show("text", f"    kept {root / 'data'}")
        else:
            demo.command("data", "shapes", root / "data", "--force", *DRAWN)
    with demo.step("train", "Train a small RetinaNet from scratch on the CPU"):
        train = root / "data" / "train"
        on = ("--images", train / "images", "--annotations", train / "annotations.json")
        demo.command("train", checkpoint, *on, "--config", RECIPE, *FASTER)
    repository = demo.build(checkpoint)
    with demo.step("offline", "Evaluate offline: torch, then ONNX"):
        demo.command("infer", checkpoint, *held_out, "--json", root / "eval_torch.json")
        demo.command("infer", graph, *held_out, "--json", root / "eval_onnx.json")
    with demo.serve(repository) as server:
        grpc, http = server.grpc_url, f"http://{server.http_url}"
        sent = sorted(images.iterdir())[:CONTACT_SHEET]
        with demo.step("predict", "Send images over gRPC and over HTTP"):
            demo.command("predict", *sent[:2], "--server", http)
            demo.command("predict", *sent, "--server", grpc, "--output", root / "predictions", "--quiet")
        with demo.step("eval", "Evaluate through the server"):
            to = ("--json", root / "eval_server.json", "--output", root / "report")
            demo.command("eval", "--server", grpc, *held_out, *to, "--report", root / "report.html")
        with demo.step("bench", "Measure the server"):
            to = ("--json", root / "bench.json", "--plot", root / "bench.png")
            demo.command("bench", "--server", f"grpc://{grpc}", "--server", http, "--images", images, *BENCH, *to)
    summary = _summary(demo)
    write_json(root / "summary.json", summary)
    return summary


def _summary(demo: Demo) -> dict[str, Any]:
    """Collect what people ask for first; everything else is in the files beside."""
    names = ("server", "torch", "onnx")
    reports = {name: json.loads((demo.root / f"eval_{name}.json").read_text()) for name in names}
    bench = json.loads((demo.root / "bench.json").read_text())
    best = max(bench["runs"], key=lambda measured: float(measured["throughput_ips"]))
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
