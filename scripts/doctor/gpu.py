"""The GPU profile's parts: driver, GPUs, TensorRT, our plugin library.

    driver(needed=True), tensorrt(needed=True), plugins(Path("libretinaserve_plugins.so"), needed=True)
    container()
    plan(Path("model.plan"), Path("libretinaserve_plugins.so"))

What is missing is a failure where the GPU profile is asked for, and a remark where it is not.
"""

import ctypes
import tomllib
from pathlib import Path

from retinaserve.build_tools.engine.gpu import Driver, this_target
from retinaserve.build_tools.engine.manifest import check_plan
from retinaserve.scripts.doctor.check import Check, Status
from retinaserve.scripts.doctor.packages import installed

VERSIONS = Path(__file__).parents[1] / "deploy" / "versions.toml"
OLDEST_TENSORRT = (10, 12)  # the first whose strongly typed networks take all of our graphs
MAKE_PLUGINS = "make plugins TENSORRT_ROOT=DIR, or name the library with --plugins"


def driver(*, needed: bool) -> Check:
    """Say which GPUs the driver sees."""
    try:
        found = Driver()
    except OSError as error:
        if "cuInit" in str(error):
            return _absent("CUDA driver", str(error), "nvidia-smi says more", needed)
        return _absent("CUDA driver", "not installed", "install NVIDIA's driver for this GPU", needed)
    gpus = found.gpus()
    if not gpus:
        return _absent("CUDA driver", f"CUDA {found.cuda}, no GPU", "nvidia-smi lists those there are", needed)
    names = "; ".join(
        f"{gpu.name}, compute capability {gpu.compute_capability}, {gpu.memory / 1e9:.0f} GB" for gpu in gpus
    )
    return Check("CUDA driver", Status.OK, f"CUDA {found.cuda}: {names}")


def tensorrt(*, needed: bool) -> Check:
    """Say which TensorRT builds plans here."""
    found = installed("tensorrt")
    if found is None:
        return _absent("TensorRT", "not installed", "pip install 'retinaserve[gpu]'", needed)
    if tuple(map(int, found.split(".")[:2])) < OLDEST_TENSORRT:
        wanted = ".".join(map(str, OLDEST_TENSORRT))
        return Check("TensorRT", Status.FAIL, f"{found}, {wanted} is needed", "pip install 'retinaserve[gpu]'")
    import tensorrt

    return Check("TensorRT", Status.OK, f"{tensorrt.__version__} is importable")


def container(versions: Path = VERSIONS, *, built_by: str | None = None) -> Check:
    """Compare this machine's TensorRT, or `built_by`, with that of the production container."""
    wanted = tomllib.loads(versions.read_text())["container"]
    content = "Triton {triton}, TensorRT {tensorrt}, DALI {dali}, CUDA {cuda}".format(**wanted)
    detail = f"{wanted['tag']}: {content}; driver {wanted['driver']} or later"
    found = built_by or installed("tensorrt")
    if found and found.split(".")[:3] != str(wanted["tensorrt"]).split(".")[:3]:
        remedy = "plans built here will not load there: build them in the container's TensorRT, docs/serving.md"
        return Check("container", Status.WARN, f"{detail}; this machine has TensorRT {found}", remedy)
    return Check("container", Status.OK, detail)


def plugins(library: Path, *, needed: bool) -> Check:
    """Say whether our plugin library is there and loads."""
    if not library.is_file():
        return _absent("plugins", f"{library}: no such file", MAKE_PLUGINS, needed)
    try:
        ctypes.CDLL(str(library.resolve()))
    except OSError as error:
        return Check("plugins", Status.FAIL, f"{library} does not load: {error}", MAKE_PLUGINS)
    return Check("plugins", Status.OK, f"{library} loads")


def plan(path: Path, library: Path) -> Check:
    """Say whether a plan fits this machine's GPU, TensorRT and plugin library, by its manifest."""
    manifest = check_plan(path, this_target(library if library.is_file() else None))
    low, _, high = manifest.batch
    what = f"{manifest.precision} for {manifest.gpu}, TensorRT {manifest.tensorrt}, batch {low} to {high}"
    return Check("plan", Status.OK, f"{path}: {what}")


def _absent(name: str, detail: str, remedy: str, needed: bool) -> Check:
    if needed:
        return Check(name, Status.FAIL, detail, remedy)
    return Check(name, Status.OK, f"{detail}; only the GPU profile needs it")
