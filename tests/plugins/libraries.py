"""The compiled libraries that the tests of plugins/ load: emulated on the CPU, or `make plugins`' on a GPU.

    @pytest.mark.parametrize("device", DEVICES)
    def test(device):
        kernels = kernels_on(device)        # skips with the reason where that cannot be

Plain functions, no fixtures: the machine with the GPU has not all of the project's packages, and runs these tests
with --noconftest.
"""

import ctypes
import os
import shutil
from functools import cache
from pathlib import Path

import pytest

from tests.plugins.emulator.native import HERE, KERNELS, PLUGINS, Kernels, compile_for_cpu
from tests.shared import once

ROOT = Path(__file__).parents[2]
BUILT = Path(os.environ.get("RETINASERVE_PLUGINS_BUILD", ROOT / "build" / "plugins"))
DEVICES = ("cpu", pytest.param("gpu", marks=pytest.mark.gpu))
TRITON = PLUGINS / "adapter" / "triton.cpp"
ADAPTER = tuple(sorted(set((PLUGINS / "adapter").glob("*.cpp")) - {TRITON}))


def require_compiler() -> None:
    """Skip where there is no g++."""
    if not shutil.which("g++"):
        pytest.skip("needs g++")


def require_gpu() -> None:
    """Skip where there is no GPU."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        pytest.skip("needs an NVIDIA GPU: there is no driver")
    count = ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        pytest.skip("needs an NVIDIA GPU: the driver sees none")


def built(name: str) -> Path:
    """Return a library that `make plugins` has made; skip where it has not."""
    path = BUILT / name
    if not path.is_file():
        pytest.skip(f"needs build/plugins/{name}: make plugins")
    return path


@cache
def kernels_on(device: str) -> Kernels:
    """Return the kernels for the CPU or a GPU. On a GPU compute-sanitizer watches edges, not guards."""
    if device == "gpu":
        require_gpu()
        return Kernels(built("libretinaserve_kernels.so"))
    require_compiler()
    return Kernels(once("libretinaserve_kernels.so", compile_for_cpu), guard=256)


def tensorrt_headers() -> list[Path]:
    """Return the folders with TensorRT's headers: of every version in TENSORRT_ROOT, and the system's."""
    roots = [Path(each) for each in os.environ.get("TENSORRT_ROOT", "").split(os.pathsep) if each]
    folders = [folder for root in roots for folder in (root, root / "include")]
    folders += [Path("/usr/include"), Path("/usr/include/x86_64-linux-gnu"), Path("/usr/local/tensorrt/include")]
    return [folder for folder in folders if (folder / "NvInferRuntime.h").is_file()]


def require_headers() -> list[str]:
    """Return g++'s flags for the headers of TensorRT and CUDA; skip where one of them is not there."""
    require_compiler()
    found = tensorrt_headers()
    if not found:
        pytest.skip("needs TensorRT's headers: set TENSORRT_ROOT to the folder that has include/")
    return ["-isystem", str(found[0]), "-isystem", str(cuda_headers())]


def cuda_headers() -> Path:
    """Return the folder of cuda_runtime_api.h, which TensorRT's headers include; skip where there is none."""
    nvcc = shutil.which("nvcc")
    roots = [Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))]
    roots += [Path(nvcc).resolve().parents[1]] if nvcc else []
    for root in roots:
        if (root / "include" / "cuda_runtime_api.h").is_file():
            return root / "include"
    pytest.skip("needs CUDA's headers: set CUDA_HOME")


@cache
def plugins_on(device: str) -> Path:
    """Return the plugin library, as TensorRT loads it; on the CPU its kernels are emulated."""
    if device == "gpu":
        require_gpu()
        return built("libretinaserve_plugins.so")
    flags = ["-fvisibility=hidden", *require_headers()]
    sources = (*KERNELS, *ADAPTER)
    return once("libretinaserve_plugins.so", lambda path: compile_for_cpu(path, sources, flags))


@cache
def triton_on(device: str) -> Path:
    """Return the library that registers the plugins of the library beside it."""
    plugins_on(device)
    if device == "gpu":
        return built("libretinaserve_triton.so")
    flags = ["-fvisibility=hidden", *require_headers(), "-ldl"]
    return once("libretinaserve_triton.so", lambda path: compile_for_cpu(path, (TRITON,), flags))


@cache
def harness_on(device: str) -> Path:
    """Return the harness library, which takes the plugins of another library through their life."""
    if device == "gpu":
        require_gpu()
        return built("libretinaserve_harness.so")
    sources = (HERE / "harness.cpp", HERE / "memory.cpp")
    flags = [*require_headers(), "-ldl"]
    return once("libretinaserve_harness.so", lambda path: compile_for_cpu(path, sources, flags))
