"""The GPUs of this machine, and what a plan meets here, without importing TensorRT.

find_gpus()                                     # [Gpu("NVIDIA L4", "8.9", 24e9)]
this_target(Path("libretinaserve_plugins.so"))  # for build_tools/engine/manifest.py
"""

import ctypes
import os
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from retinaserve.build_tools.engine.manifest import Target
from retinaserve.training.files import sha256

# CUdevice_attribute of cuda.h
CAPABILITY_MAJOR, CAPABILITY_MINOR = 75, 76


@dataclass(frozen=True)
class Gpu:
    """A device as its driver describes it."""

    name: str
    compute_capability: str
    memory: int  # bytes


class Driver:
    """NVIDIA's driver library. Raises OSError where there is none, or it does not start."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL("libcuda.so.1")
        code = self._library.cuInit(0)
        if code:
            raise OSError(f"cuInit failed with error {code}")

    @property
    def cuda(self) -> str:
        """The newest CUDA that the driver serves."""
        version = ctypes.c_int()
        self._library.cuDriverGetVersion(ctypes.byref(version))
        return f"{version.value // 1000}.{version.value % 1000 // 10}"

    def gpus(self) -> list[Gpu]:
        """Return the devices, in CUDA's order."""
        count = ctypes.c_int()
        self._library.cuDeviceGetCount(ctypes.byref(count))
        return [self._gpu(number) for number in range(count.value)]

    def _gpu(self, number: int) -> Gpu:
        device, value, memory = ctypes.c_int(), ctypes.c_int(), ctypes.c_size_t()
        name = ctypes.create_string_buffer(256)
        self._library.cuDeviceGet(ctypes.byref(device), number)
        self._library.cuDeviceGetName(name, len(name), device)
        self._library.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
        parts = []
        for attribute in (CAPABILITY_MAJOR, CAPABILITY_MINOR):
            self._library.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
            parts.append(str(value.value))
        return Gpu(name.value.decode(errors="replace"), ".".join(parts), memory.value)


def find_gpus() -> list[Gpu]:
    """Return the GPUs that the driver sees; none without a driver."""
    try:
        return Driver().gpus()
    except OSError:
        return []


def tensorrt_version() -> str:
    """Return the version of the TensorRT that is installed for Python, or nothing."""
    try:
        return metadata.version("tensorrt")
    except metadata.PackageNotFoundError:
        return ""


def tensorrt_cuda() -> str:
    """Return the CUDA that the installed TensorRT is made for, or nothing.

    TensorRT does not say. Its wheels have it in their name (tensorrt_cu13), NVIDIA's containers in CUDA_VERSION.
    """
    for name in (each.metadata["Name"] or "" for each in metadata.distributions()):
        package, _, cuda = name.lower().replace("-", "_").partition("_cu")
        if package == "tensorrt" and cuda[:2].isdigit():
            return cuda[:2]
    return ".".join(os.environ.get("CUDA_VERSION", "").split(".")[:2])


def this_target(plugins: Path | None = None) -> Target:
    """Return what a plan meets on this machine; what can't be found out stays empty.

    Raises UserError where the plugin library can't be read.
    """
    gpus = find_gpus()
    return Target(
        tensorrt=tensorrt_version(),
        cuda=tensorrt_cuda(),
        compute_capability=gpus[0].compute_capability if gpus else "",
        plugins_sha256=sha256(plugins) if plugins else "",
    )
