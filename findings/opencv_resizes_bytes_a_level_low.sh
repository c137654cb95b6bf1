#!/usr/bin/env bash
# OpenCV's INTER_LINEAR of bytes is not bilinear interpolation, rounded: a tenth of the values are a level lower.
#
# Expected: cv2.resize gives the bytes that the same call gives of floats, rounded, but for ties.
# Seen:     5 to 13 % of a photo's or of noise's values are one level lower, next to none higher. The sum of two rows'
#           products is rounded, but each was cut to quarters of a level before (a product of int16 keeps its upper
#           half). INTER_LINEAR_EXACT, the slower call, is rounded.
# Matters:  a detector trained behind OpenCV (mmdetection's and YOLO's transforms) and served behind an exact resize
#           sees other pixels, all shifted to one side; boxes near a threshold come and go.
# Source:   OpenCV's InterpolationFlags: INTER_LINEAR "bilinear interpolation", INTER_LINEAR_EXACT "bit exact".
. "$(dirname "$0")/_venv.sh"
pip 'numpy==2.3.5'
cat > "$folder/look.py" <<'PYTHON'
import sys

import cv2
import numpy as np

image = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
image = cv2.GaussianBlur(image, (0, 0), 3.0)
image = cv2.normalize(image, None, 0, 255, cv2.NORM_MINMAX)
for size in ((1067, 800), (417, 300)):
    exact = cv2.resize(image.astype(np.float32), size, interpolation=cv2.INTER_LINEAR)
    rounded = np.floor(exact + 0.5).astype(int)
    shares = []
    for flag in (cv2.INTER_LINEAR, cv2.INTER_LINEAR_EXACT):
        apart = cv2.resize(image, size, interpolation=flag) - rounded
        shares.append([float((apart == level).mean()) for level in (-1, 1)])
    (lower, higher), slow = shares
    print(f"opencv {cv2.__version__}, to {size}: {lower:.4f} a level lower, {higher:.4f} higher; EXACT {slow[0]:.4f}, {slow[1]:.4f}")
    if not (lower > 0.03 and higher < 0.01 and max(slow) < 0.01):
        sys.exit(1)
PYTHON
for version in 4.13.0.90 5.0.0.93; do
    pip "opencv-python-headless==$version"
    python look.py
done
