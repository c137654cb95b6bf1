#!/usr/bin/env bash
# Triton's python backend with NumPy 2: a model reads the first byte of every tensor, over and over, without an error.
#
# Expected: NumPy 2 works or the model fails to load; both majors share `import numpy`, and the model loads.
# Seen:     `as_numpy()` of an input [1 2 3 4] gives [1 1 1 1]; np.from_dlpack of the same tensor gives [1 2 3 4].
# Why:      the stub was compiled with a pybind11 that takes an array's item size from where NumPy 1 keeps it; with
#           NumPy 2 it finds 0 there, so every stride is 0.
# Matters:  who serves a python model (preprocessing, a detector) from the nvidia-pytriton wheel and upgrades NumPy:
#           answers are plausible and wrong. Read inputs by np.from_dlpack until the backend is newer.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
for python in python3.11 python3.12 python3; do "$python" -c '' 2>/dev/null && break; done
"$python" -m venv "$folder/venv"
pip() { "$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@"; }
pip 'numpy==2.2.6' 'tritonclient[http]==2.69.0'
pip --no-deps 'nvidia-pytriton==0.7.0' # its metadata asks for NumPy 1; its server and stub are what is tried
mkdir -p "$folder/models/echo/1"
cat > "$folder/models/echo/config.pbtxt" <<'PBTXT'
backend: "python"
input [{ name: "values" data_type: TYPE_UINT8 dims: [ -1 ] }]
output [{ name: "seen" data_type: TYPE_STRING dims: [ 2 ] }]
PBTXT
cat > "$folder/models/echo/1/model.py" <<'PYTHON'
import os
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            tensor = pb_utils.get_input_tensor_by_name(request, "values")
            with open(os.environ["SEEN"], "w") as file:
                print(np.__version__, tensor.as_numpy().tolist(), np.from_dlpack(tensor).tolist(), sep="|", file=file)
        return [pb_utils.InferenceResponse(error=pb_utils.TritonError("written down")) for _ in requests]
PYTHON
cat > "$folder/ask.py" <<'PYTHON'
import os, subprocess, sys, sysconfig, time
from pathlib import Path
import numpy as np
import tritonclient.http as http

folder, port = Path(sys.argv[1]), 18000 + os.getpid() % 1000
site = Path(sysconfig.get_path("purelib"))
root = site / "pytriton" / "tritonserver"
version = f"{sys.version_info.major}.{sys.version_info.minor}"
backend = folder / "backends" / "python"
backend.mkdir(parents=True)
stub = root / "python_backend_stubs" / version / "triton_python_backend_stub"
for source in (*(root / "backends" / "python").iterdir(), stub):
    (backend / source.name).symlink_to(source)
libraries = f"{site / 'nvidia_pytriton.libs'}:{sysconfig.get_config_var('LIBDIR')}"
environment = {
    **os.environ,
    "LD_LIBRARY_PATH": libraries,
    "PATH": f"{Path(sys.prefix) / 'bin'}:{os.environ['PATH']}",
    "SEEN": str(folder / "seen"),
}
command = [root / "bin" / "tritonserver", f"--model-repository={folder / 'models'}", f"--http-port={port}"]
command += [f"--backend-directory={folder / 'backends'}", "--http-address=127.0.0.1"]
command += ["--allow-grpc=false", "--allow-metrics=false"]
server = subprocess.Popen([str(word) for word in command], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
try:
    client = http.InferenceServerClient(f"127.0.0.1:{port}")
    for _ in range(120):
        try:
            if client.is_model_ready("echo"):
                break
        except OSError:
            pass
        time.sleep(0.5)
    values = http.InferInput("values", [4], "UINT8")
    values.set_data_from_numpy(np.array([1, 2, 3, 4], np.uint8))
    try:
        client.infer("echo", [values])
    except http.InferenceServerException as error:
        assert "written down" in str(error), error
finally:
    server.terminate()
    server.wait()
numpy, seen, dlpack = (folder / "seen").read_text().strip().split("|")
print(f"tritonserver 2.51.0 of nvidia-pytriton 0.7.0, numpy {numpy}, input [1, 2, 3, 4]")
print(f"as_numpy():        {seen}")
print(f"np.from_dlpack():  {dlpack}")
sys.exit((seen, dlpack) != ("[1, 1, 1, 1]", "[1, 2, 3, 4]"))
PYTHON
"$folder/venv/bin/python" "$folder/ask.py" "$folder"
