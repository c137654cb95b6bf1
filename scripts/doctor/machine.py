"""The doctor's lines, and those about the machine, Python and its packages.

    for check in examine({"cpu": cpu, "pins": pins}):
        print(check.status, check.name, check.detail)
    providing("openvino")       # ("openvino", "serve")

A probe that fails by an exception is a line like any other: the rest is still looked at.
"""

import importlib.metadata
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Self

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from retinaserve.scripts.server.installation import usable_cores
from retinaserve.scripts.server.triton import bind_error
from retinaserve.training.errors import UserError
from retinaserve.training.machine import BF16_FLAGS, CPUINFO, cpu_facts, flags

# What makes INT8 fast, by the names of /proc/cpuinfo.
INT8_FLAGS = ("avx512_vnni", "avx_vnni", "amx_int8", "asimddp")
LITTLE_MEMORY = 4e9
# A request and an answer of every instance lie there at once: 16 images of 640 x 640 are 20 MB.
LITTLE_SHARED_MEMORY = 256e6
LITTLE_DISK = 2e9
PROJECT = "retinaserve"
CONSTRAINTS = Path(__file__).resolve().parents[2] / "constraints.txt"  # in a checkout; an installed wheel has none
MOST_NAMED = 4
# Packages whose modules are called otherwise: an uninstalled package can't be asked what it would bring.
PACKAGES = {
    "PIL": "pillow",
    "google": "protobuf",
    "nvidia": "nvidia-dali-cuda120",
    "pytriton": "nvidia-pytriton",
    "yaml": "pyyaml",
}
EXTRAS = {"cpu": ("train", "serve"), "gpu": ("train", "gpu")}  # what a profile needs beside the client


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
    if taken := [number for number in numbers if bind_error("127.0.0.1", number)]:
        remedy = (
            "a server may be running already; `serve` takes others by --http-port, --grpc-port, --metrics-port"
        )
        return Check.warn(f"in use on 127.0.0.1: {', '.join(map(str, taken))}", remedy)
    return Check.ok(f"{', '.join(map(str, numbers))} are free on 127.0.0.1")


def python() -> Check:
    """Compare this interpreter with the versions the project runs on."""
    wanted = importlib.metadata.metadata(PROJECT)["Requires-Python"]
    found = platform.python_version()
    if not SpecifierSet(wanted).contains(found, prereleases=True):
        return Check.fail(f"{found}; {wanted} is needed", "make PYTHON=python3.11")
    return Check.ok(f"{found} ({platform.python_implementation()}, {platform.machine()})")


def packages(profile: str) -> Check:
    """Compare what is installed with the ranges of the project, and of the extras that a profile needs."""
    named = EXTRAS[profile]
    wanted = requirements("", *named)
    problems = [f"{problem} [{extra}]" if extra else problem for extra, problem in unmet(wanted)]
    if problems:
        return Check.fail(_some(problems), f"pip install 'retinaserve[{','.join(named)}]'")
    complete = [extra for extra in _extras() if not any(unmet(requirements(extra)))]
    detail = f"{len(wanted)} packages are in their ranges; extras installed: {', '.join(complete) or 'none'}"
    return Check.ok(detail)


def requirements(*extras: str) -> dict[Requirement, str]:
    """Return what the extras ask for, each with the extra that does; "" is what is always installed.

    An extra that brings others, as `dev` does, is resolved into what those ask for.
    """
    found: dict[Requirement, str] = {}
    for extra in extras:
        for line in importlib.metadata.requires(PROJECT) or ():
            each = Requirement(line)
            of_extra = each.marker is not None and "extra" in str(each.marker)
            if of_extra != bool(extra) or (each.marker and not each.marker.evaluate({"extra": extra})):
                continue
            found |= requirements(*each.extras) if each.name == PROJECT else {each: extra}
    return found


def providing(module: str) -> tuple[str | None, str]:
    """Return the package that a module comes from, and the first extra that brings it, "" for none.

    The package is None where this project does not ask for it.
    """
    top = module.split(".")[0]
    package = PACKAGES.get(top, top.replace("_", "-"))
    asked = requirements("", *_extras())
    return next(((package, extra) for each, extra in asked.items() if each.name == package), (None, ""))


def _extras() -> list[str]:
    return importlib.metadata.metadata(PROJECT).get_all("Provides-Extra") or []


def unmet(wanted: Mapping[Requirement, str]) -> Iterator[tuple[str, str]]:
    """Yield the extra and the reason of each requirement that is not met."""
    for requirement, extra in wanted.items():
        found = installed(requirement.name)
        if found is None:
            yield extra, f"{requirement.name} is not installed"
        elif not requirement.specifier.contains(found, prereleases=True):
            yield extra, f"{requirement.name} is {found}, {requirement.specifier} is needed"


def pins(constraints: Path = CONSTRAINTS) -> Check:
    """Compare what is installed with the exact versions that the tests ran with."""
    if not constraints.is_file():
        return Check.ok("no constraints.txt here: installed from a wheel")
    lines = re.findall(r"^[A-Za-z0-9].*", constraints.read_text(), re.MULTILINE)
    exact = [each for each in map(Requirement, lines) if each.marker is None or each.marker.evaluate()]
    tested = {each.name: str(each.specifier).removeprefix("==") for each in exact}
    here = {name: installed(name) for name in tested}
    # A build's own suffix, as in torch 2.13.0+cpu, is the same version.
    other = [
        f"{name} {found} (tested: {tested[name]})"
        for name, found in here.items()
        if found is not None and Version(found).public != Version(tested[name]).public
    ]
    if other:
        remedy = "the ranges hold, the combination is untested; pip install -c constraints.txt -e '.[dev]'"
        return Check.warn(_some(other), remedy)
    count = sum(found is not None for found in here.values())
    return Check.ok(f"{count} packages are the versions that the tests ran with")


def installed(name: str) -> str | None:
    """Return a package's version, None where it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _some(items: list[str]) -> str:
    more = len(items) - MOST_NAMED
    return "; ".join(items[:MOST_NAMED]) + (f"; and {more} more" if more > 0 else "")
