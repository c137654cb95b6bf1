#!/usr/bin/env bash
# rasterio reads small views of an image from an .ovr file of that name, whatever image it was made of.
#
# Expected: `read(out_shape=...)` gives the image's own pixels, the nearest ones by default.
# Seen:     beside an `.ovr` file the small view is made of that file, also when the image was replaced since by another
#           one; the full size is right. With the nearest pixels asked for, an averaged overview's means come back.
# Matters:  an orthophoto that was corrected in place keeps its old overviews when the tool that wrote it is not GDAL:
#           detection on a whole, shrunk image sees the old one, and its tiles see the new one.
# Source:   GDAL, GTiff driver and gdaladdo: external overviews; nothing in the file names its source.
. "$(dirname "$0")/_venv.sh"
pip 'rasterio==1.4.4' 'tifffile==2026.3.3' 'numpy==2.2.6'
cat > "$folder/look.py" <<'PYTHON'
import sys
import warnings

import numpy as np
import rasterio
import rasterio.shutil
import tifffile
from rasterio.enums import Resampling

warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
old, new = np.full((64, 64), 200, np.uint8), np.tile(np.array([0, 90], np.uint8), (64, 32))
tifffile.imwrite("photo.tif", old)
with rasterio.Env(TIFF_USE_OVR=True), rasterio.open("photo.tif", "r+") as image:
    image.build_overviews([2], Resampling.average)
seen = {}
for name in ("old overviews", "own overviews", "no overviews"):
    tifffile.imwrite("photo.tif", new)  # as an editor would: it knows nothing of the .ovr beside it
    if name == "own overviews":
        rasterio.shutil.delete("photo.tif")
        tifffile.imwrite("photo.tif", new)
        with rasterio.Env(TIFF_USE_OVR=True), rasterio.open("photo.tif", "r+") as image:
            image.build_overviews([2], Resampling.average)
    elif name == "no overviews":
        rasterio.shutil.delete("photo.tif")
        tifffile.imwrite("photo.tif", new)
    with rasterio.open("photo.tif") as image:
        assert (image.read(1) == new).all()
        seen[name] = np.unique(image.read(1, out_shape=(32, 32))).tolist()
print(f"rasterio {rasterio.__version__}, GDAL {rasterio.__gdal_version__}; an image of 0 and 90, read at half size: {seen}")
sys.exit(seen != {"old overviews": [200], "own overviews": [45], "no overviews": [90]})
PYTHON
python look.py
