"""Where the embedded Triton's pieces lie in the nvidia-pytriton wheel, and what they need to run.

    installation = Installation.find()
    subprocess.Popen([installation.binary, ...], env=installation.environment())

Nothing of PyTriton is imported: only the server binary, the python backend and their libraries are used.
"""

import ctypes
import os
import sys
import sysconfig
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Self

from retinaserve.training.errors import Exit, UserError


@dataclass(frozen=True)
class Installation:
    """Where the pieces of the wheel lie."""

    root: Path  # pytriton/tritonserver
    libraries: Path  # nvidia_pytriton.libs

    @classmethod
    def find(cls) -> Self:
        """Locate the wheel without importing it. Raises UserError where it is not installed."""
        found = find_spec("pytriton")
        if found is None or not found.origin:
            raise UserError(
                "the embedded Triton is not installed", "pip install 'retinaserve[serve]'", code=Exit.USAGE
            )
        package = Path(found.origin).parent
        return cls(package / "tritonserver", package.parent / "nvidia_pytriton.libs")

    @property
    def binary(self) -> Path:
        """The tritonserver executable."""
        return self.root / "bin" / "tritonserver"

    @property
    def stub(self) -> Path:
        """The python backend's child process, built for one Python version each."""
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        path = self.root / "python_backend_stubs" / version / "triton_python_backend_stub"
        if not path.is_file():
            raise UserError(f"the embedded Triton has no python backend for Python {version}")
        return path

    def backends(self, folder: Path) -> Path:
        """Lay out a backend directory with the python backend and this Python's stub."""
        python = folder / "python"
        python.mkdir(parents=True)
        for source in (*(self.root / "backends" / "python").iterdir(), self.stub):
            (python / source.name).symlink_to(source)
        return folder

    def environment(self) -> dict[str, str]:
        """Return the variables the server needs: its libraries, and this interpreter as `python3` in PATH.

        The stub embeds Python with PYTHONPATH and PYTHONHOME ignored; it finds its packages, those of a virtual
        environment too, from the first `python3` in PATH.
        """
        search = [str(self.libraries), str(python_library().parent), os.environ.get("LD_LIBRARY_PATH", "")]
        return {
            **os.environ,
            "LD_LIBRARY_PATH": ":".join(filter(None, search)),
            "PATH": f"{Path(sys.prefix) / 'bin'}:{os.environ.get('PATH', os.defpath)}",
        }


def python_library() -> Path:
    """Return libpython's path, which the python backend is linked with. Raises UserError where there is none."""
    name = f"libpython{sys.version_info.major}.{sys.version_info.minor}.so.1.0"
    folders = [Path(sysconfig.get_config_var("LIBDIR") or "/nonexistent"), Path(sys.base_prefix) / "lib"]
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    with suppress(OSError):
        ctypes.CDLL(name)
        for line in Path("/proc/self/maps").read_text().splitlines():
            if line.endswith(name):
                return Path(line.split(maxsplit=5)[-1])
    raise UserError(
        f"{name} is not installed: the python backend of the embedded Triton is linked with it",
        f"on Debian and Ubuntu: apt install {name.split('.so')[0]}; or use a Python built with --enable-shared",
        code=Exit.USAGE,
    )


def usable_cores() -> int:
    """Return how many cores this process may use: its affinity, cut by a container's CPU quota."""
    cores = len(os.sched_getaffinity(0))
    with suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cores = min(cores, max(1, round(int(quota) / int(period))))
    return cores
