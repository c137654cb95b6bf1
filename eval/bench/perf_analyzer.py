"""NVIDIA's perf_analyzer, from the tritonclient wheel, run over a set of real images.

    with PerfAnalyzer("detector", images) as analyzer:
        load = analyzer.run(Endpoint.parse("localhost:8001"), Demand(concurrency=4), seconds=6)

It keeps a fixed number of requests in flight, or sends at Poisson times at a fixed rate, for a fixed time: three
windows, all of which count. perf_analyzer's own search for a stable window is off, because its end cannot be
foretold; repeat a run to see how stable it is.
"""

import base64
import csv
import importlib.metadata
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Self

from retinaserve.eval.client.transport import Endpoint
from retinaserve.training.errors import Exit, UserError
from retinaserve.training.spec import IMAGE_BYTES

WINDOWS = 3  # the fewest perf_analyzer takes
# The binary wants these names; the nvidia-pytriton wheel has the libraries under names with a hash.
LIBRARIES = {"libb64.so.0d": "libb64-*.so.0d", "libcudart.so.12": "libcudart-*.so.12*"}

HAS_ALL = "pip install 'retinaserve[serve]' has all of it"

# Becomes perf_analyzer, after asking Linux to kill it when we die, even by SIGKILL. A program of its own, because
# code between fork and exec may not run beside gRPC's threads.
LAUNCHER = "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); os.execv(sys.argv[1], sys.argv[1:])"


class LoadError(Exception):
    """The server did not bear a load: requests failed, or none was answered in time."""


class _EmptyWindow(LoadError):
    """perf_analyzer stops at the first window in which no request was answered, or a step ended no execution."""


# What it says then, the second of a step whose statistics did not change.
EMPTY = ("No valid requests recorded", "failed to find the requested model version")


@dataclass(frozen=True)
class Demand:
    """What is asked of a server: requests in flight (closed loop), or requests a second (open loop, Poisson)."""

    concurrency: int = 0
    rate: float = 0.0

    def __str__(self) -> str:
        return f"{self.rate:g}/s" if self.rate else str(self.concurrency)

    @property
    def flags(self) -> tuple[str, ...]:
        """perf_analyzer's own words for it."""
        if self.rate:
            rate = f"{self.rate:g}"
            return ("--request-rate-range", f"{rate}:{rate}:1", "--request-distribution", "poisson")
        return ("--concurrency-range", str(self.concurrency))


@dataclass(frozen=True)
class Load:
    """What perf_analyzer measured under one demand; latencies are milliseconds."""

    demand: Demand
    requests: int
    throughput_ips: float
    p50: float
    p90: float
    p95: float
    p99: float


class PerfAnalyzer:
    """perf_analyzer and its input in a temporary folder; a context manager that leaves no process behind."""

    def __init__(self, model: str, images: Iterable[bytes]) -> None:
        """Lay out binary, libraries and images. Raises UserError where perf_analyzer is not installed."""
        self.binary = find_binary()
        self.model = model
        self._scratch = tempfile.TemporaryDirectory(prefix="perf-analyzer-", ignore_cleanup_errors=True)
        self._folder = Path(self._scratch.name)
        self._input = self._folder / "pictures.json"
        steps = [
            {IMAGE_BYTES: {"content": {"b64": base64.b64encode(data).decode()}, "shape": [len(data)]}}
            for data in images
        ]
        self._input.write_text(json.dumps({"data": steps}))
        libraries = self._folder / "lib"
        libraries.mkdir()
        for name, path in find_libraries().items():
            (libraries / name).symlink_to(path)
        search = [str(libraries), os.environ.get("LD_LIBRARY_PATH", "")]
        # Without the proxies of the shell: what is measured is the way to the server.
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")},
            "LD_LIBRARY_PATH": ":".join(filter(None, search)),
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._scratch.cleanup()

    def run(self, endpoint: Endpoint, demand: Demand, *, seconds: float) -> Load:
        """Put `demand` on the server for `seconds` and return what that gave.

        A server so slow that a window stays empty is given four times as long, once. Raises LoadError when a
        request failed, with the server's words, and UserError when perf_analyzer itself can't run.
        """
        try:
            return self._measure(endpoint, demand, seconds)
        except _EmptyWindow:
            return self._measure(endpoint, demand, 4 * seconds)

    def version(self) -> str:
        """Start it and return what it says of itself. Raises UserError where it does not start."""
        code, output = _run([str(self.binary), "--version"], self._environment, limit=30)
        if code:
            raise _not_starting(output)
        return _last_line(output)

    def _measure(self, endpoint: Endpoint, demand: Demand, seconds: float) -> Load:
        table = self._folder / "load.csv"
        table.unlink(missing_ok=True)
        command = [
            str(self.binary),
            *("-m", self.model, "-u", endpoint.address, "-i", endpoint.protocol, *_encryption(endpoint)),
            *("--input-data", str(self._input)),
            *demand.flags,
            # Any spread between the windows passes: a slow first one must not make it give up.
            *("-p", str(max(1, round(1000 * seconds / WINDOWS))), "-r", str(WINDOWS), "-s", "1000000"),
            *("-f", str(table)),
        ]
        code, output = _run(command, self._environment, limit=3 * seconds + 60)
        if code is None:
            raise LoadError(f"perf_analyzer was still running after {3 * seconds + 60:.0f} s")
        if code in (126, 127) or "error while loading shared libraries" in output:
            raise _not_starting(output)
        if any(words in output for words in EMPTY):
            raise _EmptyWindow(f"a window of {seconds / WINDOWS:.1f} s saw no answer; give it more --seconds")
        if not table.is_file():
            raise LoadError(_reason(output))
        return _read(table, output, demand)


def find_binary() -> Path:
    """Return the binary the tritonclient wheel installed. Raises UserError where there is none."""
    with suppress(importlib.metadata.PackageNotFoundError):
        for file in importlib.metadata.files("tritonclient") or ():
            if file.name == "perf_analyzer":
                path = Path(str(file.locate())).resolve()
                if path.is_file():
                    return path
    found = shutil.which("perf_analyzer")
    if not found:
        raise UserError(
            "perf_analyzer is not installed", "pip install 'tritonclient[all]==2.51.0' has it", code=Exit.USAGE
        )
    return Path(found)


def find_libraries() -> dict[str, Path]:
    """Return the libraries perf_analyzer is linked with that the nvidia-pytriton wheel has."""
    package = find_spec("pytriton")
    if not package or not package.origin:
        return {}
    folder = Path(package.origin).parent.parent / "nvidia_pytriton.libs"
    found = {name: next(iter(sorted(folder.glob(pattern))), None) for name, pattern in LIBRARIES.items()}
    return {name: path for name, path in found.items() if path}


def _run(command: list[str], environment: dict[str, str], *, limit: float) -> tuple[int | None, str]:
    """Run to the end or the limit; return the exit code (None: out of time) and all output."""
    # A session of its own: Ctrl-C reaches us alone, and we end whatever it has started.
    with subprocess.Popen(
        [sys.executable, "-IS", "-c", LAUNCHER, *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as process:
        try:
            output, _ = process.communicate(timeout=limit)
            return process.returncode, output
        except subprocess.TimeoutExpired:
            return None, ""
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def _read(table: Path, output: str, demand: Demand) -> Load:
    with table.open(newline="") as file:
        row = next(csv.DictReader(file), None)
    if row is None:
        raise LoadError(_reason(output))
    count = re.search(r"Request count: (\d+)", output)
    return Load(
        demand=demand,
        requests=int(count[1]) if count else 0,
        throughput_ips=float(row["Inferences/Second"]),
        **{name: int(row[f"{name} latency"]) / 1000 for name in ("p50", "p90", "p95", "p99")},
    )


def _encryption(endpoint: Endpoint) -> list[str]:
    """Return perf_analyzer's flags for a grpcs:// endpoint. Raises UserError for https://."""
    if not endpoint.tls:
        return []
    if endpoint.protocol == "http":
        raise UserError(f"{endpoint} is not measured", "name the server behind the proxy", code=Exit.USAGE)
    files = {
        "root-certifications": endpoint.tls.ca,
        "certificate-chain": endpoint.tls.certificate,
        "private-key": endpoint.tls.key,
    }
    named = (word for name, path in files.items() if path for word in (f"--ssl-grpc-{name}-file", str(path)))
    return ["--ssl-grpc-use-ssl", "true", *named]


def _reason(output: str) -> str:
    """Return what perf_analyzer says of a run that failed, without its thread numbers."""
    errors = re.findall(r"^Thread \[\d+\] had error: (?:in ensemble '[^']*', )?(.*)$", output, re.MULTILINE)
    if errors:
        first = re.sub(r"^\[request id: [^]]*\] ", "", errors[0])
        return f"{len(errors)} of the requests in flight failed: {first}"
    return _last_line(output)


def _not_starting(output: str) -> UserError:
    return UserError(f"perf_analyzer does not start: {_last_line(output)}", HAS_ALL)


def _last_line(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return lines[-1] if lines else "perf_analyzer said nothing"
