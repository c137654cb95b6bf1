#!/usr/bin/env bash
# A DALI pipeline without the dynamic executor refuses every batch after one that it could not decode.
#
# Expected: a batch with a file that is no image raises; the next, good batch is decoded.
# Seen:     with exec_dynamic=False the next one raises too, and all after it; with exec_dynamic=True, the default, the
#           next one is decoded.
# Matters:  a server whose pipeline was written for older releases (static executor) answers nothing any more after one
#           bad upload. Build with exec_dynamic=True, check images before, or build the pipeline anew after an error.
. "$(dirname "$0")/_venv.sh"
pip 'nvidia-dali-cuda120==2.4.0' 'pillow==12.0.0'
cat > "$folder/look.py" <<'PYTHON'
import io
import sys

import numpy as np
import nvidia.dali as dali
from nvidia.dali import fn, types
from PIL import Image

buffer = io.BytesIO()
Image.new("RGB", (32, 16), (10, 200, 30)).save(buffer, "JPEG")
good, bad = np.frombuffer(buffer.getvalue(), np.uint8), np.frombuffer(b"plain text and no image", np.uint8)
seen = {}
for dynamic in (False, True):

    @dali.pipeline_def(batch_size=1, num_threads=1, device_id=None, exec_dynamic=dynamic, prefetch_queue_depth=1)
    def decode():
        return fn.decoders.image(fn.external_source(name="image", device="cpu", dtype=types.UINT8), device="cpu")

    pipeline = decode()
    pipeline.build()
    outcomes = []
    for image in (good, bad, good, good):
        try:
            pipeline.feed_input("image", [image])
            pipeline.run()
            outcomes.append("decoded")
        except RuntimeError:
            outcomes.append("error")
    seen[f"exec_dynamic={dynamic}"] = outcomes
print(f"nvidia-dali-cuda120 {dali.__version__}: good, bad, good, good: {seen}")
sys.exit(list(seen.values()) != [["decoded", "error", "error", "error"], ["decoded", "error", "decoded", "decoded"]])
PYTHON
python look.py
