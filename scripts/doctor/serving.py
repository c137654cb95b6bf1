"""The parts of the CPU profile, each really started: server and python backend, perf_analyzer, DALI, OpenVINO.

embedded_triton(), perf_analyzer(), dali(), openvino()
"""

import io
import tempfile
import time
from pathlib import Path

import numpy as np

from retinaserve.scripts.doctor.check import Check, Status

# The least model that needs the backend, its stub and this Python's packages.
CONFIG = """\
name: "echo"
backend: "python"
input [ { name: "x" data_type: TYPE_FP32 dims: [ 1 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ 1 ] } ]
instance_group [ { kind: KIND_CPU } ]
"""
MODEL = '''\
"""Answers what it is asked."""

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """What the python backend looks for."""

    def execute(self, requests):
        """Give every request its own tensor back."""
        tensors = [pb_utils.get_input_tensor_by_name(request, "x").as_numpy() for request in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", tensor)]) for tensor in tensors]
'''


def embedded_triton() -> Check:
    """Start the server with a small model on free ports, ask it, stop it."""
    import tritonclient.http as triton

    from retinaserve.scripts.server.triton import Server

    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="retinaserve-") as scratch:
        model = Path(scratch) / "echo"
        (model / "1").mkdir(parents=True)
        (model / "config.pbtxt").write_text(CONFIG)
        (model / "1" / "model.py").write_text(MODEL)
        with Server(Path(scratch)) as server:
            client = triton.InferenceServerClient(server.http_url)
            version = client.get_server_metadata()["version"]
            asked = triton.InferInput("x", [1], "FP32")
            asked.set_data_from_numpy(np.array([0.5], np.float32))
            answer = client.infer("echo", [asked]).as_numpy("y")
            client.close()
    if answer is None or answer.tolist() != [0.5]:
        return Check("embedded Triton", Status.FAIL, f"it answered {answer} for 0.5", "this is a bug: report it")
    seconds = time.monotonic() - start
    return Check(
        "embedded Triton", Status.OK, f"tritonserver {version} started, answered and stopped in {seconds:.1f} s"
    )


def perf_analyzer() -> Check:
    """Start perf_analyzer."""
    from retinaserve.eval.bench.perf_analyzer import PerfAnalyzer

    with PerfAnalyzer("detector", []) as analyzer:
        return Check("perf analyzer", Status.OK, analyzer.version())


def dali() -> Check:
    """Decode an image with the pipeline that serving uses."""
    from PIL import Image

    from retinaserve.build_tools.preprocess import Prepared, Preprocessor
    from retinaserve.scripts.doctor.packages import installed

    buffer = io.BytesIO()
    Image.new("RGB", (96, 64), (200, 30, 30)).save(buffer, "JPEG")
    (result,) = Preprocessor((64, 64), (0, 0, 0), threads=1, max_batch=1).run([buffer.getvalue()])
    if not isinstance(result, Prepared):
        return Check("DALI", Status.FAIL, f"it refused a good image: {result}", "pip install 'retinaserve[serve]'")
    return Check("DALI", Status.OK, f"{installed('nvidia-dali-cuda120')} decodes and letterboxes on the CPU")


def openvino() -> Check:
    """Compile and run the least network."""
    import openvino as ov

    from retinaserve.build_tools.openvino_cpu import shared_core

    x = ov.opset13.parameter([1], np.float32)
    network = shared_core().compile_model(ov.Model([ov.opset13.add(x, x)], [x], "double"), "CPU")
    (doubled,) = network([np.array([2.0], np.float32)]).values()
    if float(doubled[0]) != 4.0:
        return Check("OpenVINO", Status.FAIL, f"2 + 2 gave {doubled}", "pip install 'retinaserve[serve]'")
    version = ov.get_version().split("-")[0]
    hint = network.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    return Check("OpenVINO", Status.OK, f"{version} runs on the CPU; of itself it would compute in {hint}")
