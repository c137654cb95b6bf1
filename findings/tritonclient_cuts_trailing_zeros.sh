#!/usr/bin/env bash
# tritonclient sends an image without the zero bytes at its end when it stands in a plain np.array.
#
# Expected: InferInput.set_data_from_numpy(np.array([image_bytes])) sends the bytes of the image.
# Seen:     NumPy stores bytes as fixed-width "S" and drops zeros at the end when they are read; 10 bytes arrive as 7.
# Matters:  JPEG and PNG end otherwise and work, TIFF, BMP and raw tensors often end with zeros: the server decodes a
#           file that is too short ("truncated", or grey rows). Always np.array([image_bytes], dtype=object).
# Source:   NumPy manual, "Data types", on fixed-width bytes; tritonclient's own examples use np.object_.
. "$(dirname "$0")/_venv.sh"
pip 'tritonclient[grpc]==2.69.0' 'numpy==2.2.6'
cat > "$folder/look.py" <<'PYTHON'
import importlib.metadata
import sys

import numpy as np
import tritonclient.grpc as grpc

image = b"II*\0data\0\0\0"
sent = {}
for name, array in {"np.array([image])": np.array([image]), "dtype=object": np.array([image], object)}.items():
    given = grpc.InferInput("image", [1], "BYTES")
    given.set_data_from_numpy(array)
    sent[name] = int.from_bytes(given._get_content()[:4], "little")
print(f"tritonclient {importlib.metadata.version('tritonclient')}, numpy {np.__version__}: {len(image)} bytes; sent {sent}")
sys.exit(sent != {"np.array([image])": 8, "dtype=object": 11})
PYTHON
python look.py
