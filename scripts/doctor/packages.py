"""Python and what is installed in it, against what this project asks for.

python(), packages("cpu"), pins(Path("constraints.txt"))
"""

import importlib.metadata
import platform
import re
from collections.abc import Iterable
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from retinaserve.scripts.doctor.check import Check, Status

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
REQUIREMENT = re.compile(r"([\w.-]+)[^;]*(?:;.*extra == ['\"]([\w-]+)['\"])?")


def python() -> Check:
    """Compare this interpreter with the versions the project runs on."""
    wanted = importlib.metadata.metadata(PROJECT)["Requires-Python"]
    found = platform.python_version()
    if not SpecifierSet(wanted).contains(found, prereleases=True):
        return Check("python", Status.FAIL, f"{found}; {wanted} is needed", "make PYTHON=python3.11")
    return Check("python", Status.OK, f"{found} ({platform.python_implementation()}, {platform.machine()})")


def packages(extra: str) -> Check:
    """Compare what is installed with the ranges of the project and one of its extras."""
    requirements = [Requirement(line) for line in importlib.metadata.requires(PROJECT) or ()]
    wanted = [
        each for each in requirements if not each.marker or each.marker.evaluate({"extra": extra}, "requirement")
    ]
    problems = list(unmet(wanted))
    if problems:
        return Check("packages", Status.FAIL, _some(problems), f"pip install 'retinaserve[{extra}]'")
    return Check("packages", Status.OK, f"{len(wanted)} packages are in their ranges ({extra})")


def providing(module: str) -> tuple[str | None, str]:
    """Return the package that a module comes from, and the first extra that brings it, "" for none.

    The package is None where this project does not ask for it.
    """
    top = module.split(".")[0]
    package = PACKAGES.get(top, top.replace("_", "-"))
    lines = importlib.metadata.requires(PROJECT) or ()
    found = [match for line in lines if (match := REQUIREMENT.match(line)) and match[1] == package]
    # The extras name the project itself too, to bring each other.
    return (package, found[0][2] or "") if found and package != PROJECT else (None, "")


def unmet(wanted: Iterable[Requirement]) -> Iterable[str]:
    """Say of each requirement that is not met why not."""
    for requirement in wanted:
        found = installed(requirement.name)
        if found is None:
            yield f"{requirement.name} is not installed"
        elif not requirement.specifier.contains(found, prereleases=True):
            yield f"{requirement.name} is {found}, {requirement.specifier} is needed"


def pins(constraints: Path = CONSTRAINTS) -> Check:
    """Compare what is installed with the exact versions that the tests ran with."""
    if not constraints.is_file():
        return Check("pins", Status.OK, "no constraints.txt here: installed from a wheel")
    tested = dict(re.findall(r"^([A-Za-z0-9_.-]+)==(\S+)", constraints.read_text(), re.MULTILINE))
    here = {name: installed(name) for name in tested}
    # A build's own suffix, as in torch 2.13.0+cpu, is the same version.
    other = [
        f"{name} {found} (tested: {tested[name]})"
        for name, found in here.items()
        if found is not None and Version(found).public != Version(tested[name]).public
    ]
    if other:
        remedy = "the ranges hold, the combination is untested; pip install -c constraints.txt -e '.[cpu]'"
        return Check("pins", Status.WARN, _some(other), remedy)
    count = sum(found is not None for found in here.values())
    return Check("pins", Status.OK, f"{count} packages are the versions that the tests ran with")


def installed(name: str) -> str | None:
    """Return a package's version, None where it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _some(items: list[str]) -> str:
    more = len(items) - MOST_NAMED
    return "; ".join(items[:MOST_NAMED]) + (f"; and {more} more" if more > 0 else "")
