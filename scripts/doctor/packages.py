"""Python and what is installed in it, against what this project asks for.

python(), packages("cpu"), pins(Path("constraints.txt"))
providing("openvino")       # ("openvino", "serve")
"""

import importlib.metadata
import platform
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from retinaserve.scripts.doctor.machine import Check

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
