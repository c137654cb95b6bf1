"""The embedded tritonserver: the real binary out of the nvidia-pytriton wheel, as a child process.

    with Server(Path("repository")) as server:      # on free ports; ready when the block begins
        print(server.grpc_url)

`TritonServer` is the same without the waiting, on the ports of its options. `close` stops the server and its
python-backend processes and waits until they are gone. In production NVIDIA's container serves.
"""

import fcntl
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, replace
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any, BinaryIO, Self

from retinaserve.scripts.server.installation import Installation, usable_cores
from retinaserve.scripts.server.protection import Tls, admin_flags
from retinaserve.training.errors import Exit, UserError

__all__ = ["Server", "ServerOptions", "TritonServer"]

PREFIX, LOCK = "retinaserve-", "owner.lock"  # of temporary folders; the file in them that their owner holds locked
SHARED_MEMORY = Path("/dev/shm")
PORTS = ("http_port", "grpc_port", "metrics_port")

# Lines that a machine without a GPU always causes; they say nothing about the repository.
HARMLESS = re.compile(r"cuda|nvml|dcgm|pinned", re.IGNORECASE)
RELOAD, NO_RELOAD = ("--model-control-mode=explicit", "--load-model=*"), ("--model-control-mode=none",)
# Asks Linux to interrupt the server when the process that started it dies, even by SIGKILL, and becomes it.
# It is a program of its own, as gRPC, where the starting process has it, may abort between a fork and its exec.
LAUNCHER = """
import ctypes, os, signal, sys
parent, os.environ["LD_LIBRARY_PATH"], *command = sys.argv[1:]
pr_set_pdeathsig = 1
ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGINT)
if os.getppid() == int(parent):
    os.execv(command[0], command)
"""
# The server's log: I1122 17:49:01.123456 pid file.cc:123] "text"
LOG_LINE = re.compile(r'^(?P<kind>[IWE])\d{4} [\d:.]+ \d+ [^\]]+\] "?(?P<text>.*?)"?$')


@dataclass(frozen=True)
class ServerOptions:
    """Where the server listens and what it may use; a port of 0 takes a free one."""

    host: str = "127.0.0.1"
    http_port: int = 8000
    grpc_port: int = 8001
    metrics_port: int = 8002
    threads: int = 0  # for DALI and OpenVINO; 0 takes the cores this process may use
    verbose: bool = False
    reload: bool = False  # `retinaserve models` may change what is served
    tls: Tls | None = None  # of gRPC; HTTP and metrics then stay on loopback, because Triton has none for them
    admin_token: str | None = None  # None closes the administrative calls to everybody
    trace: tuple[str, ...] = ()  # values of --trace-config

    @classmethod
    def free_ports(cls, **others: Any) -> Self:
        """Return options with three free ports."""
        return cls(**{**dict.fromkeys(PORTS, 0), **others})


class TritonServer:
    """A running tritonserver over one repository; a context manager that leaves no process behind."""

    def __init__(self, repository: Path, options: ServerOptions | None = None, *, log: Path | None = None) -> None:
        """Start the server; `log` keeps its output, a temporary file otherwise.

        Raises UserError at once when the repository or a port can't be used.
        """
        check_repository(repository)
        self.repository = repository
        self.options = with_ports(options or ServerOptions())
        installation = Installation.find()
        self._scratch = Scratch()
        self.shared_memory = self._scratch.shared_memory
        self.log = log or self._scratch.path / "tritonserver.log"
        self._asked_to_stop = False
        try:
            self.process = self._start(installation)
        except BaseException:
            self._scratch.remove()
            raise

    def _start(self, installation: Installation) -> "subprocess.Popen[bytes]":
        scratch = self._scratch.path
        command = [
            str(installation.binary),
            f"--model-repository={self._without_blanks(self.repository.resolve())}",
            f"--backend-directory={installation.backends(scratch / 'backends')}",
            f"--backend-config=python,shm-region-prefix-name={self.shared_memory}",
            f"--http-address={self.plain_host}",
            f"--grpc-address={self.options.host}",
            f"--metrics-address={self.plain_host}",
            f"--http-port={self.options.http_port}",
            f"--grpc-port={self.options.grpc_port}",
            f"--metrics-port={self.options.metrics_port}",
            "--disable-auto-complete-config",
            *(RELOAD if self.options.reload else NO_RELOAD),
            # The steps take turns: see rate_limiter in model_repository/cpu/preprocess/config.pbtxt.
            "--rate-limit=execution_count",
            "--exit-on-error=true",
            "--strict-readiness=true",
            "--allow-gpu-metrics=false",
            "--metrics-config=summary_latencies=true",
            *admin_flags(self.options.admin_token),
            *(self.options.tls.flags() if self.options.tls else ()),
            *(f"--trace-config={value}" for value in self.options.trace),
            # Triton waits this long even for an idle keep-alive connection of HTTP.
            "--exit-timeout-secs=5",
            f"--log-verbose={int(self.options.verbose)}",
        ]
        environment = installation.environment()
        environment["RETINASERVE_THREADS"] = str(self.options.threads or usable_cores())
        launcher = [sys.executable, "-I", "-S", "-c", LAUNCHER, str(os.getpid()), environment["LD_LIBRARY_PATH"]]
        environment["LD_LIBRARY_PATH"] = os.environ.get("LD_LIBRARY_PATH", "")  # the launcher's libraries are ours
        with _opened(self.log) as output:
            # A group of its own: Ctrl-C in a terminal reaches us alone, and we stop the server in order.
            return subprocess.Popen(
                [*launcher, *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
                process_group=0,
            )

    @property
    def http_url(self) -> str:
        """host:port of HTTP."""
        return f"{_connectable(self.plain_host)}:{self.options.http_port}"

    @property
    def grpc_url(self) -> str:
        """host:port of gRPC, with grpcs:// before it where that is encrypted."""
        scheme = "grpcs://" if self.options.tls else ""
        return f"{scheme}{_connectable(self.options.host)}:{self.options.grpc_port}"

    @property
    def metrics_url(self) -> str:
        """Address of the Prometheus metrics."""
        return f"http://{_connectable(self.plain_host)}:{self.options.metrics_port}/metrics"

    @property
    def plain_host(self) -> str:
        """Where HTTP and the metrics listen."""
        return "127.0.0.1" if self.options.tls else self.options.host

    def is_ready(self) -> bool:
        """Ask whether every model is ready."""
        # No urlopen: it asks the environment's proxy, which seldom reaches this machine.
        with suppress(OSError, HTTPException), closing(HTTPConnection(self.http_url, timeout=2)) as connection:
            connection.request("GET", "/v2/health/ready")
            return connection.getresponse().status == 200
        return False

    def wait_until_ready(self, timeout: float = 120.0, *, cancelled: Callable[[], bool] = bool) -> None:
        """Return when every model is ready, or `cancelled` says so. Raises UserError with the log's reason."""
        deadline = time.monotonic() + timeout
        while not cancelled():
            if self.process.poll() is not None:
                raise UserError(*self.explain())
            if self.is_ready():
                return
            if time.monotonic() > deadline:
                raise UserError(f"the server is not ready after {timeout:.0f} s", f"its log: {self._kept_log()}")
            time.sleep(0.05)

    def errors(self) -> list[str]:
        """Return the log's lines that name a problem, without those a machine without a GPU always has."""
        lines = map(LOG_LINE.match, self.log.read_text(errors="replace").splitlines())
        return [
            line["text"] for line in lines if line and line["kind"] == "E" and not HARMLESS.search(line["text"])
        ]

    def ask_to_stop(self) -> None:
        """Ask the server to finish its requests and exit, and don't wait: of several, all can end at once."""
        if not self._asked_to_stop and self.process.poll() is None:
            self._asked_to_stop = True
            self.process.send_signal(signal.SIGINT)

    def stop(self, timeout: float = 30.0) -> int:
        """Ask the server to finish its requests and exit; kill what is left after `timeout` seconds."""
        self.ask_to_stop()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout)
        # The python-backend stubs are in the server's group; a killed server would leave them.
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        code = self.process.wait()
        _remove_shared_memory(self.shared_memory)  # of what did not end by itself
        return code

    def close(self) -> None:
        """Stop the server and remove its temporary files."""
        try:
            self.stop()
        finally:
            self._scratch.remove()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _without_blanks(self, repository: Path) -> Path:
        """Return a path to the repository which a shell needs no quotes for: the python backend writes none."""
        if shlex.quote(str(repository)) == str(repository):
            return repository
        link = self._scratch.path / "repository"
        link.symlink_to(repository)
        return link

    def explain(self) -> tuple[str, str]:
        """Say why the server ended, from its log."""
        errors = self.errors()
        for port_name in ("http", "grpc", "metrics"):
            port = getattr(self.options, f"{port_name}_port")
            if any(str(port) in line and ("bind" in line or "in use" in line) for line in errors):
                return f"{port_name} port {port} is in use", f"choose another with --{port_name}-port"
        failed = next((line for line in errors if "failed to load" in line), None) or next(iter(errors), None)
        if failed:
            reason = " ".join(failed.split(r"\n\nAt:")[0].replace(r"\n", " ").split())  # without the traceback
            reason = reason.replace(str(self._scratch.path / "repository"), str(self.repository))
            return f"a model did not load: {reason}", f"the whole log: {self._kept_log()}"
        return f"tritonserver ended with exit code {self.process.returncode}", f"its log: {self._kept_log()}"

    def _kept_log(self) -> Path:
        """Move the log out of the scratch folder, which will be removed."""
        if self.log.parent != self._scratch.path:
            return self.log
        kept = Path(tempfile.gettempdir()) / f"{self._scratch.path.name}.log"
        shutil.copyfile(self.log, kept)
        return kept


class Server(TritonServer):
    """A server for programs: on free ports where its options name none, and ready when its block begins."""

    def __init__(self, repository: Path | str, options: ServerOptions | None = None) -> None:
        super().__init__(Path(repository), options or ServerOptions.free_ports())

    def __enter__(self) -> Self:
        try:
            self.wait_until_ready()
        except BaseException:
            self.close()
            raise
        return self


class Scratch:
    """A server's temporary folder, and a name for what belongs to it in shared memory.

    The owner holds a lock on a file inside, which the system gives back however the owner ends: the next server
    removes what it finds unlocked. Folders without such a file are not touched.
    """

    def __init__(self) -> None:
        """Make the folder; remove what dead owners left."""
        sweep()
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX))
        self.shared_memory = _shared_memory(self.path)
        # Locked before it has its name: under that, nobody may find it unlocked.
        unnamed = self.path / "lock"
        self._lock = unnamed.open("wb")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        unnamed.rename(self.path / LOCK)

    def remove(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.close()


def sweep() -> None:
    """Remove the folders and the shared memory of owners that are no more."""
    for file in Path(tempfile.gettempdir()).glob(f"{PREFIX}*/{LOCK}"):
        with suppress(OSError), file.open("wb") as lock:  # another user's, or still locked
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove_shared_memory(_shared_memory(file.parent))
            shutil.rmtree(file.parent, ignore_errors=True)


def _shared_memory(folder: Path) -> str:
    """Return what names in shared memory begin with: two servers', and a crashed one's leftovers, never meet."""
    return f"retinaserve_{folder.name.removeprefix(PREFIX)}_"


def _remove_shared_memory(prefix: str) -> None:
    for left in SHARED_MEMORY.glob(f"{prefix}*"):
        left.unlink(missing_ok=True)


def ask_to_stop(servers: Iterable[TritonServer]) -> None:
    """Let all of them end at once before each is waited for: it takes seconds, most of them asleep."""
    for server in servers:
        server.ask_to_stop()


def _opened(log: Path) -> BinaryIO:
    try:
        return log.open("wb")
    except OSError as error:
        raise UserError(f"{log} can't be written: {error.strerror}", "the server's log", code=Exit.USAGE) from None


def _connectable(host: str) -> str:
    return "127.0.0.1" if host in ("0.0.0.0", "::", "") else host


def free_ports(count: int) -> list[int]:
    """Return ports that were free a moment ago, all different."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def bind_error(host: str, port: int) -> str:
    """Return why nothing can listen at a port; nothing where something can."""
    with closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error.strerror or str(error)
    return ""


def with_ports(options: ServerOptions) -> ServerOptions:
    """Replace zeros by free ports, and refuse a port that is taken before anything is started."""
    free = free_ports(len(PORTS))
    ports: dict[str, int] = {name: getattr(options, name) or port for name, port in zip(PORTS, free, strict=True)}
    if len(set(ports.values())) < len(PORTS):
        raise UserError(
            "two of the three ports are the same", "HTTP, gRPC and metrics need one each", code=Exit.USAGE
        )
    for name, port in ports.items():
        if reason := bind_error(options.host, port):
            raise UserError(
                f"{options.host}:{port} can't be used: {reason}",
                f"choose another with --{name.replace('_', '-')}, or stop what listens there",
                code=Exit.USAGE,
            )
    return replace(options, **ports)  # type: ignore[arg-type]


def check_repository(repository: Path) -> None:
    """Raise UserError for a folder that holds no model."""
    if repository.is_file():
        model = shlex.quote(str(repository))
        raise UserError(
            f"{repository} is a file, and a repository is a folder",
            f"make it with: retinaserve build {model} --output repository",
        )
    hint = "make it with: retinaserve build MODEL --output REPO"
    if not repository.is_dir():
        raise UserError(f"{repository}: no such folder", hint)
    if not list(repository.glob("*/config.pbtxt")):
        raise UserError(f"{repository} holds no Triton model", hint)
