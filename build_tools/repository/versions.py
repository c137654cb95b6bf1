"""Which versions of a repository are served, written into its configs, so that a restarted server knows it too.

    pins = read_pins(repository)                    # Pins(served=2, loaded=(1, 2), previous=1, canary=None)
    write_pins(repository, replace(pins, served=1, previous=2))

Triton keeps one config for all versions of a model, so versions of an ensemble can't name different steps. One
version of `detector` is served at a time, with both of its steps pinned to the same number: an answer belongs to
one version, and says which. Another version can be asked beside it as `detector_canary`, an ensemble of its own.
A repository that `build` has just made pins nothing: a server takes its newest version.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retinaserve.build_tools.repository.configs import read_config, write_config
from retinaserve.training.errors import UserError
from retinaserve.training.spec import DETECTOR, RETINANET

CANARY = "detector_canary"
_PREVIOUS = "previous_version"  # a parameter of detector's config


@dataclass(frozen=True)
class Pins:
    """The version that answers, those that are in memory, the one that answered before, and the canary."""

    served: int
    loaded: tuple[int, ...]
    previous: int | None = None
    canary: int | None = None


def steps_of(repository: Path) -> tuple[str, ...]:
    """Return the models that `detector` is made of. Raises UserError for another folder."""
    path = repository / DETECTOR / "config.pbtxt"
    if not path.is_file():
        raise UserError(
            f"{repository} is not a repository of ours: it has no {DETECTOR}/config.pbtxt",
            "make one with: retinaserve build MODEL --output REPO",
        )
    return tuple(step.model_name for step in read_config(path).ensemble_scheduling.step)


def models_of(repository: Path) -> tuple[str, ...]:
    """Return the steps and the ensemble."""
    return (*steps_of(repository), DETECTOR)


def versions_of(repository: Path) -> list[int]:
    """Return the versions that all models have. Raises UserError where there is none."""
    names = models_of(repository)
    found = [{int(path.name) for path in (repository / name).glob("[0-9]*")} for name in names]
    common = sorted(set.intersection(*found))
    if not common:
        raise UserError(f"{repository} has no version that all of {', '.join(names)} have")
    return common


def read_pins(repository: Path) -> Pins | None:
    """Return what the configs say; None where they pin nothing, and a server took the newest when it started."""
    detector = read_config(repository / DETECTOR / "config.pbtxt")
    served = list(detector.version_policy.specific.versions)
    if not served:
        return None
    loaded = list(read_config(repository / RETINANET / "config.pbtxt").version_policy.specific.versions)
    previous = detector.parameters[_PREVIOUS].string_value if _PREVIOUS in detector.parameters else ""
    canary = repository / CANARY / "config.pbtxt"
    return Pins(
        served=served[0],
        loaded=tuple(loaded),
        previous=int(previous) if previous else None,
        canary=read_config(canary).version_policy.specific.versions[0] if canary.is_file() else None,
    )


def write_pins(repository: Path, pins: Pins) -> None:
    """Write the configs, each by a rename."""
    for name in steps_of(repository):
        config = read_config(repository / name / "config.pbtxt")
        config.version_policy.specific.versions[:] = pins.loaded
        write_config(repository / name / "config.pbtxt", config)
    detector = read_config(repository / DETECTOR / "config.pbtxt")
    _pin_ensemble(detector, pins.served)
    if pins.previous:
        detector.parameters[_PREVIOUS].string_value = str(pins.previous)
    else:
        detector.parameters.pop(_PREVIOUS, None)
    write_config(repository / DETECTOR / "config.pbtxt", detector)
    _write_canary(repository, detector, pins.canary)


def keep_pins(repository: Path, configs: Mapping[str, Any]) -> None:
    """Let configs for a repository that exists serve what it serves now, if that was pinned."""
    for name, config in configs.items():
        served = read_config(repository / name / "config.pbtxt")
        if not served.version_policy.HasField("specific"):
            continue
        config.version_policy.CopyFrom(served.version_policy)
        if _PREVIOUS in served.parameters:
            config.parameters[_PREVIOUS].CopyFrom(served.parameters[_PREVIOUS])
        for step, old in zip(config.ensemble_scheduling.step, served.ensemble_scheduling.step, strict=True):
            step.model_version = old.model_version


def _pin_ensemble(config: Any, version: int) -> None:
    config.version_policy.specific.versions[:] = [version]
    for step in config.ensemble_scheduling.step:
        step.model_version = version


def _write_canary(repository: Path, detector: Any, version: int | None) -> None:
    folder = repository / CANARY
    if version is None:
        shutil.rmtree(folder, ignore_errors=True)
        return
    config = type(detector)()
    config.CopyFrom(detector)
    config.name = CANARY
    config.parameters.pop(_PREVIOUS, None)
    _pin_ensemble(config, version)
    for old in folder.glob("[0-9]*"):
        if old.name != str(version):
            shutil.rmtree(old)
    shutil.copytree(repository / DETECTOR / str(version), folder / str(version), dirs_exist_ok=True)
    write_config(folder / "config.pbtxt", config)
