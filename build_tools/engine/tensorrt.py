"""What is put into TensorRT: our plugins in its registry, and what listens to its messages, its progress, Ctrl-C.

    load_plugins(trt, Path("build/plugins/libretinaserve_plugins.so"))    # before trt.Builder and trt.Runtime
    log, monitor = message_log(trt), progress_monitor(trt, show)
    with interruptible(monitor): builder.build_serialized_network(...)

The classes are made in functions: their bases exist only where TensorRT is imported.
"""

import ctypes
import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
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


LISTING = "LayerType: "  # in the message that lists an engine's layers
REASON = re.compile(r"Error Code \d+: [^(]*\((.*)")
# The path of NVIDIA's own source file that ends a message.
WHERE = re.compile(r"\s*\(?\bIn \S+ at /\S+\s*$")

Progress = Callable[[float, str], None]  # the share that is done, and what is being done


def tidy(message: str) -> str:
    """Return a message of TensorRT's in one line, without its error codes and source files."""
    line = " ".join(message.split())
    reason = REASON.search(line)
    return WHERE.sub("", reason[1] if reason else line).removesuffix(")")[:400]


def message_log(trt: Any) -> Any:
    """Return a logger that keeps errors, and the listing of the layers; its class exists only with TensorRT."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []
            self.remarks: list[str] = []
            self.listing = ""

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(message)
            elif LISTING in message:
                self.listing = message

        def first_error(self) -> str:
            """Return the first error: those that follow it are its consequences."""
            return tidy(self.errors[0]) if self.errors else "no reason was given"

    return Log()


@dataclass
class _Phase:
    parent: str | None
    steps: int
    done: int = 0
    children: set[str] = field(default_factory=set)


def progress_monitor(trt: Any, progress: Progress) -> Any:
    """Return a monitor that adds up TensorRT's nested phases to one share, and stops the build when cancelled."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.cancelled = False
            self.failure: Exception | None = None  # of `progress`
            self.phases: dict[str, _Phase] = {}
            self.share = 0.0
            self.lock = threading.Lock()  # TensorRT calls from several threads

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            with self.lock:
                self.phases[name] = _Phase(parent, max(steps, 1))
                if parent in self.phases:
                    self.phases[parent].children.add(name)
            self.show(name)

        def phase_finish(self, name: str) -> None:
            with self.lock:
                phase = self.phases.pop(name, None)
                if phase and phase.parent in self.phases:
                    self.phases[phase.parent].children.discard(name)
                if phase and phase.parent is None:
                    self.share = 1.0
            self.show(name)

        def step_complete(self, name: str, step: int) -> bool:
            with self.lock:
                if name in self.phases:
                    self.phases[name].done = step + 1
            self.show(name)
            return not self.cancelled

        def show(self, name: str) -> None:
            with self.lock:
                root = next((each for each, phase in self.phases.items() if phase.parent is None), None)
                self.share = share = max(self.share, self.part(root) if root else 0.0)  # never backwards
            try:
                progress(share, name)
            except Exception as error:  # it can't pass through TensorRT's frames, which would log it and go on
                self.failure, self.cancelled = error, True

        def part(self, name: str) -> float:
            phase = self.phases[name]
            inside = max((self.part(child) for child in phase.children), default=0.0)
            return min((phase.done + inside) / phase.steps, 1.0)

    return Monitor()


@contextmanager
def interruptible(monitor: Any) -> Iterator[None]:
    """Let Ctrl-C cancel the build: an exception can't pass through TensorRT's own frames."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def cancel(number: int, frame: FrameType | None) -> None:
        monitor.cancelled = True

    before = signal.signal(signal.SIGINT, cancel)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
