"""An author's own RetinaNet against its import behind a real Triton, from the same JPEGs: boxes, AP, time, memory.

    python -m retinaserve.scripts.lab.imported --python tv/bin/python --images DIR --annotations val.json \\
        --train-images DIR --train-annotations train.json --family torchvision [--speed]

`--python` is of an environment of the author's packages (imported_inside.py). torchvision's network is trained by
its own code. Another author's file, of seeded weights, is imported, given torchvision's as far as they fit,
fine-tuned by `train`, and the trained weights are written back into the author's file, which is imported again.
What `--work` has is not made anew. Every second image is turned by a quarter, so both orientations are there.
`--speed` times torchvision eager and compiled and a served import of each precision, at 800 to 1333, in turns: by
the clock, which asks for an idle machine, and by CPU time.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from retinaserve.build_tools.export import export
from retinaserve.build_tools.quantize.calibrate import Int8Options
from retinaserve.build_tools.repository.builder import build
from retinaserve.eval.client.client import Client
from retinaserve.plugins.reference import iou_matrix
from retinaserve.scripts.cli.learn.import_weights import read_categories
from retinaserve.scripts.drills.drill import usage
from retinaserve.scripts.lab import run
from retinaserve.scripts.server.installation import usable_cores
from retinaserve.scripts.server.triton import ServerOptions, TritonServer
from retinaserve.training.checkpoint import Checkpoint, load, save
from retinaserve.training.coco import Annotations, read_results
from retinaserve.training.detections import Detections
from retinaserve.training.files import write_json
from retinaserve.training.importers import Choices, Imported, import_weights
from retinaserve.training.machine import machine
from retinaserve.training.scoring.scores import evaluate

INSIDE = Path(__file__).with_name("imported_inside.py")
FAMILIES: Mapping[str, Mapping[str, Any]] = {  # what is said to `import`
    "torchvision": {},
    "deepforest": {},
    "deepforest_image": {},
    "detectron2": {},
    "mmdetection": {},
    "yhenon": {"topk_candidates": 40_000, "max_detections": 2000},  # it has no limits
    "fizyr": {"topk_candidates": 40_000},
    "mlperf": {},
    "odtk": {},
}
FINE_TUNING = "--batch 4 --lr 0.0005 --warmup 10 --augment flip --precision bf16"
KEPT = "--batch-norm frozen --freeze 1"  # of a ResNet50, whose weights are torchvision's
OUTPUTS = 264  # of MLPerf
UNSEEN = {2: -6.0, 5: 0.0}  # bias and weight of classes without a box, by their axes
PRECISIONS, WAYS = ("fp32", "bf16", "int8"), ("eager", "compiled", "frozen")
SMALL, SQUARE = (192, 320), (192, 192)  # what imported_inside.py trains and answers at; the square by MLPerf
IOU, SCORE = 0.9, 0.02  # what counts as the same detection
CLEAR = 0.1  # a score well above the threshold, which rounding does not move below it
CALIBRATED_WITH = 16
DEVIATIONS = torch.tensor([1.0, 0.1, 0.2, 64.0])  # that imports may scale a tensor by
READY = 600.0  # seconds
Results = Mapping[int, Detections]


def inside(python: Path, *words: object) -> list[str]:
    """Return the command line of the other environment's part."""
    return [str(python), str(INSIDE), *map(str, words)]


def outputs(annotations: Path, work: Path) -> Path:
    """Write labels with a category for each output of MLPerf's; return them."""
    content = json.loads(annotations.read_text())
    names = {each["id"]: each["name"] for each in content["categories"]}
    content["categories"] = [{"id": n, "name": names.get(n, f"output {n}")} for n in range(OUTPUTS)]
    write_json(work / annotations.name, content)
    return work / annotations.name


def turned(images: Path, annotations: Path, work: Path) -> Path:
    """Write the set with every second image turned by a quarter; return its labels, beside its images."""
    target = work / "turned.json"
    if target.exists():
        return target
    (work / "turned").mkdir(parents=True)
    content = json.loads(annotations.read_text())
    wide = {}
    for number, each in enumerate(content["images"]):
        with Image.open(images / each["file_name"]) as image:
            upright = image.convert("RGB")
        if number % 2:
            wide[each["id"]] = upright.width
            upright = upright.transpose(Image.Transpose.ROTATE_90)
        upright.save(work / "turned" / each["file_name"], quality=92)
        each["width"], each["height"] = upright.size
    for each in content["annotations"]:
        x, y, w, h = each["bbox"]
        if each["image_id"] in wide:
            each["bbox"] = [y, wide[each["image_id"]] - x - w, h, w]
    write_json(target, content)
    return target


def chosen(family: str, size: tuple[int, int], labels: Path) -> Choices:
    """Return what is said to `import`."""
    return Choices(size=size, categories=read_categories(labels), **FAMILIES[family])


def warm(given: Imported, start: Imported) -> dict[str, Tensor]:
    """Return a detector's weights, those of `start` where they fit: an anchor's are those of the nearest there."""
    ours, theirs = (
        table - table.mean((0, 1)) for table in (np.array(each.spec.anchors[0]) for each in (given, start))
    )
    rows = np.abs(ours[:, None] - theirs[None]).sum(-1).argmin(1)
    places = [given.spec.category_ids.index(each) for each in start.spec.category_ids]
    scale = torch.tensor(np.divide(given.spec.std, start.spec.std), dtype=torch.float32).view(1, 3, 1, 1)
    weights = {}
    for name, value in given.weights.items():
        found = start.weights.get(name, value)
        if ".output." in name:  # (A * C, ...)
            found = found.view(len(rows), -1, *found.shape[1:])[rows]
            if name.startswith("cls_head"):
                wide = torch.full((len(rows), len(given.spec.classes), *found.shape[2:]), UNSEEN[found.dim()])
                wide[:, places] = found
                found = wide
            found = found.flatten(0, 1)
        elif found.shape != value.shape:  # P6 of another level, a ResNeXt's blocks
            found = torch.zeros_like(value) if name.startswith("fpn") else value
        weights[name] = found * scale if name == "backbone.conv1.weight" else found
    return weights


def turns(name: str, value: Tensor) -> Iterator[tuple[Tensor, Callable[[Tensor], Tensor]]]:
    """Yield what an import may make of a tensor, but for a factor, and the way back."""
    if "pyramid_regression/" in name:  # fizyr's corners
        order, back = ((3, 2, 0, 1), (2, 3, 1, 0)) if value.dim() == 4 else ((0,), (0,))
        yield centred(value).permute(order), lambda tensor: cornered(tensor.permute(back).contiguous())
    elif value.dim() == 4 and value.shape[0] == value.shape[1] < 8:  # Keras' order of axes
        yield value.permute(3, 2, 0, 1), lambda tensor: tensor.permute(2, 3, 1, 0)
        yield value.flip(2).permute(3, 2, 0, 1), lambda tensor: tensor.permute(2, 3, 1, 0).flip(2)
    else:
        yield value, lambda tensor: tensor
        if value.dim() == 4 and value.shape[1] == 3:
            yield value.flip(1), lambda tensor: tensor.flip(1)


def centred(output: Tensor) -> Tensor:
    """Return Keras' box output as the import has it: centres and sizes, of fifths of an anchor at corners."""
    x1, y1, x2, y2 = (0.2 * output).view(*output.shape[:-1], -1, 4).unbind(-1)
    one = float(output.dim() == 1)  # of the bias
    return torch.stack([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1 + one, y2 - y1 + one], dim=-1).flatten(-2)


def cornered(output: Tensor) -> Tensor:
    """Return what `centred` was given."""
    x, y, wide, high = output.view(*output.shape[:-1], -1, 4).unbind(-1)
    wide, high = (0.5 * (side - float(output.dim() == 1)) for side in (wide, high))
    return 5 * torch.stack([x - wide, y - high, x + wide, y + high], dim=-1).flatten(-2)


def write_back(path: Path, given: Imported, weights: Mapping[str, Tensor]) -> None:
    """Write weights into an author's file: each where `given`, the file's import, has its tensor from."""
    with ExitStack() as stack:
        if path.suffix == ".h5":
            content = stack.enter_context(h5py.File(path, "r+"))
            found: dict[str, Any] = {}
            content["model_weights"].visititems(found.__setitem__)
            state = {
                name: torch.from_numpy(each[()]) for name, each in found.items() if isinstance(each, h5py.Dataset)
            }
        else:
            content = torch.load(path, weights_only=True)
            state = next((content[key] for key in ("model", "state_dict") if key in content), content)
        for name, value in state.items():
            for turned, back in turns(name, value) if value.is_floating_point() else ():
                for ours, made in given.weights.items():
                    factor = made / turned if made.shape == turned.shape else torch.zeros(1)
                    if torch.isclose(factor[..., None], DEVIATIONS, rtol=1e-3).any(-1).all():
                        state[name] = back(weights[ours] / factor)
                        if path.suffix == ".h5":
                            found[name][...] = state[name].numpy()
        if path.suffix != ".h5":
            torch.save(content, path)


def taught(given: argparse.Namespace, torchvisions: Path) -> Path:
    """Return another author's own file with weights that detect."""
    folder: Path = given.work / given.family
    folder.mkdir(parents=True, exist_ok=True)
    if given.family.startswith("deepforest"):  # they fit as they are
        path = folder / "model.pl"
        made = (given.family, "new", path, given.train_annotations, torchvisions)
        if not path.is_file():
            subprocess.run(inside(given.python, *made), check=True)
        return path
    suffix = ".h5" if given.family == "fizyr" else ".pth"
    path, seeded, tuned = folder / f"model{suffix}", folder / f"seeded{suffix}", folder / "tuned.pth"
    if path.is_file():
        return path
    subprocess.run(inside(given.python, given.family, "new", seeded, given.train_annotations), check=True)
    start = import_weights(torchvisions, chosen("torchvision", SMALL, given.labels))
    choices = chosen(given.family, given.size, given.train_annotations)
    made = import_weights(seeded, choices)
    save(folder / "start.pth", Checkpoint(made.spec, warm(made, start)))
    words = ["train", tuned, "--fine-tune", folder / "start.pth", "--images", given.train_images]
    words += ["--annotations", given.train_annotations, "--iters", given.iters, *FINE_TUNING.split()]
    words += KEPT.split() if made.spec.network.backbone == start.spec.network.backbone else []
    subprocess.run([sys.executable, "-m", "retinaserve", *map(str, words)], check=True)
    weights = load(tuned).weights
    write_back(seeded, made, weights)
    for name, value in import_weights(seeded, choices).weights.items():
        assert "num_batches" in name or torch.allclose(value, weights[name], rtol=1e-5, atol=1e-7), name
    return seeded.rename(path)


def served(family: str, weights: Path, labels: Path, work: Path, precision: str, size: tuple[int, int]) -> Path:
    """Import, export and build what is not there yet; return the repository."""
    name = f"{family}-weights-{size[0]}"
    checkpoint, repository = work / f"{name}.pth", work / f"{name}-{precision}"
    if not checkpoint.is_file():
        found = import_weights(weights, chosen(family, size, labels))
        print("\n".join(found.notes))
        save(checkpoint, Checkpoint(found.spec, found.weights))
    graph = work / (f"{name}-int8.onnx" if precision == "int8" else f"{name}.onnx")
    if not graph.is_file():
        int8 = Int8Options(labels.with_suffix(""), count=CALIBRATED_WITH)
        export(checkpoint, graph, precision="int8" if precision == "int8" else "fp32", calibration_images=int8)
    if not repository.exists():
        build(graph, repository, precision=precision)
    return repository


def same(wanted: Detections, found: Detections) -> npt.NDArray[np.bool_]:
    """Return which detections have a counterpart of their class: IoU above 0.9, score within 0.02."""
    near = (iou_matrix(wanted.boxes, found.boxes) > IOU) & (wanted.classes[:, None] == found.classes[None])
    near &= np.abs(wanted.scores[:, None] - found.scores[None]) < SCORE
    return np.asarray(near.any(axis=1))


def agreement(given: argparse.Namespace, weights: Path, labels: Path) -> dict[str, Any]:
    """Answer the set by both, and count."""
    truth = Annotations.load(labels)
    results = given.work / f"{given.family}.json"
    if not results.is_file():
        images = labels.with_suffix("")
        words = (given.family, "answer", weights, images, labels, results)
        subprocess.run(inside(given.python, *words), check=True)
    summary: dict[str, Any] = {}
    for precision in given.precisions:
        repository = served(given.family, weights, labels, given.work, precision, given.size)
        with TritonServer(repository, ServerOptions.free_ports(threads=usable_cores())) as server:
            server.wait_until_ready(READY)
            with Client(server.grpc_url, timeout=300) as client:
                paths = [labels.with_suffix("") / name for name in truth.images.values()]
                answers = client.predict([path.read_bytes() for path in paths])
                places = list(client.category_ids)
        ours, author = dict(zip(truth.images, answers, strict=True)), read_results(results, places)
        pairs = [(author.get(image, Detections.none()), found) for image, found in ours.items()]
        near = np.concatenate([same(*pair) for pair in pairs])
        clear = np.concatenate([wanted.scores for wanted, _ in pairs]) > CLEAR
        aps = [evaluate(truth, each, places).ap for each in (author, ours)]
        counts = {"all": (int(near.sum()), len(near)), "clear": (int(near[clear].sum()), int(clear.sum()))}
        summary[precision] = {**counts, "ap_author": aps[0], "ap_served": aps[1]}
        share = ", ".join(f"{name} {got} of {of} ({got / max(1, of):.2%})" for name, (got, of) in counts.items())
        shown = [f"{100 * (ap or 0):.2f}" for ap in aps]
        print(f"{given.family}, {precision}: {share}; AP of the author {shown[0]}, served {shown[1]}", flush=True)
    return summary


def race(given: argparse.Namespace, weights: Path, labels: Path) -> Iterator[dict[str, dict[str, float]]]:
    """Yield what each contestant took for the photos of a turn: seconds, CPU seconds, megabytes."""
    photos = sorted(labels.with_suffix("").glob("*.jpg"))[: given.count]
    encoded = [path.read_bytes() for path in photos]
    with ExitStack() as stack:
        others = {}
        for way in given.ways:
            others[way] = stack.enter_context(
                subprocess.Popen(
                    inside(given.python, "torchvision", "time", weights, way, *photos),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    env=os.environ | {"OMP_NUM_THREADS": str(usable_cores())},
                )
            )
            stack.callback(others[way].terminate)
        servers = {}
        for name in given.precisions:
            options = ServerOptions.free_ports(threads=usable_cores())
            repository = served(given.family, weights, labels, given.work, name, (800, 1333))
            server = stack.enter_context(TritonServer(repository, options))
            server.wait_until_ready(READY)
            servers[name] = server, stack.enter_context(Client(server.grpc_url, timeout=300))
        for number in range(given.rounds + 1):
            told: dict[str, dict[str, float]] = {}
            for way, other in others.items():
                assert other.stdin and other.stdout
                other.stdin.write("\n")
                other.stdin.flush()
                told[way] = json.loads(other.stdout.readline())
            for name, (server, client) in servers.items():
                before = usage(server.process.pid, "no shared file")
                started = time.perf_counter()
                client.predict(encoded)
                taken = time.perf_counter() - started
                after = usage(server.process.pid, "no shared file")
                spent = (sum(each.cpu_seconds for each in seen.processes.values()) for seen in (after, before))
                cpu = next(spent) - next(spent)
                told[name] = {"seconds": taken, "cpu": cpu, "megabytes": after.memory_bytes / 1e6}
            if number:  # the first turn warms up
                yield {name: {**each, "images": len(photos)} for name, each in told.items()}


def main() -> None:
    """Hold a served import to its author's own code."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--python", type=Path, required=True, help="Of the author's environment.")
    parser.add_argument("--family", choices=FAMILIES, default="torchvision")
    for name in ("images", "annotations", "train-images", "train-annotations"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("runs/imported"), help="What is made stays here.")
    parser.add_argument("--iters", type=int, default=100, help="Of fine-tuning another author's network.")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=("fp32",))
    parser.add_argument("--size", type=int, nargs=2, default=SMALL, help="One --work has one.")
    parser.add_argument("--speed", action="store_true", help="Time instead of boxes.")
    parser.add_argument("--ways", nargs="*", choices=WAYS, default=WAYS, help="Of torchvision, for --speed.")
    parser.add_argument("--count", type=int, default=4, help="Photos of a turn.")
    parser.add_argument("--rounds", type=int, default=3, help="Turns.")
    given = parser.parse_args()
    weights: Path = given.work / "torchvision-weights.pth"
    if not weights.is_file():
        words = ("torchvision", "train", weights, given.train_images, given.train_annotations)
        subprocess.run(inside(given.python, *words), check=True)
    given.size, given.labels, folder = tuple(given.size), given.train_annotations, given.work
    os.environ["SIZE"] = " ".join(map(str, given.size))  # of the other environment's part
    if given.family == "mlperf":
        given.size, folder = SQUARE, given.work / "outputs"
        folder.mkdir(exist_ok=True)
        given.annotations = outputs(given.annotations, folder)
        given.train_annotations = outputs(given.train_annotations, folder)
    labels = turned(given.images, given.annotations, folder)
    if given.family != "torchvision":
        weights = taught(given, weights)
    if not given.speed:
        summary = agreement(given, weights, labels)
        write_json(given.work / f"{given.family}-agreement.json", {**summary, "machine": machine()})
        return
    turns = []
    for told in race(given, weights, labels):
        turns.append(told)
        print("  ".join(f"{name} {each['seconds'] / each['images']:.2f} s ({each['cpu'] / each['images']:.2f} CPU)"
                        for name, each in told.items()), flush=True)  # fmt: skip
    for name in given.precisions:
        for base in given.ways:
            clock, cpu = (
                statistics.median(turn[base][unit] / turn[name][unit] for turn in turns)
                for unit in ("seconds", "cpu")
            )
            print(f"{name}: {clock:.2f} times torchvision {base}, {cpu:.2f} by CPU time")
    for name, each in turns[-1].items():
        print(f"{name}: {each['megabytes']:.0f} MB")
    write_json(given.work / "speed.json", {"turns": turns, "machine": machine()})


if __name__ == "__main__":
    run(main)
