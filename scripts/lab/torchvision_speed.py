"""An imported torchvision RetinaNet against torchvision's own, from JPEG bytes: the same boxes, and how fast.

    python -m retinaserve.scripts.lab.torchvision_speed --python tv/bin/python --images photos/ --work runs/tv

`--python` is that of an environment with torch and torchvision. Weights are seeded: neither agreement nor time
asks for trained ones. torchvision eager and compiled and a served detector of each precision take turns on the
same cores; ratios are taken within a turn, because machines drift. What is made for it stays in `--work`.
"""

import argparse
import json
import os
import statistics
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from retinaserve.build_tools.export import export
from retinaserve.build_tools.quantize.calibrate import Int8Options
from retinaserve.build_tools.repository.builder import build
from retinaserve.eval.client.client import Client
from retinaserve.plugins.reference import iou_matrix
from retinaserve.scripts.lab import run
from retinaserve.scripts.server.installation import usable_cores
from retinaserve.scripts.server.triton import ServerOptions, TritonServer
from retinaserve.training.checkpoint import Checkpoint, save
from retinaserve.training.detections import Detections
from retinaserve.training.files import write_json
from retinaserve.training.importers import Choices, import_weights
from retinaserve.training.machine import machine

INSIDE = Path(__file__).with_name("torchvision_inside.py")
PRECISIONS, WAYS = ("fp32", "bf16", "int8"), ("eager", "compiled")
SETTLED_ON, CALIBRATED_WITH = 2, 8  # photos
IOU, SCORE = 0.9, 0.02  # what counts as the same detection


def inside(python: Path, *words: object) -> list[str]:
    """Return the command line of the other environment's part."""
    return [str(python), str(INSIDE), str(usable_cores()), *map(str, words)]


def prepare(python: Path, photos: Sequence[Path], work: Path, precisions: Sequence[str]) -> dict[str, Path]:
    """Make weights, checkpoint and repositories where they are missing; return the repositories."""
    work.mkdir(parents=True, exist_ok=True)
    weights, checkpoint = work / "torchvision.pth", work / "model.pth"
    if not weights.is_file():
        subprocess.run(inside(python, "weights", weights, *photos[:SETTLED_ON]), check=True)
    if not checkpoint.is_file():
        found = import_weights(weights, Choices())
        print("\n".join(found.notes))
        save(checkpoint, Checkpoint(found.spec, found.weights))
    repositories = {name: work / f"repository_{name}" for name in precisions}
    for name, repository in repositories.items():
        graph = work / ("int8.onnx" if name == "int8" else "float.onnx")
        if not graph.is_file():
            int8 = Int8Options(photos[0].parent, count=CALIBRATED_WITH)
            export(checkpoint, graph, precision="int8" if name == "int8" else "fp32", calibration_images=int8)
        if not repository.exists():
            build(graph, repository, precision=name)
    return repositories


def agreement(expected: dict[str, Any], spec_ids: Sequence[int], found: Detections) -> tuple[int, int]:
    """Return how many of torchvision's detections of a photo are found, and how many there are.

    Same class, IoU above 0.9, score within 0.02. Labels of torchvision without a category are left out, as import
    leaves them out.
    """
    rows = [row for row, label in enumerate(expected["labels"]) if label in spec_ids]
    boxes = np.array(expected["boxes"], np.float32).reshape(-1, 4)[rows]
    scores, labels = (np.array(expected[name])[rows] for name in ("scores", "labels"))
    ids = np.array(spec_ids)[found.classes] if len(found.classes) else np.empty(0)
    near = (iou_matrix(boxes, found.boxes) > IOU) & (labels[:, None] == ids[None])
    near &= np.abs(scores[:, None] - found.scores[None]) < SCORE
    return int(near.any(axis=1).sum()), len(rows)


def compare(python: Path, photos: Sequence[Path], work: Path, repository: Path) -> Iterator[tuple[str, int, int]]:
    """Yield each photo's name and agreement, through the real server."""
    answers = work / "answers.json"
    subprocess.run(inside(python, "answer", work / "torchvision.pth", answers, *photos), check=True)
    expected = json.loads(answers.read_text())["found"]
    with TritonServer(repository, ServerOptions.free_ports(threads=usable_cores())) as server:
        server.wait_until_ready()
        with Client(server.grpc_url, timeout=300) as client:
            for photo, found in zip(photos, client.predict([path.read_bytes() for path in photos]), strict=True):
                yield photo.name, *agreement(expected[photo.name], client.category_ids, found)


def race(
    python: Path,
    photos: Sequence[Path],
    work: Path,
    repositories: dict[str, Path],
    ways: Sequence[str],
    rounds: int,
) -> Iterator[dict[str, float]]:
    """Yield the images a second of each contestant, a turn each."""
    encoded = [path.read_bytes() for path in photos]
    with ExitStack() as stack:
        other = stack.enter_context(
            subprocess.Popen(
                inside(python, "serve", work / "torchvision.pth", *photos),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=os.environ | {"OMP_NUM_THREADS": str(usable_cores())},
            )
        )
        stack.callback(other.terminate)
        clients = {}
        for name, repository in repositories.items():
            server = stack.enter_context(
                TritonServer(repository, ServerOptions.free_ports(threads=usable_cores()))
            )
            server.wait_until_ready()
            clients[name] = stack.enter_context(Client(server.grpc_url, timeout=300))
            clients[name].predict(encoded)
        assert other.stdin and other.stdout
        for number in range(rounds + 1):
            rates = {}
            for way in ways:
                other.stdin.write(f"{way}\n")
                other.stdin.flush()
                told = json.loads(other.stdout.readline())
                rates[way] = len(photos) / told["seconds"]
            for name, client in clients.items():
                started = time.perf_counter()
                client.predict(encoded)
                rates[name] = len(photos) / (time.perf_counter() - started)
            if number:  # the first turn warms up
                yield rates


def main() -> None:
    """Compare an imported torchvision RetinaNet that is served with torchvision's own."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--python", type=Path, required=True, help="Of an environment with torchvision.")
    parser.add_argument("--images", type=Path, required=True, help="JPEG photos of both orientations.")
    parser.add_argument("--work", type=Path, default=Path("runs/torchvision"), help="What is made stays here.")
    parser.add_argument("--count", type=int, default=8, help="Photos of a turn.")
    parser.add_argument("--rounds", type=int, default=3, help="Turns; 0 compares boxes only.")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=PRECISIONS)
    parser.add_argument("--torchvision", nargs="+", choices=WAYS, default=WAYS, help="What it is held against.")
    parser.add_argument("--skip-boxes", action="store_true", help="Time only.")
    given = parser.parse_args()
    photos = sorted(given.images.glob("*.jpg"))[: given.count]
    repositories = prepare(given.python, photos, given.work, given.precisions)
    if not given.skip_boxes:
        total = np.zeros(2, int)
        for name, same, count in compare(given.python, photos, given.work, repositories["fp32"]):
            print(f"{name}: {same} of {count}")
            total += (same, count)
        print(f"{total[0]} of {total[1]} of torchvision's detections (IoU > {IOU}, score within {SCORE})")
    turns = []
    rest = (given.work, repositories, given.torchvision, given.rounds)
    for rates in race(given.python, photos, *rest) if given.rounds else ():
        turns.append(rates)
        print("  ".join(f"{name} {rate:.3f}/s" for name, rate in rates.items()))
    for name in given.precisions if turns else ():
        for base in given.torchvision:
            ratio = statistics.median(turn[name] / turn[base] for turn in turns)
            print(f"{name}: {ratio:.2f} times torchvision {base}")
    write_json(given.work / "torchvision.json", {"turns": turns, "machine": machine()})


if __name__ == "__main__":
    run(main)
