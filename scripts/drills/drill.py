"""Where a drill happens, and what comes of it: a server on a copy, its processes, promises and whether they held.

    with fixture(Path("repository"), reload=True) as fix:
        fix.endpoint, fix.images, fix.usage().memory_bytes
    result = Result("overload", [Check("goodput / peak", 0.97, at_least=0.95)], figures={...})

The user's repository is only read. Drills that break the server start it themselves, by `start`.
"""

import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from retinaserve.build_tools.repository.configs import read_config
from retinaserve.eval.client.transport import Endpoint
from retinaserve.scripts.drills.load import Request, good
from retinaserve.scripts.server.triton import (
    SHARED_MEMORY,
    ServerOptions,
    TritonServer,
    check_repository,
    with_ports,
)
from retinaserve.training.machine import machine
from retinaserve.training.spec import PREPROCESS

Log = Callable[[str], None]
IMAGES = 12


@dataclass(frozen=True)
class Process:
    """One process of the server; `name` is tritonserver, or the model and version of a python-backend stub.

    Memory is PSS (proportional set size): pages that processes share are counted once, in parts. So a library's
    pages weigh less as soon as another program uses it, and more when that ends, by tens of megabytes. What the
    process itself took and filled is `own_bytes`, and no neighbour changes it.
    """

    pid: int
    name: str
    memory_bytes: int
    own_bytes: int
    descriptors: int
    cpu_seconds: float


@dataclass(frozen=True)
class Usage:
    """All processes of a server by name, and the files it holds in /dev/shm."""

    processes: dict[str, Process]
    shared_bytes: int
    shared_files: int

    @property
    def memory_bytes(self) -> int:
        """Of all processes together."""
        return sum(process.memory_bytes for process in self.processes.values())


@dataclass
class Fixture:
    """A scratch folder with the repository's copy, and the server when it runs."""

    folder: Path
    options: ServerOptions
    images: list[bytes]
    server: TritonServer | None = None

    @property
    def repository(self) -> Path:
        """The copy, which may be changed."""
        return self.folder / "repository"

    @property
    def endpoint(self) -> Endpoint:
        """The server's gRPC."""
        return Endpoint("grpc", "127.0.0.1", self.options.grpc_port)

    @property
    def http(self) -> Endpoint:
        """The server's HTTP."""
        return Endpoint("http", "127.0.0.1", self.options.http_port)

    @property
    def queue(self) -> int:
        """How many requests wait at most: a closed loop of as many is refused none."""
        config = read_config(self.repository / PREPROCESS / "config.pbtxt")
        return int(config.dynamic_batching.default_queue_policy.max_queue_size)

    def start(self) -> TritonServer:
        """Start a server, on the same ports each time."""
        self.server = TritonServer(self.repository, self.options, log=self.folder / "tritonserver.log")
        return self.server

    def usage(self) -> Usage:
        """Look at the running server's processes."""
        assert self.server
        return usage(self.server.process.pid, self.server.shared_memory)


@contextmanager
def fixture(
    repository: Path, *, images: list[bytes] | None = None, reload: bool = False, start: bool = True
) -> Iterator[Fixture]:
    """Copy the repository and give the fixture, with a server that is ready unless `start` is false."""
    check_repository(repository)
    with tempfile.TemporaryDirectory(prefix="retinaserve-drill-") as scratch:
        shutil.copytree(repository, Path(scratch) / "repository")
        options = with_ports(ServerOptions.free_ports(reload=reload, admin_token=secrets.token_hex()))
        fix = Fixture(Path(scratch), options, images or drawn(Path(scratch)))
        if not start:
            yield fix
            return
        with fix.start() as server:
            server.wait_until_ready()
            yield fix


def drawn(folder: Path) -> list[bytes]:
    """Draw images where the user gave none."""
    from retinaserve.scripts.shapes.draw import draw_dataset

    draw_dataset(folder / "images", images=IMAGES, seed=0)
    return [path.read_bytes() for path in sorted((folder / "images" / "images").iterdir())]


def usage(server: int, prefix: str) -> Usage:
    """Look at the server with this process id, whose files in /dev/shm begin with `prefix`."""
    processes = {process.name: process for process in _processes(server)}
    sizes = []
    for file in SHARED_MEMORY.glob(f"{prefix}*"):
        with suppress(FileNotFoundError):
            sizes.append(file.stat().st_blocks * 512)  # what it takes; its length is only what it may
    return Usage(processes, sum(sizes), len(sizes))


def _processes(server: int) -> Iterator[Process]:
    root = psutil.Process(server)
    for process in (root, *root.children(recursive=True)):
        with suppress(OSError, psutil.Error), process.oneshot():
            if process.status() == psutil.STATUS_ZOMBIE:
                continue
            memory, times = _memory(process.pid), process.cpu_times()
            yield Process(
                pid=process.pid,
                name=_name(process.cmdline()),
                memory_bytes=memory["Pss"],
                own_bytes=memory["Pss_Anon"] + memory["Pss_Shmem"],
                descriptors=process.num_fds(),
                cpu_seconds=times.user + times.system,
            )


def _memory(pid: int) -> dict[str, int]:
    """Return the bytes of each kind, which psutil adds up: Pss_Anon (taken), Pss_Shmem (shared), Pss_File."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    return {kind.rstrip(":"): int(number) * 1024 for kind, number, _ in map(str.split, lines)}


def _name(words: list[str]) -> str:
    """A stub's first argument is REPOSITORY/model/version/model.py, its last but one model_group_instance."""
    if not words[0].endswith("triton_python_backend_stub"):
        return Path(words[0]).name
    model, version = Path(words[1]).parts[-3:-1]
    instance = next((word for word in words[2:] if word.startswith(f"{model}_")), "0")
    number = int(instance.rsplit("_", 1)[-1])
    return f"{model} {version}" + (f" ({number + 1})" if number else "")


@dataclass(frozen=True)
class Check:
    """One promise: a figure that has to be at least, or at most, something; `note` is for the reader."""

    promise: str
    figure: float
    at_least: float | None = None
    at_most: float | None = None
    note: str = ""

    @property
    def held(self) -> bool:
        """Whether the figure is within its bounds."""
        low = self.at_least is None or self.figure >= self.at_least
        return low and (self.at_most is None or self.figure <= self.at_most)

    @property
    def bound(self) -> str:
        """The bounds in words."""
        parts = [f">= {self.at_least:g}"] if self.at_least is not None else []
        return " and ".join(parts + ([f"<= {self.at_most:g}"] if self.at_most is not None else []))


def none_failed(promise: str, requests: Sequence[Request]) -> Check:
    """Return the check that every request was answered with detections."""
    return Check(promise, len(requests) - len(good(requests)), at_most=0, note=f"of {len(requests)}")


@dataclass(frozen=True)
class Result:
    """All checks of a drill, and the figures behind them."""

    drill: str
    checks: Sequence[Check]
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether every promise held."""
        return all(check.held for check in self.checks)

    def table(self) -> str:
        """Return a line a promise."""
        width = max(len(check.promise) for check in self.checks)
        return "\n".join(
            f"{'ok  ' if check.held else 'FAIL'}  {check.promise:<{width}}  {check.figure:>10.4g}  "
            f"{check.bound:<12}  {check.note}".rstrip()
            for check in self.checks
        )

    def to_dict(self) -> dict[str, Any]:
        """Return everything for JSON."""
        checks = []
        for each in self.checks:
            held = {"figure": round(each.figure, 4), "bound": each.bound, "held": each.held}
            checks.append({"promise": each.promise, **held} | ({"note": each.note} if each.note else {}))
        about = {"drill": self.drill, "passed": self.passed}
        return {**about, "checks": checks, "figures": self.figures, "machine": machine()}
