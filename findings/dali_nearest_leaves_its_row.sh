#!/usr/bin/env bash
# DALI's nearest-neighbour resize of a region that reaches beyond the right edge takes pixels of another row.
#
# Expected: fn.resize with INTERP_NN, roi_start and roi_end half a pixel beyond an edge repeats the edge's pixels, as
#           below the last row, and as with INTERP_LINEAR.
# Seen:     enlarged along x, the last column of each row is the next row's last pixel. Along y, and where nothing is
#           enlarged, edges are repeated.
# Matters:  regions are how an image is shifted by parts of a pixel, or a crop taken that meets the edge; label maps are
#           resized like this. One column is wrong, by as much as two rows differ.
# Source:   DALI's page of fn.resize, roi_start and roi_end; what the other directions and INTERP_LINEAR do.
. "$(dirname "$0")/_venv.sh"
pip 'nvidia-dali-cuda120==2.4.0' 'numpy==2.3.5'
cat > "$folder/look.py" <<'PYTHON'
import sys

import numpy as np
import nvidia.dali as dali
from nvidia.dali import fn, types

image = np.array([[0, 1, 2, 3], [100, 101, 102, 103], [200, 201, 202, 203]], np.uint8)[..., None]


def resized(given, size, end, kind):
    @dali.pipeline_def(batch_size=1, num_threads=1, device_id=None, prefetch_queue_depth=1)
    def graph():
        encoded = fn.external_source(name="image", device="cpu", layout="HWC")
        start = [side - whole for side, whole in zip(end, given.shape)]
        return fn.resize(encoded, size=size, roi_start=start, roi_end=end, interp_type=kind, antialias=False)

    pipeline = graph()
    pipeline.build()
    pipeline.feed_input("image", [given])
    return np.array(pipeline.run()[0].at(0))[..., 0]


across = resized(image, [3, 7], [3.0, 4.5], types.INTERP_NN)[:, -1].tolist()
linear = resized(image, [3, 7], [3.0, 4.5], types.INTERP_LINEAR)[:, -1].tolist()
down = resized(image.transpose(1, 0, 2).copy(), [7, 3], [4.5, 3.0], types.INTERP_NN)[-1].tolist()
print(f"nvidia-dali-cuda120 {dali.__version__}: last column {across}, by INTERP_LINEAR {linear}; last row of the same turned {down}")
sys.exit(not (down == linear == [3, 103, 203] and across != down))
PYTHON
python look.py
