"""`demo`: everything on synthetic data: draw, train, export, build, serve, predict, evaluate, measure.

Every step is a `retinaserve` command that is shown and then run in this process, so each can be repeated by hand.
What an interrupted run has finished is kept; training goes on from its checkpoint.
"""

import importlib.metadata
import json
import platform
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from retinaserve.scripts.cli.options import FOLDER
from retinaserve.scripts.cli.output import STEPS, name_next, note
from retinaserve.training.errors import Exit, UserError
from retinaserve.training.files import write_json
from retinaserve.training.machine import BF16_FLAGS, flags

if TYPE_CHECKING:
    from retinaserve.scripts.server.triton import Server

INTERRUPTED, TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM
PACKAGES = ("torch", "onnx", "onnxruntime", "openvino", "nvidia-dali-cuda120", "nvidia-pytriton", "tritonclient")
RECIPE = "shapes"  # of training/recipes
# In 0.55 of the time of the recipe's 1,800 iterations by AdamW, and no worse: docs/benchmarks.md.
BF16 = not flags().isdisjoint(BF16_FLAGS)
FASTER = ("--optimizer", "muon", "--precision", *(("bf16", "--iters", 1300) if BF16 else ("fp32", "--iters", 950)))
DRAWN = ("--train", 1500, "--val", 150, "--seed", 0)
CONTACT_SHEET = 12  # images that are sent and drawn
BENCH = ("--concurrency", "1:4", "--seconds", 3)
# The quickstart's checkpoint, made by `make checkpoint`, and images that it was not trained on: neighbouring seeds
# share none. Scores of so small a network are spread wide.
CHECKPOINT = Path(__file__).parents[2] / "examples" / "shapes.pth"
QUICK = ("--train", 4, "--val", 12, "--seed", 1)
QUICK_SCORE = 0.5


@click.command()
@click.option("--output", type=FOLDER, help="Where it writes.  [default: runs/demo or runs/quickstart]")
@click.option("--quick", is_flag=True, help="Train nothing: serve the small checkpoint that comes along.")
def demo(output: Path | None, quick: bool) -> None:
    """Do all of it on synthetic data, in minutes: draw, train, export, build, serve, predict, eval, bench."""
    root = output or Path("runs/quickstart" if quick else "runs/demo")
    steps = Demo(root)
    try:
        if quick:
            images = [steps.quickstart()]
            click.echo(images[0])
        else:
            summary = steps.all()
            click.echo(json.dumps(summary, indent=2))
            server, torch, onnx = (summary[name] for name in ("ap", "ap_offline_torch", "ap_offline_onnx"))
            scores = f"\nAP {server:.3f} through Triton, {torch:.3f} in torch, {onnx:.3f} in ONNX\n"
            click.secho(scores, bold=True, err=True)
            images = [root / "report.html", root / "report" / "contact_sheet.jpg", root / "predictions"]
    except KeyboardInterrupt:
        name_next("the same command goes on from there")
        raise
    _show_what_to_try(root, images)


@dataclass
class Demo:
    """Where the demo writes, and how long its steps took. Raises UserError where one fails."""

    root: Path
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
        click.secho(f"\n[{len(self.seconds) + 1}] {title}", bold=True, err=True)
        start = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - start, 1)
        click.secho(f"    {self.seconds[name]:.1f} s", dim=True, err=True)

    def run(self, *words: object) -> None:
        """Show a `retinaserve` command and run it."""
        given = [str(word) for word in words]
        show_command(given)
        try:
            run_verb(given)
        except UserError as error:
            raise UserError(
                f"the demo stopped at `retinaserve {given[0]}`: {error.message}", error.hint, code=error.code
            ) from error

    def build(self, source: Path) -> Path:
        """Export a checkpoint and build a new repository of it, and return where that is."""
        graph, repository = self.root / "model.onnx", self.root / "repository"
        with self.step("export", "Export to ONNX and graft preprocessing, decode and NMS onto it"):
            self.run("export", source, graph)
        with self.step("build", "Build the Triton repository"):
            shutil.rmtree(repository, ignore_errors=True)
            self.run("build", graph, "--profile", "cpu", "--output", repository)
        return repository

    @contextmanager
    def serve(self, repository: Path) -> Iterator["Server"]:
        """Start Triton on free ports; it stops at the end of the block."""
        from retinaserve.scripts.server.triton import Server

        with ExitStack() as stack:
            with self.step("serve", "Start Triton"):
                show_command(["serve", str(repository)])
                server = stack.enter_context(Server(repository))
            note(f"    HTTP {server.http_url}, gRPC {server.grpc_url}")
            yield server

    def quickstart(self, checkpoint: Path = CHECKPOINT) -> Path:
        """Serve a checkpoint that is there, and return where its annotated images are."""
        if not checkpoint.is_file():
            raise UserError(
                f"{checkpoint}: no such checkpoint", "it comes with a clone; `retinaserve demo` trains one"
            )
        predictions = self.root / "predictions"
        with self.step("draw", "Draw images"):
            self.run("data", "shapes", self.root / "data", "--force", *QUICK)
        repository = self.build(checkpoint)
        with self.serve(repository) as server, self.step("predict", "Send it the images, draw what it answers"):
            shutil.rmtree(predictions, ignore_errors=True)
            to = ("--server", server.grpc_url, "--output", predictions)
            self.run("predict", self.val / "images", *to, "--score", QUICK_SCORE, "--quiet")
        return predictions

    def all(self) -> dict[str, Any]:
        """Run all steps, and return the summary, which is also in summary.json."""
        root, checkpoint, graph = self.root, self.root / "checkpoint.pth", self.root / "model.onnx"
        images, annotations = self.val / "images", self.val / "annotations.json"
        held_out = ("--images", images, "--annotations", annotations)

        with self.step("draw", "Draw a labelled data set"):
            if annotations.is_file():
                note(f"    kept {root / 'data'}")
            else:
                self.run("data", "shapes", root / "data", "--force", *DRAWN)
        with self.step("train", "Train a small RetinaNet from scratch on the CPU"):
            train = root / "data" / "train"
            on = ("--images", train / "images", "--annotations", train / "annotations.json")
            self.run("train", checkpoint, *on, "--config", RECIPE, *FASTER)
        repository = self.build(checkpoint)
        with self.step("offline", "Evaluate offline: torch, then ONNX"):
            self.run("infer", checkpoint, *held_out, "--json", root / "eval_torch.json")
            self.run("infer", graph, *held_out, "--json", root / "eval_onnx.json")
        with self.serve(repository) as server:
            grpc, http = server.grpc_url, f"http://{server.http_url}"
            sent = sorted(images.iterdir())[:CONTACT_SHEET]
            with self.step("predict", "Send images over gRPC and over HTTP"):
                self.run("predict", *sent[:2], "--server", http)
                self.run("predict", *sent, "--server", grpc, "--output", root / "predictions", "--quiet")
            with self.step("eval", "Evaluate through the server"):
                to = ("--json", root / "eval_server.json", "--output", root / "report")
                self.run("eval", "--server", grpc, *held_out, *to, "--report", root / "report.html")
            with self.step("bench", "Measure the server"):
                to = ("--json", root / "bench.json", "--plot", root / "bench.png")
                self.run("bench", "--server", f"grpc://{grpc}", "--server", http, "--images", images, *BENCH, *to)
        summary = self.summary()
        write_json(root / "summary.json", summary)
        return summary

    def summary(self) -> dict[str, Any]:
        """Collect what people ask for first; everything else is in the files beside."""
        names = ("server", "torch", "onnx")
        reports = {name: json.loads((self.root / f"eval_{name}.json").read_text()) for name in names}
        bench = json.loads((self.root / "bench.json").read_text())
        best = max(bench["runs"], key=lambda measured: float(measured["throughput_ips"]))
        alone = bench["runs"][0]["latency_ms"]
        versions = {name: importlib.metadata.version(name) for name in ("retinaserve", *PACKAGES)}
        return {
            "ap": reports["server"]["scores"]["ap"],
            "ap50": reports["server"]["scores"]["ap50"],
            "ap_offline_torch": reports["torch"]["scores"]["ap"],
            "ap_offline_onnx": reports["onnx"]["scores"]["ap"],
            "images": reports["server"]["images"],
            "throughput_ips": best["throughput_ips"],
            "latency_ms_p50": alone["p50"],
            "latency_ms_p99": alone["p99"],
            "seconds": self.seconds,
            "versions": {"python": platform.python_version(), **versions},
        }


def show_command(words: list[str]) -> None:
    """Print a command as it is typed."""
    click.secho(f"    $ retinaserve {shlex.join(words)}", fg="cyan", err=True)


def run_verb(words: list[str]) -> None:
    """Run another verb of the group in this process. Raises UserError as the verb does, or for its exit code."""
    context = click.get_current_context()
    group = context.find_root().command
    assert isinstance(group, click.Group)
    name, verb, rest = group.resolve_command(context, words)
    assert verb
    context.meta[STEPS] = True
    try:
        with verb.make_context(name, rest, parent=context) as inner:
            verb.invoke(inner)
    except SystemExit as end:  # the verb has printed why
        if end.code == INTERRUPTED:
            raise KeyboardInterrupt from None
        if end.code == TERMINATED or not end.code:
            raise
        raise UserError("what it printed says why", code=Exit(int(end.code))) from None
    finally:
        del context.meta[STEPS]


def _show_what_to_try(output: Path, images: list[Path]) -> None:
    """Print what there is to see, and commands that work as they are printed."""
    folder = shlex.quote(str(output))
    activate = Path(sys.prefix) / "bin" / "activate"
    if not shutil.which("retinaserve") and activate.is_file():
        note(f"\nonce       . {shlex.quote(str(activate))}")
    look = "\n           ".join(map(str, images))
    note(
        f"""\

look at    {look}
then try   retinaserve serve {folder}/repository
           and while it runs, from another terminal:
           retinaserve predict {folder}/data/val/images --output {folder}/annotated
           retinaserve web            # a page to drop images on
your data  retinaserve data check --help
           retinaserve train --help   # docs/training.md has the whole road"""
    )
