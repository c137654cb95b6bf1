#!/usr/bin/env bash
# OpenCV's resize by a factor gives other pixels than its resize to the size that this factor gives.
#
# Expected: resize(image, None, fx=f, fy=f) is resize(image, size), where size is what comes out of the first: 800 of 480 rows
#           and 1067 of 640 columns for f = 800 / 480.
# Seen:     by a factor the pixels are mapped by 1 / f, which is not 640 / 1067: towards the far edge they come from up to
#           half a column beside, and on noise four values in five are more than a level off. Sizes that f gives exactly agree.
# Matters:  a detector trained behind one (fizyr's keras-retinanet) and served behind the other sees shifted images, and its
#           boxes go back by f, not by the quotient of the sides: up to half a pixel of the network at the far edge.
# Source:   OpenCV's page of resize says that of dsize and fx, fy one is computed from the other.
. "$(dirname "$0")/_venv.sh"
pip 'opencv-python-headless==4.11.0.86' 'numpy==2.2.6'
cat > "$folder/look.py" <<'PYTHON'
import sys

import cv2
import numpy as np

image = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8).astype(np.float32)
apart = {}
for name, factor in {"800 of 480": 800 / 480, "192 of 480": 192 / 480}.items():
    by_factor = cv2.resize(image, None, fx=factor, fy=factor)
    by_size = cv2.resize(image, by_factor.shape[1::-1])
    assert by_factor.shape == by_size.shape
    apart[name] = float((np.abs(by_factor - by_size) > 1).mean())
    at = ((np.arange(by_factor.shape[1]) + 0.5) / factor - 0.5).clip(0, 639)  # by hand, of a row of ramps
    ramp = cv2.resize(np.tile(np.arange(640, dtype=np.float32), (480, 1)), None, fx=factor, fy=factor)[0]
    assert np.abs(ramp - at).max() < 1e-3
print(f"opencv {cv2.__version__}: share of values more than a level apart: {apart}")
sys.exit(not (apart["800 of 480"] > 0.5 and apart["192 of 480"] == 0))
PYTHON
python look.py
