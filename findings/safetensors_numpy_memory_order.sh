#!/usr/bin/env bash
# safetensors.numpy: a transposed array comes back with the same shape and other values, without an error.
#
# Expected: the array, as before version 0.8, or an error as safetensors.torch gives for what is not contiguous.
# Seen:     save_file(kernel.transpose(3, 2, 0, 1)) and load_file: every value is there, at other places.
# Why:      0.8 writes the array's memory from its first byte on, and says that it is in C order.
# Matters:  who makes torch's kernels of Keras's has a file that loads everywhere and detects nothing, or worse.
#           np.ascontiguousarray before saving.
# Source:   safetensors/safetensors 825 (a Fortran array; open)
. "$(dirname "$0")/_venv.sh"
pip 'safetensors==0.8.0' 'numpy==2.2.6'
cat > "$folder/ask.py" <<'PYTHON'
import sys

import numpy as np
import safetensors
from safetensors.numpy import load, save

kernel = np.arange(3 * 3 * 2 * 4, dtype=np.float32).reshape(3, 3, 2, 4)  # Keras: h, w, inputs, outputs
kernel = kernel.transpose(3, 2, 0, 1)  # torch: outputs, inputs, h, w
loaded = load(save({"kernel": kernel}))["kernel"]
right = load(save({"kernel": np.ascontiguousarray(kernel)}))["kernel"]
print(f"safetensors {safetensors.__version__}, numpy {np.__version__}: {kernel.shape} became {loaded.shape}, ", end="")
print(f"equal: {np.array_equal(loaded, kernel)}, of a contiguous copy: {np.array_equal(right, kernel)}")
same = [np.array_equal(each, kernel) for each in (loaded, right)]
sys.exit(loaded.shape != kernel.shape or same != [False, True])
PYTHON
python ask.py
