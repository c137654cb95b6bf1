"""The GPU profile's parts: driver, GPUs, TensorRT, our plugin library.

    driver(needed=True), tensorrt(needed=True), plugins(Path("libretinaserve_plugins.so"), needed=True)

What is missing is a failure where the GPU profile is asked for, and a remark where it is not.
"""

import ctypes
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from scripts.doctor.check import Check, Status
from scripts.doctor.packages import installed

OLDEST_TENSORRT = (10, 12)  # the first whose strongly typed networks take all of our graphs
# CUdevice_attribute of cuda.h
CAPABILITY_MAJOR, CAPABILITY_MINOR = 75, 76
MAKE_PLUGINS = "make plugins TENSORRT_ROOT=DIR, or name the library with --plugins"


@dataclass(frozen=True)
class Gpu:
    """A device as its driver describes it."""

    name: str
    compute_capability: str
    memory: int  # bytes


def driver(*, needed: bool) -> Check:
    """Say which GPUs the driver sees."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return _absent("CUDA driver", "not installed", "install NVIDIA's driver for this GPU", needed)
    code = library.cuInit(0)
    if code:
        return _absent("CUDA driver", f"cuInit failed with error {code}", "nvidia-smi says more", needed)
    version = ctypes.c_int()
    library.cuDriverGetVersion(ctypes.byref(version))
    cuda = f"CUDA {version.value // 1000}.{version.value % 1000 // 10}"
    found = list(gpus(library))
    if not found:
        return _absent("CUDA driver", f"{cuda}, no GPU", "nvidia-smi lists those there are", needed)
    names = "; ".join(
        f"{gpu.name}, compute capability {gpu.compute_capability}, {gpu.memory / 1e9:.0f} GB" for gpu in found
    )
    return Check("CUDA driver", Status.OK, f"{cuda}: {names}")


def gpus(library: ctypes.CDLL) -> Iterator[Gpu]:
    """Give what an initialised driver library knows of each device."""
    count = ctypes.c_int()
    library.cuDeviceGetCount(ctypes.byref(count))
    for number in range(count.value):
        device, value, name, memory = (
            ctypes.c_int(),
            ctypes.c_int(),
            ctypes.create_string_buffer(256),
            ctypes.c_size_t(),
        )
        library.cuDeviceGet(ctypes.byref(device), number)
        library.cuDeviceGetName(name, len(name), device)
        library.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
        parts = []
        for attribute in (CAPABILITY_MAJOR, CAPABILITY_MINOR):
            library.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
            parts.append(str(value.value))
        yield Gpu(name.value.decode(errors="replace"), ".".join(parts), memory.value)


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


def plugins(library: Path, *, needed: bool) -> Check:
    """Say whether our plugin library is there and loads."""
    if not library.is_file():
        return _absent("plugins", f"{library}: no such file", MAKE_PLUGINS, needed)
    try:
        ctypes.CDLL(str(library.resolve()))
    except OSError as error:
        return Check("plugins", Status.FAIL, f"{library} does not load: {error}", MAKE_PLUGINS)
    return Check("plugins", Status.OK, f"{library} loads")


def _absent(name: str, detail: str, remedy: str, needed: bool) -> Check:
    if needed:
        return Check(name, Status.FAIL, detail, remedy)
    return Check(name, Status.OK, f"{detail}; only the GPU profile needs it")
