#!/usr/bin/env bash
# OpenCV turns JPEG, PNG, WebP and TIFF upright and leaves AVIF as it is stored.
#
# Expected: `imread` and `imdecode` turn every format by its record of the orientation, unless told not to
#           (IMREAD_IGNORE_ORIENTATION); in AVIF the boxes irot and imir are that record, which decoders must apply.
# Seen:     of a sideways image in five formats four come upright and the AVIF does not; it equals what Pillow reads
#           before `exif_transpose`.
# Matters:  photos that were converted to AVIF are trained on, labelled and served sideways, without a word, while
#           browsers, Pillow with `exif_transpose` and libvips show them upright.
# Source:   AVIF 1.1 and HEIF (ISO/IEC 23008-12) on transformative properties; OpenCV's ImreadModes.
. "$(dirname "$0")/_venv.sh"
pip 'opencv-python-headless==5.0.0.93' 'numpy==2.3.5' 'pillow==13.0.0'
cat > "$folder/look.py" <<'PYTHON'
import io
import sys

import cv2
import numpy as np
import PIL
from PIL import Image, ImageOps

stored = np.zeros((40, 64, 3), np.uint8)  # darker to the left, redder at the top
stored[..., 1] = np.linspace(0, 250, 64).astype(np.uint8)
stored[:12, :, 0] = 250
exif = Image.Exif()
exif[0x0112] = 6  # a quarter turn
turned = {}
for kind in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF"):
    buffer = io.BytesIO()
    Image.fromarray(stored).save(buffer, kind, exif=exif, **({"quality": 95} if kind in ("JPEG", "AVIF") else {}))
    found = cv2.imdecode(np.frombuffer(buffer.getvalue(), np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    with Image.open(buffer) as image:
        raw, upright = (np.asarray(each.convert("RGB")) for each in (image, ImageOps.exif_transpose(image)))
    assert upright.shape == (64, 40, 3), kind
    turned[kind] = found.shape == upright.shape and int(np.abs(found.astype(int) - upright).max()) < 40
    if not turned[kind]:
        assert found.shape == raw.shape and int(np.abs(found.astype(int) - raw).max()) < 40, kind
print(f"OpenCV {cv2.__version__}, Pillow {PIL.__version__}; turned upright: {turned}")
sys.exit(turned != {"JPEG": True, "PNG": True, "WEBP": True, "TIFF": True, "AVIF": False})
PYTHON
python look.py
