#!/usr/bin/env bash
# Pillow gives other numbers for a compressed big-endian TIFF of floats, without an error.
#
# Expected: byte order is the file's own affair: a TIFF in Motorola order holds the numbers that it holds.
# Seen:     uncompressed it does. With deflate or LZW libtiff has turned the bytes already and Pillow turns them once
#           more: 1.0 comes out as 4.6e-41. tifffile and GDAL read the numbers; Pillow reads 16-bit integers rightly.
# Matters:  depth, thermal and elevation rasters are floats, and some tools write Motorola order: a training set read by
#           Pillow is all but 0 then, and nothing says so. Read such files by tifffile or rasterio.
# Source:   TIFF 6.0, section 2 (byte order) and 19 (sample format).
. "$(dirname "$0")/_venv.sh"
pip 'pillow==13.0.0' 'tifffile==2026.3.3' 'imagecodecs==2026.3.6' 'numpy==2.3.5'
cat > "$folder/look.py" <<'PYTHON'
import sys

import numpy as np
import PIL
import tifffile
from PIL import Image

floats, integers = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4), np.arange(12, dtype=np.uint16).reshape(3, 4)
right = {}
for order, name in (("<", "little-endian"), (">", "big-endian")):
    for compression in (None, "deflate", "lzw"):
        for kind, array in (("float32", floats), ("uint16", integers)):
            tifffile.imwrite("x.tif", array, byteorder=order, compression=compression)
            assert (tifffile.imread("x.tif") == array).all()
            with Image.open("x.tif") as image:
                right[name, compression, kind] = bool((np.asarray(image) == array).all())
print(f"Pillow {PIL.__version__}, tifffile {tifffile.__version__}; wrong in Pillow:")
wrong = [case for case, same in right.items() if not same]
print(wrong)
sys.exit(wrong != [("big-endian", "deflate", "float32"), ("big-endian", "lzw", "float32")])
PYTHON
python look.py
