#!/usr/bin/env bash
# COCO's limit of 100 detections an image, in pycocotools: it is of each class in an image, not of the image.
#
# Expected: "given 100 detections per image" (cocodataset.org, detection evaluation): of 200 detections in one image the
#           best 100 count, and the recall of 200 objects is at most 0.5.
# Seen:     two classes of 100 objects each, 200 right detections: recall 1.0. One class of 200: recall 0.5.
# Why:      COCOeval.evaluateImg cuts to maxDets what it was given for one image and one category.
# Matters:  who answers 100 boxes an image because COCO takes no more loses AP in images of several classes; who has one
#           dense class is cut whatever the detector answers.
. "$(dirname "$0")/_venv.sh"
pip 'numpy==1.26.4' 'pycocotools==2.0.11'
cat > "$folder/score.py" <<'PYTHON'
import contextlib
import importlib.metadata
import io
import sys

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval


def recall(classes: int) -> float:
    """Return AR at 100 of 200 objects in one image, all of them found, spread over some classes."""
    boxes = [[20.0 * (n % 20), 20.0 * (n // 20), 10.0, 10.0] for n in range(200)]
    entries = [{"image_id": 1, "category_id": 1 + n % classes, "bbox": box} for n, box in enumerate(boxes)]
    truth = COCO()
    truth.dataset = {
        "images": [{"id": 1}],
        "categories": [{"id": 1 + n, "name": str(n)} for n in range(classes)],
        "annotations": [{**each, "id": n + 1, "area": 100.0, "iscrowd": 0} for n, each in enumerate(entries)],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        found = truth.loadRes([{**each, "score": 1 - n / 1000} for n, each in enumerate(entries)])
        scored = COCOeval(truth, found, "bbox")
        scored.evaluate()
        scored.accumulate()
        scored.summarize()
    return float(scored.stats[8])


one, two = recall(1), recall(2)
print(f"pycocotools {importlib.metadata.version('pycocotools')}, 200 objects in one image, all found")
print(f"AR at 100 detections: {one:.2f} of one class, {two:.2f} of two classes")
sys.exit((one, two) != (0.5, 1.0))
PYTHON
python "$folder/score.py"
