"""Tiles of a large survey: AP, peak memory and speed, beside native images, single tiles, sahi and DeepForest.

    retinaserve data mosaic runs/mosaic
    python -m retinaserve.scripts.lab.tiles examples/shapes.pth runs/mosaic --json runs/tiles.json
    python -m retinaserve.scripts.lab.tiles examples/shapes.pth runs/small --speed --beside ENVIRONMENT/bin/python

AP counts each block of the survey as an image, since COCO's AP looks at a hundred boxes an image. Native images
are drawn alike and are as large as the network's input. For --beside, an environment of its own with sahi,
deepforest and openvino; they run the same graph on the same pixels (tiles_side.py).
"""

import argparse
import json
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil

from retinaserve.build_tools.export import export
from retinaserve.build_tools.repository.builder import build
from retinaserve.eval.client.client import Client
from retinaserve.eval.runtimes.detector import open_detector
from retinaserve.eval.tiled import Sized, TiledDetector
from retinaserve.plugins.reference import iou_matrix
from retinaserve.plugins.tiles import encode_bmp, tile_windows
from retinaserve.scripts.lab import run
from retinaserve.scripts.server.triton import Server
from retinaserve.scripts.shapes.draw import CATEGORIES, draw_scene
from retinaserve.scripts.shapes.mosaic import BLOCK, KIND
from retinaserve.training.coco import Annotations
from retinaserve.training.detections import Detections
from retinaserve.training.files import write_json
from retinaserve.training.raster import open_raster
from retinaserve.training.scores import evaluate, match_classes

NATIVE = 1500  # images
ROUNDS = 2


class Memory(threading.Thread):
    """The largest sum of the proportional set sizes of this process and its children, in MB."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak, self._ended = 0.0, threading.Event()

    def run(self) -> None:
        """Look four times a second."""
        me = psutil.Process()
        while not self._ended.wait(0.25):
            total = 0
            for process in (me, *me.children(recursive=True)):
                try:
                    total += process.memory_full_info().pss
                except psutil.Error:
                    continue
            self.peak = max(self.peak, total / 1e6)

    def __enter__(self) -> "Memory":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self.join()


def by_block(boxes: npt.NDArray[Any], columns: int) -> npt.NDArray[np.int64]:
    """Return the block, counted from 1, that each box's centre lies in."""
    centre = ((boxes[:, :2] + boxes[:, 2:]) / 2 // BLOCK).astype(np.int64)
    block: npt.NDArray[np.int64] = centre[:, 1] * columns + centre[:, 0] + 1
    return block


def truth_by_block(truth: Annotations, columns: int, folder: Path) -> Annotations:
    """Return the survey's labels as those of its blocks."""
    corners = np.array([[x, y, x + w, y + h] for x, y, w, h in (box["bbox"] for box in truth.boxes)])
    boxes = [
        {**box, "image_id": int(block)} for box, block in zip(truth.boxes, by_block(corners, columns), strict=True)
    ]
    categories = [{"id": number, "name": name} for number, name in truth.categories.items()]
    images = [{"id": number, "file_name": f"{number}"} for number in range(1, columns**2 + 1)]
    write_json(folder / "blocks.json", {"images": images, "annotations": boxes, "categories": categories})
    return Annotations.load(folder / "blocks.json")


def ap_by_block(found: Detections, truth: Annotations, client: Client, columns: int) -> dict[str, float | None]:
    """Return AP, AP50 and the like of one answer for the whole survey."""
    blocks = by_block(found.boxes, columns)
    results = {
        number: Detections(
            found.boxes[blocks == number], found.scores[blocks == number], found.classes[blocks == number]
        )
        for number in np.unique(blocks)
    }
    ids = match_classes(client.class_names, truth.categories).category_ids
    scores = evaluate(truth, results, ids)
    return {"ap": scores.ap, "ap50": scores.ap50, "ar_100": scores.ar_100}


def doubles(found: Detections, score: float = 0.3) -> int:
    """Return how many boxes lie upon a better one of their class: IoU above 0.5."""
    found = found.above(score)
    count = 0
    for number in range(len(found)):
        near = np.flatnonzero(np.abs(found.boxes[:number, 0] - found.boxes[number, 0]) < 100)
        near = near[found.classes[near] == found.classes[number]]
        count += int((iou_matrix(found.boxes[number : number + 1], found.boxes[near]) > 0.5).any())
    return count


def native(client: Client, folder: Path) -> dict[str, float | None]:
    """Return the scores on images as large as the input, drawn alike."""
    height, width = client.tile_size
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []

    def encoded() -> Iterator[bytes]:
        for number in range(1, NATIVE + 1):
            rng = np.random.default_rng((7, number))
            image, shapes = draw_scene((width, height), rng, count=int(rng.integers(0, 4)), kind=KIND)
            images.append({"id": number, "file_name": str(number), "width": width, "height": height})
            for shape in shapes:
                category = CATEGORIES[shape.category]
                row = {"id": len(annotations) + 1, "image_id": number, "category_id": category}
                annotations.append({**row, "bbox": list(shape.box), "area": shape.area, "iscrowd": 0})
            yield encode_bmp(np.asarray(image))

    results = {number: answer for number, answer in enumerate(client.predict_many(encoded()), 1)}
    categories = [{"id": CATEGORIES[name], "name": name} for name in KIND.categories]
    write_json(folder / "n.json", {"images": images, "annotations": annotations, "categories": categories})
    truth = Annotations.load(folder / "n.json")
    found = {number: answer for number, answer in results.items() if isinstance(answer, Detections)}
    scores = evaluate(truth, found, match_classes(client.class_names, truth.categories).category_ids)
    return {"ap": scores.ap, "ap50": scores.ap50, "ar_100": scores.ar_100}


def accuracy(client: Client, mosaic: Path, folder: Path) -> dict[str, Any]:
    """Return what the survey's boxes are worth, and what it took."""
    survey, truth = mosaic / "mosaic.tif", Annotations.load(mosaic / "annotations.json")
    with open_raster(survey) as raster:
        columns = raster.size[1] // BLOCK
        letterboxed = encode_bmp(np.asarray(raster.reduced()))
    blocks = truth_by_block(truth, columns, folder)
    with Memory() as memory:
        start = time.perf_counter()
        (found,) = client.predict([survey], tile="auto")
        seconds = time.perf_counter() - start
    (small,) = client.predict([letterboxed])
    assert found.size and small.size
    scale = np.float32(found.size[1] / small.size[1])
    small = Detections(small.boxes * scale, small.scores, small.classes, found.size)
    return {
        "size": found.size,
        "boxes": len(found),
        "seconds": round(seconds, 1),
        "peak_mb_client_and_server": round(memory.peak),
        "doubles": doubles(found),
        "tiles": ap_by_block(found, blocks, client, columns),
        "letterboxed": ap_by_block(small, blocks, client, columns),
        "native": native(client, folder),
    }


def speed(client: Client, survey: Path) -> dict[str, Any]:
    """Return tiles/s of the survey, and of the same tiles encoded beforehand, in turns."""
    with open_raster(survey) as raster:
        windows = tile_windows(raster.size, client.tile_size)
        tiles = [encode_bmp(pixels) for pixels in raster.windows(windows) if pixels is not None]
    rates: dict[str, list[float]] = {"single tiles": [], "survey": []}
    for _ in range(ROUNDS):
        start = time.perf_counter()
        assert len(list(client.predict_many(tiles))) == len(tiles)
        rates["single tiles"].append(len(tiles) / (time.perf_counter() - start))
        start = time.perf_counter()
        client.predict([survey], tile="auto")
        rates["survey"].append(len(tiles) / (time.perf_counter() - start))
    ratio = max(rates["survey"]) / max(rates["single tiles"])
    return {"tiles": len(tiles), "tiles_per_second": rates, "ratio": round(ratio, 3)}


def beside(model: Path, client: Client, mosaic: Path, python: str, folder: Path) -> dict[str, Any]:
    """Return seconds and boxes of sahi and DeepForest with one graph, and of ours in process and by the server.

    Ours read the survey from the disk, the others have it in memory. CPU seconds are those of the server, too.
    """
    export(model, folder / "model.onnx")
    survey, output = mosaic / "mosaic.tif", folder / "others.json"
    script = Path(__file__).with_name("tiles_side.py")
    subprocess.run([python, script, folder / "model.onnx", survey, output], check=True)
    report: dict[str, Any] = json.loads(output.read_text())
    found = {}
    for name, answer in report.items():
        rows = np.array(sorted(answer.pop("boxes"), key=lambda row: -row[4]), np.float32).reshape(-1, 6)
        found[name] = Detections.from_slots(len(rows), rows[:, :4], rows[:, 4], rows[:, 5])
    theirs = list(found)
    detectors: dict[str, Sized] = {"in process": open_detector(folder / "model.onnx"), "server": client}
    for name, detector in detectors.items():
        rounds = []
        for _ in range(ROUNDS + 2):
            start, spent = time.perf_counter(), cpu_seconds()
            (answer,) = TiledDetector(detector).predict([survey])
            rounds.append((time.perf_counter() - start, cpu_seconds() - spent))
        seconds, cpu = (min(column) for column in zip(*rounds[1:], strict=True))
        found[name] = answer.above(0.3)
        report[name] = {"seconds": seconds, "cpu_seconds": cpu}
    truth = Annotations.load(mosaic / "annotations.json").boxes_of(1)
    index = [client.category_ids.index(number) for number in truth.classes]
    truth = Detections(truth.boxes, truth.scores, np.array(index, np.int32))
    for name, boxes in found.items():
        same = overlap(boxes, truth) > 0.5
        report[name] |= {"boxes": len(boxes), "doubles": doubles(boxes)}
        report[name] |= {"objects_found": int(same.any(axis=0).sum()), "of_none": int((~same.any(axis=1)).sum())}
    for name in theirs:
        alike = overlap(found["in process"], found[name])
        report[name]["ours_too"] = {f"IoU {least}": int((alike > least).any(axis=0).sum()) for least in (0.5, 0.9)}
    return report | {"objects": len(truth)}


def cpu_seconds() -> float:
    """Return what this process and its children have taken."""
    me = psutil.Process()
    return sum(sum(each.cpu_times()[:2]) for each in (me, *me.children(recursive=True)))


def overlap(one: Detections, other: Detections) -> npt.NDArray[np.float32]:
    """Return the IoU of each two boxes, 0 where their classes differ."""
    found: npt.NDArray[np.float32] = iou_matrix(one.boxes, other.boxes) * (one.classes[:, None] == other.classes)
    return found


def main() -> None:
    """Measure, print, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("mosaic", type=Path)
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--beside", metavar="PYTHON")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    report: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        build(chosen.model, folder / "repository")
        with Server(folder / "repository") as server, Client(server.grpc_url) as client:
            if chosen.speed:
                report["speed"] = speed(client, chosen.mosaic / "mosaic.tif")
            if chosen.beside:
                report["beside"] = beside(chosen.model, client, chosen.mosaic, chosen.beside, folder)
            if not report:
                report = accuracy(client, chosen.mosaic, folder)
    print(json.dumps(report, indent=2))
    if chosen.json:
        write_json(chosen.json, report)


if __name__ == "__main__":
    run(main)
