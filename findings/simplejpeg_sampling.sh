#!/usr/bin/env bash
# simplejpeg and chroma samplings without a name: a header that cannot be read of an image that can, and a refusal.
#
# Expected: `decode_jpeg_header` reads what `decode_jpeg` decodes, and a valid file that Pillow decodes is decoded.
# Seen:     of a 4:4:1 JPEG (sampling 1x4) the header raises KeyError: 6, although it decodes to Pillow's pixels; of a
#           4:1:0 JPEG (4x2) both raise ValueError, "Could not determine subsampling level".
# Why:      TurboJPEG classes an image by a list of samplings. The package's table of names lacks the newest of them,
#           and TurboJPEG refuses what is on no list, though libjpeg-turbo beneath it decodes any.
# Matters:  who reads headers first, to choose a scale, stops at an exception that is no ValueError; files of some
#           scanners and DV cameras need another decoder.
# Source:   libjpeg-turbo's turbojpeg.h on TJSAMP_UNKNOWN and TJSAMP_441.
. "$(dirname "$0")/_venv.sh"
pip 'simplejpeg==1.9.0' 'numpy==2.2.6' 'pillow==13.0.0'
cat > "$folder/look.py" <<'PYTHON'
import base64
import io

import numpy as np
import simplejpeg
from PIL import Image

# 16 x 16 red pixels by libjpeg-turbo's cjpeg -sample 4x2,1x1,1x1 and 1x4,1x1,1x1.
FILES = {
    "4:1:0": """
/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDABALDA4MChAODQ4SERATGCgaGBYWGDEjJR0oOjM9PDkzODdASFxOQERXRTc4UG1RV19iZ2hnPk1xeXBkeFxl
Z2P/2wBDARESEhgVGC8aGi9jQjhCY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2P/wAARCAAQABADAUIAAhEB
AxEB/8QAFQABAQAAAAAAAAAAAAAAAAAAAAX/xAAUEAEAAAAAAAAAAAAAAAAAAAAA/8QAFQEBAQAAAAAAAAAAAAAAAAAABAb/xAAUEQEAAAAAAAAAAAAA
AAAAAAAA/9oADAMBAAIRAxEAPwCOAAAqh//Z""",
    "4:4:1": """
/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDABALDA4MChAODQ4SERATGCgaGBYWGDEjJR0oOjM9PDkzODdASFxOQERXRTc4UG1RV19iZ2hnPk1xeXBkeFxl
Z2P/2wBDARESEhgVGC8aGi9jQjhCY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2P/wAARCAAQABADARQAAhEB
AxEB/8QAFQABAQAAAAAAAAAAAAAAAAAAAAX/xAAUEAEAAAAAAAAAAAAAAAAAAAAA/8QAFgEBAQEAAAAAAAAAAAAAAAAAAAQG/8QAFBEBAAAAAAAAAAAA
AAAAAAAAAP/aAAwDAQACEQMRAD8AjgIWoAAf/9k=""",
}


def outcome(work):
    try:
        return work()
    except Exception as error:
        return f"{type(error).__name__}: {error}"


print("simplejpeg", simplejpeg.__version__, "numpy", np.__version__)
seen = {}
for name, text in FILES.items():
    data = base64.b64decode(text)
    pillow = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    header = outcome(lambda: simplejpeg.decode_jpeg_header(data))
    pixels = outcome(lambda: simplejpeg.decode_jpeg(data, "RGB"))
    if isinstance(pixels, np.ndarray):
        pixels = f"decoded, at most {np.abs(pixels - pillow).max()} from Pillow's"
    print(f"{name}: Pillow's mean {pillow.mean(axis=(0, 1)).round()}; header: {header}; pixels: {pixels}")
    seen[name] = (str(header), pixels)
refused = "Could not determine subsampling level"
assert seen["4:4:1"] == ("KeyError: 6", "decoded, at most 0 from Pillow's"), "this has changed"
assert all(refused in text for text in seen["4:1:0"]), "this has changed"
PYTHON
python look.py
