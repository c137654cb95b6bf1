#!/usr/bin/env bash
# torch's interpolate(scale_factor=800 / h, recompute_scale_factor=True) makes 799 rows of h for some h.
#
# Expected: an image h high, scaled by 800 / h, is 800 high.
# Seen:     799 for 607, 610, 653 and others: torch takes the integer part of h * (800 / h), which is 799.9999... there.
# Matters:  torchvision's detectors resize so (GeneralizedRCNNTransform, min_size=800). Who prepares images for them
#           elsewhere and rounds, or computes in another order, gives the network another size: boxes move by up to a
#           thousandth, and 799 rows are padded to 800 where 800 are not padded at all.
# Source:   torchvision/models/detection/transform.py, torch/nn/functional.py.
. "$(dirname "$0")/_venv.sh"
pip 'torch==2.13.0' 'numpy==2.2.6'
cat > "$folder/look.py" <<'PYTHON'
import sys

import torch


def rows(height):
    image = torch.zeros(1, 1, height, 8)
    scaled = torch.nn.functional.interpolate(
        image, scale_factor=800 / height, mode="bilinear", recompute_scale_factor=True, align_corners=False
    )
    return scaled.shape[2]


lost = [height for height in range(300, 3000) if rows(height) == 799]
print(f"torch {torch.__version__}: {len(lost)} of 2700 heights become 799 rows, the first {lost[:6]}")
sys.exit(not {607, 610, 653} <= set(lost) or rows(605) != 800)
PYTHON
python look.py
