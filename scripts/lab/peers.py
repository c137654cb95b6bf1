"""Our detectors and the ones people pick instead, from scratch for the same CPU minutes, on the same images.

    python -m retinaserve.scripts.lab.peers bccd.json small.json --minutes 8
    python -m retinaserve.scripts.lab.peers bccd.json --steps time table --models fast-n yolo11n

A set is a JSON file: name, side and canvas (h, w) of the peers' input, size (h, w) of ours, and of `train` and
`val` the images' folder and the COCO file. PEERS is an environment of its own, made where it is missing. Every
result is a file in `--work`; what is there is not done again, and Ctrl-C loses one step. AP is pycocotools', of
the last weights; CPU minutes leave out what scoring takes. The table is printed and written with two plots.
"""

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from retinaserve.build_tools.graph.onnx_io import OnnxGraph
from retinaserve.build_tools.openvino_cpu import compile_for_cpu
from retinaserve.scripts.lab import run
from retinaserve.training.files import write_json
from retinaserve.training.images.letterbox import letterbox
from retinaserve.training.machine import machine

INSIDE = Path(__file__).with_name("peers_inside.py")
PACKAGES = (
    "ultralytics==8.4.190",
    "transformers==5.24.0",
    "nncf==3.4.0",
    "openvino==2026.4.1",
    "pycocotools==2.0.11",
)
PEERS = {"yolo11n": "AGPL-3.0", "yolo11n-plain": "AGPL-3.0", "dfine-n": "Apache-2.0"}
OURS = ("fast-n", "fast-n-drawn", "fast-s", "bccd-cpu", "playing_cards-cpu")  # drawn: starts from drawings
STEPS = ("train", "export", "time", "table")
PILOT = 30  # iterations that show how long one takes
PRECISIONS = {"fp32": "fp32", "bf16": "bf16", "int8": "bf16"}  # of the graph, and of what is not quantized in it
WARM, TIMED, TURNS = 20, 87, 3
COLOURS = ("tab:blue", "tab:cyan", "tab:green", "tab:olive", "tab:red", "tab:orange", "tab:purple")
Set = Mapping[str, Any]


class Trained:
    """Ours: `retinaserve train` in this process, its CPU seconds apart from what validation takes."""

    def __init__(self) -> None:
        self.points: list[dict[str, float]] = []
        self.seconds = 0.0

    def run(self, model: Path, recipe: str, data: Set, iterations: int) -> None:
        """Train; `points` and `seconds` are of this run."""
        from retinaserve.scripts.cli.main import main as retinaserve
        from retinaserve.training.data.dataset import CocoDataset
        from retinaserve.training.scoring.scores import evaluate
        from retinaserve.training.trainer import trainer, validate
        from retinaserve.training.trainer.progress import Recorder
        from retinaserve.training.trainer.validate import Scores

        own, original = self, trainer.Trainer
        own.points, started = [], time.process_time()

        class Timed(original):  # type: ignore[misc, valid-type]
            """A trainer whose validations do not count."""

            def validate(self, dataset: CocoDataset, iteration: int, recorder: Recorder) -> Scores:
                nonlocal started
                before = time.process_time()
                scores: Scores = super().validate(dataset, iteration, recorder)
                minutes = (before - started) / 60
                point = {"minutes": round(minutes, 3), "ap": round(scores.ap, 4), "ap50": round(scores.ap50, 4)}
                own.points.append(point | {"iteration": iteration})
                started += time.process_time() - before
                return scores

            def fit(self, *words: Any, **more: Any) -> Any:
                nonlocal started
                started = time.process_time()
                return super().fit(*words, **more)

        trainer.Trainer = Timed  # type: ignore[misc]
        validate.evaluate = functools.partial(evaluate, judge="pycocotools")  # type: ignore[attr-defined]
        words: list[Any] = ["train", model, "--override", "--preset" if recipe.startswith("fast") else "--config"]
        words += [recipe.removesuffix("-drawn"), *(["--fine-tune", "fast-n"] if recipe.endswith("-drawn") else [])]
        words += ["--images", data["train"]["images"], "--annotations", data["train"]["annotations"]]
        words += ["--val-images", data["val"]["images"], "--val-annotations", data["val"]["annotations"]]
        words += ["--size", *data["size"], "--iters", iterations, "--workers", 0]
        words += ["--warmup", max(1, iterations // 20), "--val-iters", max(2 * PILOT, iterations // 12)]
        try:
            retinaserve([str(word) for word in words], standalone_mode=False)
        finally:
            trainer.Trainer = original  # type: ignore[misc]
        self.seconds = 60 * self.points[-1]["minutes"]


def train_ours(recipe: str, data: Set, out: Path, minutes: float) -> None:
    """Train one of ours for so many CPU minutes, whose iterations a short run tells."""
    trained = Trained()
    trained.run(out / "pilot.pth", recipe, data, PILOT)
    first = trained.seconds
    trained.run(out / "pilot.pth", recipe, data, 3 * PILOT)
    each = (trained.seconds - first) / (2 * PILOT)
    trained.run(out / "model.pth", recipe, data, int(minutes * 60 / each))
    write_json(out / "curve.json", {"points": trained.points})


def export_ours(data: Set, out: Path) -> None:
    """Export, and score the exported graphs."""
    told: dict[str, Any] = {}
    for precision in ("fp32", "int8"):
        graph, told_by = out / f"{precision}.onnx", out / f"infer-{precision}.json"
        words = ["--precision", precision]
        words += ["--calibration-images", data["train"]["annotations"]] if precision == "int8" else []
        _retinaserve("export", out / "model.pth", graph, *words)
        judged = ["--annotations", data["val"]["annotations"], "--judge", "pycocotools", "--threads", 1]
        _retinaserve("infer", graph, "--images", data["val"]["images"], *judged, "--json", told_by)
        scores = json.loads(told_by.read_text())["scores"]
        told[precision] = {name: round(scores[name], 4) for name in ("ap", "ap50")}
    write_json(out / "export.json", told)


def time_ours(data: Set, out: Path) -> list[list[Any]]:
    """Return CPU milliseconds an image, from letterboxed pixels to boxes: the median over validation images."""
    from PIL import Image

    spec = OnnxGraph.read(out / "fp32.onnx").spec
    inputs = []
    for entry in json.loads(Path(data["val"]["annotations"]).read_text())["images"][:TIMED]:
        with Image.open(Path(data["val"]["images"]) / entry["file_name"]) as image:
            pixels, box = letterbox(image.convert("RGB"), spec.size, spec.pad_value, spec.resizing)
        inputs.append({"image": np.ascontiguousarray(pixels.transpose(2, 0, 1)[None]), "letterbox": box[None]})
    told = []
    for precision, floats in PRECISIONS.items():
        path = out / ("int8.onnx" if precision == "int8" else "fp32.onnx")
        for how, source in (("network alone", OnnxGraph.read(path).up_to_heads()), ("boxes", None)):
            content = source.SerializeToString() if source else str(path)
            request = compile_for_cpu(content, precision=floats, threads=1).create_infer_request()
            taken = []
            for feeds in [*inputs[:WARM], *inputs]:
                started = time.process_time()
                request.infer({"image": feeds["image"]} if source else feeds)
                taken.append(time.process_time() - started)
            told.append([precision, how, round(1000 * statistics.median(taken[WARM:]), 3)])
    return told


def _retinaserve(*words: Any) -> None:
    subprocess.run([sys.executable, "-m", "retinaserve", *map(str, words)], check=True)


def do(step: str, model: str, place: Path, out: Path, python: Path, minutes: float) -> Any:
    """Do one step of one model in a process of its own on one thread; return what it says of time."""
    if model in PEERS:
        words: list[Any] = [python, INSIDE, step, model.removesuffix("-plain"), place, out]
        words += ["--plain"] if model.endswith("-plain") else []
    else:
        words = [sys.executable, "-m", "retinaserve.scripts.lab.peers", place, "--inside", step, model, out]
    words += ["--minutes", minutes] if step == "train" else []
    env = os.environ | {"OMP_NUM_THREADS": "1", "YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false"}
    done = subprocess.run([str(word) for word in words], check=True, env=env, text=True, stdout=subprocess.PIPE)
    return json.loads(done.stdout.splitlines()[-1]) if step == "time" else None


def make_environment(python: Path) -> None:
    """Make an environment of the peers' packages, of which none is a dependency of ours."""
    place = python.parent.parent
    subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
    subprocess.run([str(python), "-m", "pip", "install", "--quiet", *PACKAGES], check=True)


def boxes_ms(timed: Mapping[str, Any], precision: str) -> float | None:
    """Return the milliseconds to boxes: of a peer's two ways the faster."""
    found = [
        statistics.median(times)
        for how, times in timed.get(precision, {}).items()
        if how != "network alone" and times
    ]
    return min(found, default=None)


def rows(work: Path, sets: Sequence[Set], models: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield what is known of each model on each set."""
    for data in sets:
        for model in models:
            out = work / f"{model}-{data['name']}"
            found = {name: _read(out / f"{name}.json") for name in ("curve", "export", "time")}
            if found["curve"]:
                yield {"set": data["name"], "model": model, **found}


def _read(path: Path) -> Any:
    return json.loads(path.read_text()) if path.is_file() else {}


def table(found: Sequence[Mapping[str, Any]]) -> str:
    """Return the table in Markdown."""
    bars = {row["set"]: row["curve"]["points"][-1]["ap"] for row in found if row["model"] == "yolo11n"}
    lines = [
        "| set, model | CPU min | AP | AP50 | min to the peer's AP | AP INT8 | ms fp32 | bf16 | INT8 | network |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in found:
        points, timed = row["curve"]["points"], row["time"]
        reached = [point["minutes"] for point in points if point["ap"] >= bars.get(row["set"], 2)]
        alone = timed.get("int8", {}).get("network alone")
        cells = [f"{row['set']}, {row['model']}", f"{points[-1]['minutes']:.1f}"]
        cells += [f"{points[-1]['ap']:.3f}", f"{points[-1]['ap50']:.3f}", f"{reached[0]:.1f}" if reached else ""]
        cells += [f"{row['export']['int8']['ap']:.3f}" if row["export"] else ""]
        times = [boxes_ms(timed, precision) for precision in PRECISIONS]
        times += [statistics.median(alone) if alone else None]
        cells += ["" if value is None else f"{value:.2f}" for value in times]
        lines.append(f"| {' | '.join(cells)} |")
    versions: Mapping[str, str] = next(
        (row["curve"]["versions"] for row in found if "versions" in row["curve"]), {}
    )
    told = ", ".join(f"{name} {version}" for name, version in versions.items())
    licences = ", ".join(f"{name} {licence}" for name, licence in PEERS.items())
    return "\n".join([*lines, "", f"Peers' side: {told}. Licences: {licences}; ours Apache-2.0. {machine()}"])


def plot(found: Sequence[Mapping[str, Any]], work: Path) -> None:
    """Draw AP over CPU minutes, and AP against INT8 milliseconds, a panel a set."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    sets, models = (list(dict.fromkeys(row[key] for row in found)) for key in ("set", "model"))
    colour = dict(zip(models, COLOURS, strict=False))
    for name in ("minutes", "frontier"):
        figure = Figure(figsize=(4.2 * len(sets), 3.6), layout="constrained")
        FigureCanvasAgg(figure)
        for place, data in enumerate(sets, start=1):
            axes = figure.add_subplot(1, len(sets), place)
            for row in (row for row in found if row["set"] == data):
                points, model = row["curve"]["points"], row["model"]
                style = {"color": colour[model], "label": model, "marker": "o", "markersize": 3}
                if name == "minutes":
                    axes.plot([p["minutes"] for p in points], [p["ap"] for p in points], **style)
                elif row["export"] and row["time"]:
                    pairs = [
                        (boxes_ms(row["time"], key), row["export"].get(key, row["export"]["fp32"])["ap"])
                        for key in PRECISIONS
                    ]
                    axes.plot(*zip(*pairs, strict=True), **style)
            axes.set(
                title=data, xlabel="CPU minutes" if name == "minutes" else "CPU ms an image: fp32, bf16, INT8"
            )
            axes.set(ylabel="AP", ylim=(0, None) if name == "minutes" else None)
            axes.grid(alpha=0.3)
            axes.legend(fontsize=7)
        figure.savefig(work / f"{name}.png", dpi=90)


def main() -> None:
    """Train, export and time ours and the peers, step by step; print the table."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("sets", nargs="+", type=Path, help="JSON files that name data sets.")
    parser.add_argument("--python", type=Path, default=Path("runs/peers/env/bin/python"), help="Of the peers.")
    parser.add_argument("--work", type=Path, default=Path("runs/peers"), help="Results are kept here.")
    parser.add_argument("--models", nargs="+", choices=(*PEERS, *OURS), default=("yolo11n", "fast-n"))
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=STEPS)
    parser.add_argument("--minutes", type=float, default=8.0, help="CPU minutes of training.")
    parser.add_argument("--inside", nargs=3, metavar=("STEP", "MODEL", "OUT"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    sets = [json.loads(path.read_text()) for path in given.sets]
    if given.inside:
        step, model, out = given.inside[0], given.inside[1], Path(given.inside[2])
        if step == "train":
            train_ours(model, sets[0], out, given.minutes)
        elif step == "export":
            export_ours(sets[0], out)
        else:
            print(json.dumps(time_ours(sets[0], out)))
        return
    if not set(given.models).isdisjoint(PEERS) and not given.python.is_file():
        make_environment(given.python)
    for step, kept in (("train", "curve.json"), ("export", "export.json")):
        for path, data in zip(given.sets, sets, strict=True):
            for model in given.models:
                out = given.work / f"{model}-{data['name']}"
                out.mkdir(parents=True, exist_ok=True)
                if step in given.steps and not (out / kept).is_file():
                    do(step, model, path, out, given.python, given.minutes)
    for _ in range(TURNS if "time" in given.steps else 0):
        for path, data in zip(given.sets, sets, strict=True):
            for model in given.models:  # in turns: a machine drifts
                out = given.work / f"{model}-{data['name']}"
                if (out / "export.json").is_file():
                    timed = _read(out / "time.json")
                    for precision, how, milliseconds in do("time", model, path, out, given.python, 0):
                        timed.setdefault(precision, {}).setdefault(how, []).append(milliseconds)
                    write_json(out / "time.json", timed)
    if "table" in given.steps:
        found = list(rows(given.work, sets, (*PEERS, *OURS)))
        text = table(found)
        print(text)
        (given.work / "table.md").write_text(text + "\n")
        if found:
            plot(found, given.work)


if __name__ == "__main__":
    run(main)
