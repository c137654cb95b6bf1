#!/usr/bin/env bash
# torchvision's batched_nms: a box outside the image's top left is suppressed by a box of another class.
#
# Expected: "Performs non-maximum suppression in a batched fashion. Each index value correspond to a category, and NMS
#           will not be applied between elements of different categories", whatever the coordinates.
# Seen:     two boxes of two classes, 1000 pixels apart: one is dropped. With one more box that is larger, both stay.
# Why:      for few boxes, classes are moved apart by their largest coordinate + 1, on both axes, and the boxes of all
#           classes go through one NMS. Negative coordinates are not reckoned with.
# Matters:  who suppresses boxes before clipping them, as Detectron2's RetinaNet does, loses detections at the image's
#           border to another class; and which, depends on the largest box of the image.
# Source:   torchvision/ops/boxes.py, _batched_nms_coordinate_trick
. "$(dirname "$0")/_venv.sh"
pip 'torch==2.14.1' 'torchvision==0.29.1'
cat > "$folder/ask.py" <<'PYTHON'
import sys

import torch
import torchvision
from torchvision.ops import batched_nms

boxes = torch.tensor([[100.0, 100.0, 199.0, 199.0], [-100.0, -100.0, -1.0, -1.0], [0.0, 0.0, 500.0, 500.0]])
scores, classes = torch.tensor([0.9, 0.8, 0.7]), torch.tensor([0, 1, 0])
two = batched_nms(boxes[:2], scores[:2], classes[:2], 0.5).tolist()
three = batched_nms(boxes, scores, classes, 0.5).tolist()
print(f"torchvision {torchvision.__version__}: of two boxes of two classes {two} stay, with a larger one {three}")
sys.exit((two, three) != ([0], [0, 1, 2]))
PYTHON
python ask.py
