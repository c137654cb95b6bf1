#!/usr/bin/env bash
# faster-coco-eval and hotcoco against pycocotools, bit by bit: each has one of two arrays that is not the same.
#
# Expected: "identical results" (faster-coco-eval's README), "parity" (hotcoco's provenance()): both arrays are equal.
# Seen:     hotcoco's precision is pycocotools' to the last bit, its twelve means are not; faster-coco-eval's means are,
#           its precision is not.
# Why:      compiled arithmetic in another order than NumPy's; which step does it was not looked into.
# Matters:  who compares scores for equality, as a frozen value or across tools: take hotcoco's `eval["precision"]` and
#           numpy.mean, or compare with a tolerance.
. "$(dirname "$0")/_venv.sh"
pip 'numpy==1.26.4' 'pycocotools==2.0.11' 'faster-coco-eval==1.8.0' 'hotcoco==1.3.0'
cat > "$folder/score.py" <<'PYTHON'
import contextlib
import importlib.metadata
import io
import sys

import faster_coco_eval
import hotcoco
import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

rng = np.random.default_rng(0)
corners = rng.uniform(0, 500, (600, 2))
boxes = np.hstack([corners, rng.uniform(10, 120, (600, 2))])
entries = [
    {"image_id": 1 + n % 60, "category_id": 1 + n % 20, "bbox": box.tolist(), "area": float(box[2] * box[3])}
    for n, box in enumerate(boxes)
]
truth = {
    "images": [{"id": 1 + n, "width": 640, "height": 640} for n in range(60)],
    "categories": [{"id": 1 + n, "name": str(n)} for n in range(20)],
    "annotations": [{**each, "id": n + 1, "iscrowd": 0} for n, each in enumerate(entries)],
}
found = [
    {**{key: each[key] for key in ("image_id", "category_id")}, "score": float(score), "bbox": (box + shift).tolist()}
    for each, box, score, shift in zip(entries, boxes, rng.random(600), rng.normal(0, 6, (600, 4)))
]


def scored(dataset: type, evaluator: type) -> object:
    with contextlib.redirect_stdout(io.StringIO()):
        labels = dataset()
        labels.dataset = truth
        labels.createIndex()
        result = evaluator(labels, labels.loadRes(found), "bbox")
        result.evaluate()
        result.accumulate()
        result.summarize()
    return result


pairs = {
    "pycocotools": (COCO, COCOeval),
    "faster-coco-eval": (faster_coco_eval.COCO, faster_coco_eval.COCOeval_faster),
    "hotcoco": (hotcoco.COCO, hotcoco.COCOeval),
}
results = {name: scored(*pair) for name, pair in pairs.items()}
base, seen = results["pycocotools"], {}
for name in ("faster-coco-eval", "hotcoco"):
    precision, means = (
        np.abs(np.asarray(one) - np.asarray(other)).max()
        for one, other in (
            (results[name].eval["precision"], base.eval["precision"]),
            (results[name].stats[:12], base.stats),
        )
    )
    seen[name] = (bool(precision == 0), bool(means == 0))
    version = importlib.metadata.version(name)
    print(f"{name} {version}: precision differs by up to {precision:.1e}, the twelve numbers by up to {means:.1e}")
sys.exit(seen != {"faster-coco-eval": (False, True), "hotcoco": (True, False)})
PYTHON
python "$folder/score.py"
