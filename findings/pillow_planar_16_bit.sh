#!/usr/bin/env bash
# Pillow reads an uncompressed CMYK TIFF of 16 bits in planes as another image, without an error; deflated, it is right.
#
# Expected: the same pixels whatever the compression; or an error.
# Seen:     uncompressed, Pillow's own reader takes the 16-bit planes for 8-bit ones; an RGB file of this layout raises
#           "unknown raw mode". Deflated, libtiff reads it, right; TiffImagePlugin.READ_LIBTIFF = True mends both.
# Matters:  who prepares images of prepress or microscopes with Pillow: other pixels for a quarter of the settings.
. "$(dirname "$0")/_venv.sh"
pip 'numpy==2.3.5' 'pillow==13.0.0' 'tifffile==2025.10.16'
cat > "$folder/look.py" <<'PYTHON'
import sys

import numpy as np
import PIL
import tifffile
from PIL import Image, TiffImagePlugin

eight = np.stack([np.add.outer(np.arange(16) * a, np.arange(24) * b) for a, b in ((3, 5), (7, 2), (1, 9), (4, 4))])
eight = eight.astype(np.uint8)  # (4, h, w)
values = eight.astype(np.uint16) * 257
seen = {}
for compression in (None, "zlib"):
    tifffile.imwrite("a.tif", values, photometric="separated", planarconfig="separate", compression=compression)
    assert (tifffile.imread("a.tif") == values).all()
    for libtiff in (False, True):
        TiffImagePlugin.READ_LIBTIFF = libtiff
        with Image.open("a.tif") as image:
            pixels = np.moveaxis(np.asarray(image), -1, 0)
        seen[f"{compression or 'none'}, READ_LIBTIFF={libtiff}"] = bool((pixels == eight).all())
print(f"pillow {PIL.__version__}, tifffile {tifffile.__version__}; right pixels by compression: {seen}")
sys.exit(list(seen.values()) != [False, True, True, True])
PYTHON
python look.py
