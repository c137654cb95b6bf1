"""What scoring a set as large as COCO's costs, in seconds and memory, of one build or several side by side.

    python -m retinaserve.scripts.lab.scoring runs/scoring                        # this build
    python -m retinaserve.scripts.lab.scoring runs/scoring --python ../before/.venv/bin/python

5,000 images, 80 classes and 100 detections an image are drawn from a seed. `scores` is the twelve numbers from the
detections in memory, `report` what `eval --json` adds: errors, gains, thresholds, 1,000 resamples, the JSON file.
Each stage is a process of its own, and takes what it needs of the one before from a file. This file runs in older
builds too, which have the same names.
"""

import argparse
import hashlib
import json
import pickle
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from retinaserve.eval.report.analysis import Analysis
from retinaserve.eval.report.report import Report
from retinaserve.training.coco import Annotations
from retinaserve.training.detections import Detections
from retinaserve.training.files import write_json
from retinaserve.training.scores import evaluate, to_coco

STAGES = ("scores", "report", "faster-coco-eval")
WIDTH, HEIGHT = 640, 480


def draw_set(folder: Path, *, images: int, classes: int, per_image: int, seed: int = 0) -> None:
    """Write labels.json and detections.npz: classes as unequal as COCO's, half of the detections near a label."""
    rng = np.random.default_rng(seed)
    share = 1 / np.arange(1, classes + 1)
    share /= share.sum()
    image = np.repeat(np.arange(images), rng.poisson(7.3, images))  # boxes an image of val2017
    labels = _boxes(rng, len(image))
    category = rng.choice(classes, len(image), p=share)
    crowd = rng.random(len(image)) < 0.01
    near = per_image // 2
    start = np.searchsorted(image, np.arange(images))
    count = np.bincount(image, minlength=images)
    chosen = start[:, None] + (rng.random((images, near)) * count[:, None]).astype(int)  # (N, near)
    chosen = np.minimum(chosen, len(image) - 1)
    sides = np.tile(labels[chosen, 2:] - labels[chosen, :2], 2)  # (N, near, 4)
    loose = labels[chosen] + rng.normal(0, 1, sides.shape) * sides * rng.choice(
        [0.02, 0.1, 0.3], (images, near, 1)
    )
    loose[..., 2:] = np.maximum(loose[..., 2:], loose[..., :2] + 1)
    said = np.where(
        rng.random((images, near)) < 0.8, category[chosen], rng.choice(classes, (images, near), p=share)
    )
    rest = per_image - near
    boxes = np.concatenate([loose, _boxes(rng, images * rest).reshape(images, rest, 4)], axis=1)
    found = np.concatenate([said, rng.choice(classes, (images, rest), p=share)], axis=1)
    score = np.concatenate([rng.beta(2, 2, (images, near)), rng.beta(1, 6, (images, rest))], axis=1)
    order = np.argsort(-score, axis=1)
    np.savez(
        folder / "detections.npz",
        boxes=np.take_along_axis(boxes, order[..., None], 1).astype(np.float32),
        scores=np.take_along_axis(score, order, 1).astype(np.float32),
        classes=np.take_along_axis(found, order, 1).astype(np.int32),
    )
    sizes = labels[:, 2:] - labels[:, :2]
    rows = zip(image.tolist(), category.tolist(), labels.tolist(), sizes.tolist(), crowd.tolist(), strict=True)
    write_json(
        folder / "labels.json",
        {
            "images": [{"id": place + 1, "file_name": f"{place:012}.jpg"} for place in range(images)],
            "categories": [{"id": place + 1, "name": f"class {place}"} for place in range(classes)],
            "annotations": [
                {
                    "id": number,
                    "image_id": place + 1,
                    "category_id": kind + 1,
                    "bbox": [*box[:2], *size],
                    "area": size[0] * size[1],
                    "iscrowd": int(many),
                }
                for number, (place, kind, box, size, many) in enumerate(rows, 1)
            ],
        },
        indent=None,
    )


def measure(folder: Path, stage: str) -> dict[str, Any]:
    """Run one stage in this process: its seconds, the highest memory of the process, and what it found."""
    truth = Annotations.load(folder / "labels.json")
    with np.load(folder / "detections.npz") as arrays:
        columns = [arrays[name] for name in ("boxes", "scores", "classes")]
    rows = zip(truth.images, *columns, strict=True)
    results = {image_id: Detections(*answer) for image_id, *answer in rows}
    run_stage = {"scores": _scores, "report": _report, "faster-coco-eval": _faster_coco_eval}[stage]
    seconds, found = run_stage(folder, truth, results)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"stage": stage, "seconds": round(seconds, 2), "megabytes": round(memory), "found": found}


def _scores(folder: Path, truth: Annotations, results: dict[int, Detections]) -> tuple[float, Any]:
    start = time.perf_counter()
    scores = evaluate(truth, results, tuple(truth.categories))
    seconds = time.perf_counter() - start
    (folder / "scores.pickle").write_bytes(pickle.dumps(scores))
    return seconds, list(scores.to_dict().values())[:12]


def _report(folder: Path, truth: Annotations, results: dict[int, Detections]) -> tuple[float, Any]:
    scores = pickle.loads((folder / "scores.pickle").read_bytes())
    ids, files = tuple(truth.categories), {image_id: Path(name) for image_id, name in truth.images.items()}
    report = Report(truth, files, results, {}, tuple(truth.categories.values()), ids, "", scores, seconds=1.0)
    start = time.perf_counter()
    analysis = Analysis.of(report)
    write_json(folder / "report.json", analysis.to_dict())
    return time.perf_counter() - start, hashlib.sha256((folder / "report.json").read_bytes()).hexdigest()


def _faster_coco_eval(folder: Path, truth: Annotations, results: dict[int, Detections]) -> tuple[float, Any]:
    """Score by faster-coco-eval alone, from the dictionaries it takes; they are made before the clock starts."""
    from faster_coco_eval import COCO, COCOeval_faster

    rows = to_coco(results, tuple(truth.categories))
    data = {"images": [{"id": key} for key in truth.images], "annotations": [dict(box) for box in truth.boxes]}
    categories = [{"id": key, "name": name} for key, name in truth.categories.items()]
    start = time.perf_counter()
    labels = COCO({**data, "categories": categories})
    evaluator = COCOeval_faster(labels, labels.loadRes(rows), "bbox")
    evaluator.run()
    return time.perf_counter() - start, [float(value) for value in evaluator.stats]


def main() -> None:
    """Draw the set if the folder has none, and measure the stages in processes of their own."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--python", type=Path, default=Path(sys.executable), help="that of another build")
    parser.add_argument("--stage", choices=STAGES, action="append", help="default: scores and report")
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--per-image", type=int, default=100)
    parser.add_argument("--here", action="store_true", help="in this process")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    if not (args.folder / "labels.json").exists():
        draw_set(args.folder, images=args.images, classes=args.classes, per_image=args.per_image)
    for stage in args.stage or STAGES[:2]:
        if args.here:
            print(json.dumps(measure(args.folder, stage)), flush=True)
        else:
            command = [args.python, __file__, args.folder, "--stage", stage, "--here"]
            subprocess.run(list(map(str, command)), check=True)


def _boxes(rng: np.random.Generator, count: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return boxes (count, 4) xyxy in an image, most of them small."""
    sides = np.exp(rng.normal(4, 1, (count, 2))).clip(4, 400)
    corners = rng.random((count, 2)) * (np.array([WIDTH, HEIGHT]) - sides).clip(0)
    return np.hstack([corners, corners + sides])


if __name__ == "__main__":
    main()
