"""The doctor's lines, and those about the machine: processor, memory, shared memory, disk, ports.

    for check in examine({"cpu": cpu, "memory": memory}):
        print(check.status, check.name, check.detail)

A probe that fails by an exception is a line like any other: the rest is still looked at.
"""

import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Self

from retinaserve.scripts.server.installation import usable_cores
from retinaserve.training.errors import UserError
from retinaserve.training.machine import BF16_FLAGS, CPUINFO, cpu_facts, flags

# What makes INT8 fast, by the names of /proc/cpuinfo.
INT8_FLAGS = ("avx512_vnni", "avx_vnni", "amx_int8", "asimddp")
LITTLE_MEMORY = 4e9
# A request and an answer of every instance lie there at once: 16 images of 640 x 640 are 20 MB.
LITTLE_SHARED_MEMORY = 256e6
LITTLE_DISK = 2e9


class Status(StrEnum):
    """How it stands: fit for use, usable with a drawback, or not usable."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True)
class Check:
    """What was found, and for all that is not ok what to do about it; `examine` adds the name."""

    name: str
    status: Status
    detail: str
    remedy: str = ""

    @classmethod
    def ok(cls, detail: str) -> Self:
        """It is fit for use."""
        return cls("", Status.OK, detail)

    @classmethod
    def warn(cls, detail: str, remedy: str) -> Self:
        """It has a drawback."""
        return cls("", Status.WARN, detail, remedy)

    @classmethod
    def fail(cls, detail: str, remedy: str = "") -> Self:
        """It is of no use."""
        return cls("", Status.FAIL, detail, remedy)


def examine(probes: Mapping[str, Callable[[], Check]]) -> Iterator[Check]:
    """Run one probe after the other and give its check as soon as it is there."""
    for name, probe in probes.items():
        try:
            check = probe()
        except UserError as error:
            check = Check.fail(error.message, error.hint)
        except Exception as error:  # whatever a broken installation raises
            reason = " ".join(str(error).split()) or type(error).__name__
            check = Check.fail(reason[:300], f"{type(error).__name__} while looking at it")
        yield replace(check, name=name)


def cpu(cpuinfo: Path = CPUINFO) -> Check:
    """Say which processor it is, and which precisions it is fast in."""
    known = flags(cpuinfo)
    model = cpu_facts(cpuinfo).get("model name", "unknown processor")
    fast = [name for name, some in (("INT8", INT8_FLAGS), ("bf16", BF16_FLAGS)) if known.intersection(some)]
    detail = f"{usable_cores()} usable cores of {model}"
    if "avx2" not in known and "asimd" not in known:
        remedy = "detectors will run, slowly; a processor from 2015 on has AVX2"
        return Check.warn(f"{detail}, without AVX2", remedy)
    return Check.ok(f"{detail}; made for {', '.join(['fp32', *fast])}")


def memory(meminfo: Path = Path("/proc/meminfo")) -> Check:
    """Say how much memory is free."""
    facts = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    free, total = (1024 * int(facts[name].split()[0]) for name in ("MemAvailable", "MemTotal"))
    detail = f"{free / 1e9:.1f} of {total / 1e9:.1f} GB are free"
    if free < LITTLE_MEMORY:
        return Check.warn(detail, "training and serving at 640 x 640 want some 2 GB each")
    return Check.ok(detail)


def shared_memory(folder: Path = Path("/dev/shm")) -> Check:
    """Say how much of the memory that Triton's python backend passes tensors through is free."""
    if not folder.is_dir():
        return Check.fail(f"there is no {folder}", "mount a tmpfs there")
    if not os.access(folder, os.W_OK):
        return Check.fail(f"{folder} is not writable", f"chmod 1777 {folder}")
    usage = shutil.disk_usage(folder)
    detail = f"{usage.free / 1e6:.0f} of {usage.total / 1e6:.0f} MB are free in {folder}"
    if usage.free < LITTLE_SHARED_MEMORY:
        remedy = "requests pass through it; in a container: --shm-size=1g. Crashed servers may have left files"
        return Check.warn(detail, remedy)
    return Check.ok(detail)


def disk() -> Check:
    """Say how much room is left where temporary files go."""
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    detail = f"{free / 1e9:.1f} GB are free in {folder}"
    if free < LITTLE_DISK:
        return Check.warn(detail, "exports and builds write there first; TMPDIR names another folder")
    return Check.ok(detail)


def ports(*numbers: int) -> Check:
    """Say whether `serve` can have its default ports."""
    if taken := [number for number in numbers if not _is_free(number)]:
        remedy = (
            "a server may be running already; `serve` takes others by --http-port, --grpc-port, --metrics-port"
        )
        return Check.warn(f"in use on 127.0.0.1: {', '.join(map(str, taken))}", remedy)
    return Check.ok(f"{', '.join(map(str, numbers))} are free on 127.0.0.1")


def _is_free(port: int) -> bool:
    with closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
