#!/usr/bin/env bash
# Triton's python backend with NumPy 2: a model reads the first byte of every tensor, over and over, without an error.
#
# Expected: NumPy 2 works or the model fails to load; both majors share `import numpy`, and the model loads.
# Seen:     `as_numpy()` of an input [1 2 3 4] gives [1 1 1 1]; np.from_dlpack of the same tensor gives [1 2 3 4].
# Why:      the stub was compiled with a pybind11 that takes an array's item size from where NumPy 1 keeps it; with
#           NumPy 2 it finds 0 there, so every stride is 0.
# Matters:  who serves a python model (preprocessing, a detector) from the nvidia-pytriton wheel and upgrades NumPy:
#           answers are plausible and wrong. Read inputs by np.from_dlpack until the backend is newer.
. "$(dirname "$0")/_venv.sh"
pip 'numpy==2.2.6' 'tritonclient[http]==2.69.0'
pip --no-deps 'nvidia-pytriton==0.7.0' # its metadata asks for NumPy 1; its server and stub are what is tried
cp "$(dirname "$0")/_triton.py" "$folder"
cat > "$folder/ask.py" <<'PYTHON'
import sys
from pathlib import Path

import numpy as np
import tritonclient.http as http
from _triton import triton

CONFIG = """
input [{ name: "values" data_type: TYPE_UINT8 dims: [ -1 ] }]
output [{ name: "seen" data_type: TYPE_STRING dims: [ 2 ] }]
"""
SEEN = Path("seen").resolve()
EXECUTE = f"""
        for request in requests:
            tensor = pb_utils.get_input_tensor_by_name(request, "values")
            with open({str(SEEN)!r}, "w") as file:
                print(np.__version__, tensor.as_numpy().tolist(), np.from_dlpack(tensor).tolist(), sep="|", file=file)
        return [pb_utils.InferenceResponse(error=pb_utils.TritonError("written down")) for _ in requests]
"""
with triton({"echo": (CONFIG, EXECUTE)}) as server:
    values = http.InferInput("values", [4], "UINT8")
    values.set_data_from_numpy(np.array([1, 2, 3, 4], np.uint8))
    client = http.InferenceServerClient(server.http)
    try:
        client.infer("echo", [values])
    except http.InferenceServerException as error:
        assert "written down" in str(error), error
    client.close()
numpy, seen, dlpack = SEEN.read_text().strip().split("|")
print(f"tritonserver 2.51.0 of nvidia-pytriton 0.7.0, numpy {numpy}, input [1, 2, 3, 4]")
print(f"as_numpy() {seen}, np.from_dlpack() {dlpack}")
sys.exit((seen, dlpack) != ("[1, 1, 1, 1]", "[1, 2, 3, 4]"))
PYTHON
python ask.py
