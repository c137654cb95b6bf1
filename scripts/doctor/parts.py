"""The parts of both profiles: what serves on CPUs, each really started, and what a GPU needs.

    embedded_triton(), perf_analyzer(), dali(), openvino()
    driver(needed=True), tensorrt(needed=True), container()
    plugins(Path("libretinaserve_plugins.so"), needed=True)
    plan(Path("model.plan"), Path("libretinaserve_plugins.so"))

What is missing of a GPU is a failure where its profile is asked for, and a remark where it is not.
"""

import ctypes
import io
import tempfile
import time
import tomllib
from pathlib import Path

import numpy as np

from retinaserve.build_tools.engine.manifest import Driver, check_plan, this_target
from retinaserve.scripts.doctor.machine import Check, installed

VERSIONS = Path(__file__).parents[1] / "deploy" / "versions.toml"
OLDEST_TENSORRT = (10, 12)  # the first whose strongly typed networks take all of our graphs
MAKE_PLUGINS = "make plugins TENSORRT_ROOT=DIR, or name the library with --plugins"
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
        return Check.fail(f"it answered {answer} for 0.5", "this is a bug: report it")
    seconds = time.monotonic() - start
    return Check.ok(f"tritonserver {version} started, answered and stopped in {seconds:.1f} s")


def perf_analyzer() -> Check:
    """Start perf_analyzer."""
    from retinaserve.eval.bench.perf_analyzer import PerfAnalyzer

    with PerfAnalyzer("detector", []) as analyzer:
        return Check.ok(analyzer.version())


def dali() -> Check:
    """Decode an image with the pipeline that serving uses."""
    from PIL import Image

    from retinaserve.build_tools.preprocess import Prepared, Preprocessor

    buffer = io.BytesIO()
    Image.new("RGB", (96, 64), (200, 30, 30)).save(buffer, "JPEG")
    (result,) = Preprocessor((64, 64), (0, 0, 0), threads=1, max_batch=1).run([buffer.getvalue()])
    if not isinstance(result, Prepared):
        return Check.fail(f"it refused a good image: {result}", "pip install 'retinaserve[serve]'")
    return Check.ok(f"{installed('nvidia-dali-cuda120')} decodes and letterboxes on the CPU")


def openvino() -> Check:
    """Compile and run the least network."""
    import openvino as ov

    from retinaserve.build_tools.openvino_cpu import shared_core

    x = ov.opset13.parameter([1], np.float32)
    network = shared_core().compile_model(ov.Model([ov.opset13.add(x, x)], [x], "double"), "CPU")
    (doubled,) = network([np.array([2.0], np.float32)]).values()
    if float(doubled[0]) != 4.0:
        return Check.fail(f"2 + 2 gave {doubled}", "pip install 'retinaserve[serve]'")
    version = ov.get_version().split("-")[0]
    hint = network.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    return Check.ok(f"{version} runs on the CPU; of itself it would compute in {hint}")


def driver(*, needed: bool) -> Check:
    """Say which GPUs the driver sees."""
    try:
        found = Driver()
    except OSError as error:
        if "cuInit" in str(error):
            return _absent(str(error), "nvidia-smi says more", needed)
        return _absent("not installed", "install NVIDIA's driver for this GPU", needed)
    gpus = found.gpus()
    if not gpus:
        return _absent(f"CUDA {found.cuda}, no GPU", "nvidia-smi lists those there are", needed)
    names = "; ".join(
        f"{gpu.name}, compute capability {gpu.compute_capability}, {gpu.memory / 1e9:.0f} GB" for gpu in gpus
    )
    return Check.ok(f"CUDA {found.cuda}: {names}")


def tensorrt(*, needed: bool) -> Check:
    """Say which TensorRT builds plans here."""
    found = installed("tensorrt")
    if found is None:
        return _absent("not installed", "pip install 'retinaserve[gpu]'", needed)
    if tuple(map(int, found.split(".")[:2])) < OLDEST_TENSORRT:
        wanted = ".".join(map(str, OLDEST_TENSORRT))
        return Check.fail(f"{found}, {wanted} is needed", "pip install 'retinaserve[gpu]'")
    import tensorrt

    return Check.ok(f"{tensorrt.__version__} is importable")


def container(versions: Path = VERSIONS, *, built_by: str | None = None) -> Check:
    """Compare this machine's TensorRT, or `built_by`, with that of the production container."""
    wanted = tomllib.loads(versions.read_text())["container"]
    content = "Triton {triton}, TensorRT {tensorrt}, DALI {dali}, CUDA {cuda}".format(**wanted)
    detail = f"{wanted['tag']}: {content}; driver {wanted['driver']} or later"
    found = built_by or installed("tensorrt")
    if found and found.split(".")[:3] != str(wanted["tensorrt"]).split(".")[:3]:
        remedy = "plans built here will not load there: build them in the container's TensorRT, docs/serving.md"
        return Check.warn(f"{detail}; this machine has TensorRT {found}", remedy)
    return Check.ok(detail)


def plugins(library: Path, *, needed: bool) -> Check:
    """Say whether our plugin library is there and loads."""
    if not library.is_file():
        return _absent(f"{library}: no such file", MAKE_PLUGINS, needed)
    try:
        ctypes.CDLL(str(library.resolve()))
    except OSError as error:
        return Check.fail(f"{library} does not load: {error}", MAKE_PLUGINS)
    return Check.ok(f"{library} loads")


def plan(path: Path, library: Path) -> Check:
    """Say whether a plan fits this machine's GPU, TensorRT and plugin library, by its manifest."""
    manifest = check_plan(path, this_target(library if library.is_file() else None))
    low, _, high = manifest.batch
    what = f"{manifest.precision} for {manifest.gpu}, TensorRT {manifest.tensorrt}, batch {low} to {high}"
    return Check.ok(f"{path}: {what}")


def _absent(detail: str, remedy: str, needed: bool) -> Check:
    return Check.fail(detail, remedy) if needed else Check.ok(f"{detail}; only the GPU profile needs it")
