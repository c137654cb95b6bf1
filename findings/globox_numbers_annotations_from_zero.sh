#!/usr/bin/env bash
# COCO files that globox writes, scored by pycocotools: the first object counts as missed, whatever the detector found.
#
# Expected: detections that equal the truth have an AP of 1.
# Seen:     two objects of one class, both found: AP 0.252 and AR 0.5. With ids from 1: 1 and 1.
# Why:      globox numbers annotations from 0; COCOeval writes the id of what a detection matched, 0 where it matched
#           nothing.
# Matters:  labels that went through globox (from YOLO, VOC, CVAT ...) lose one object and win one false positive in
#           every score; of few images or rare classes that is seen, and looks like the detector's fault.
#           faster-coco-eval answers the same and warns; hotcoco counts the object.
. "$(dirname "$0")/_venv.sh"
pip 'numpy==1.26.4' 'pycocotools==2.0.11' 'globox==2.9.0'
cat > "$folder/score.py" <<'PYTHON'
import contextlib
import importlib.metadata
import io
import json
import sys
from pathlib import Path

from globox import Annotation, AnnotationSet, BoundingBox
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

boxes = [BoundingBox(label="ship", xmin=n, ymin=n, xmax=n + 50, ymax=n + 50) for n in (10, 100)]
labels = AnnotationSet([Annotation("a.jpg", (200, 200), boxes)])
labels.save_coco("written.json", label_to_id={"ship": 1}, imageid_to_id={"a.jpg": 1})
written = json.loads(Path("written.json").read_text())


def score(first: int) -> list[float]:
    """Return AP and AR at 100 of detections that equal the truth, its annotations numbered from `first`."""
    truth = COCO()
    truth.dataset = {**written, "annotations": [{**each} for each in written["annotations"]]}
    for each in truth.dataset["annotations"]:
        each["id"] += first
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        found = truth.loadRes([
            {"image_id": 1, "category_id": 1, "bbox": list(each["bbox"]), "score": 0.9 - each["id"] / 100}
            for each in written["annotations"]
        ])
        scored = COCOeval(truth, found, "bbox")
        scored.evaluate()
        scored.accumulate()
        scored.summarize()
    return [round(float(scored.stats[n]), 3) for n in (0, 8)]


version = importlib.metadata.version
ids = [each["id"] for each in written["annotations"]]
print(f"globox {version('globox')} writes the ids {ids}; pycocotools {version('pycocotools')}")
as_written, from_one = score(0), score(1)
print(f"AP and AR of detections that equal the truth: {as_written} as written, {from_one} with ids from 1")
sys.exit((ids, as_written, from_one) != ([0, 1], [0.252, 0.5], [1.0, 1.0]))
PYTHON
python "$folder/score.py"
