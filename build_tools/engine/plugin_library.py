"""Our plugin library in TensorRT's registry, where builders and runtimes find it.

    load_plugins(trt, Path("build/plugins/libretinaserve_plugins.so"))    # before trt.Builder and trt.Runtime

The library is built by `make plugins`, and used by what builds a plan and by what runs one.
"""

import ctypes
from pathlib import Path
from typing import Any

from retinaserve.build_tools.graph.detection import DECODE, NMS, VERSION
from retinaserve.training.errors import UserError
from retinaserve.training.files import sha256

_loaded: dict[str, str] = {}  # of each TensorRT in the process: the hash of the library


def load_plugins(trt: Any, library: Path) -> None:
    """Load our plugin library into the registry of the process, once.

    The registry of one builder or runtime would not do: what reads a plan back would not know the plugins. Those
    that exist already don't see what is loaded later. Raises UserError with the linker's reason.
    """
    if not library.is_file():
        raise UserError(f"{library}: no such plugin library", "make plugins TENSORRT_ROOT=DIR builds it")
    registry, content = trt.get_plugin_registry(), sha256(library)
    if not _missing(registry):  # TensorRT takes the same library twice for an error
        if _loaded.get(trt.__name__, content) != content:
            raise UserError(
                f"plugin library {library}: this process has loaded another one already",
                "its plugins have the same names: use one library for all plans, or a process for each",
            )
        return
    try:
        native = ctypes.CDLL(str(library.resolve()))  # TensorRT only logs why a library does not load
    except OSError as error:
        raise UserError(f"plugin library {library} does not load: {error}") from None
    reason = "TensorRT refuses it"
    if not hasattr(native, "getCreators"):
        reason = "it exports no getCreators"
    elif registry.load_library(str(library.resolve())) is not None:
        missing = _missing(registry)
        reason = f"it has no {' and no '.join(missing)} of version {VERSION}" if missing else ""
    if reason:
        raise UserError(
            f"plugin library {library} is of no use to TensorRT {trt.__version__}: {reason}",
            "build it with the headers of the TensorRT that loads it: make plugins TENSORRT_ROOT=DIR",
        )
    _loaded[trt.__name__] = content


def _missing(registry: Any) -> list[str]:
    found = {(creator.name, creator.plugin_version) for creator in registry.all_creators}
    return [name for name in (DECODE, NMS) if (name, VERSION) not in found]
