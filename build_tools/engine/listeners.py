"""What listens to TensorRT while it builds: its messages, its progress, and Ctrl-C.

    log, monitor = message_log(trt), progress_monitor(trt, show)
    with interruptible(monitor): builder.build_serialized_network(...)

The classes are made in functions: their bases exist only where TensorRT is imported.
"""

import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

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
                self.share = max(self.share, self.part(root) if root else 0.0)  # never backwards
                share = self.share
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
