"""What the configs of a repository say besides the model: which versions are served, and what an operator has set.

    pins = read_pins(repository)                    # Pins(served=2, loaded=(1, 2), previous=1, canary=None)
    write_pins(repository, replace(pins, served=1, previous=2))
    options = kept_options(repository, options, manifest)      # what was not asked for now is as it was
    keep_settings(repository, configs, options)
    told = differences(anew, configs)                          # ["preprocess: max_queue_size: 5", ...]

Triton keeps one config for all versions of a model, so versions of an ensemble can't name different steps. One
version of `detector` is served at a time, with both of its steps pinned to the same number: an answer belongs to
one version, and says which. Another version can be asked beside it as `detector_canary`, an ensemble of its own.
A repository that `build` has just made pins nothing: a server takes its newest version.

When the next version is built, tensors, warm-up and the parameters that `build` writes follow it. How requests
queue and share processors, and parameters that `build` does not know, are the operator's.
"""

import difflib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from google.protobuf import text_format

from retinaserve.build_tools.engine.manifest import Manifest
from retinaserve.build_tools.repository.configs import BuildOptions, read_config, write_config
from retinaserve.training.errors import UserError
from retinaserve.training.spec import DETECTOR, PREPROCESS, RETINANET

CANARY = "detector_canary"
_PREVIOUS = "previous_version"  # a parameter of detector's config
TUNED = ("dynamic_batching", "instance_group", "optimization", "response_cache", "version_policy")
# Parameters that say what the served version is, and are gone where a version has none.
OF_THE_DETECTOR = ("classes", "category_ids", "size", "fill", "resize", "score_threshold", "tile", "overlap")
OF_THE_ENGINE = ("decode", "graph", "precision", "tensorrt", "compute_capability", "previous_version")
LIMITS = ("max_image_bytes", "max_image_pixels")


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


def kept_options(repository: Path, options: BuildOptions, manifest: Manifest | None) -> BuildOptions:
    """Return the options with the repository's where none were asked for."""
    detector, preprocess, retinanet = (
        read_config(repository / name / "config.pbtxt") for name in (DETECTOR, PREPROCESS, RETINANET)
    )
    most = manifest.batch[2] if manifest else retinanet.max_batch_size
    found: dict[str, Any] = {
        "max_batch": min(retinanet.max_batch_size, most) or None,
        "max_inflight": detector.ensemble_scheduling.max_inflight_requests,
        **{name: int(detector.parameters[name].string_value) for name in LIMITS},
    }
    if manifest is None:
        found["full_decode"] = preprocess.parameters["decode"].string_value == "full"
        found["max_queue"] = preprocess.dynamic_batching.default_queue_policy.max_queue_size or None
    asked = options.asked | {each.name for each in fields(options) if getattr(options, each.name) != each.default}
    return replace(options, **{name: value for name, value in found.items() if name not in asked})


def keep_settings(repository: Path, configs: Mapping[str, Any], options: BuildOptions) -> None:
    """Give configs for a repository that exists its settings; `options` are those of `kept_options`."""
    for name, config in configs.items():
        served = read_config(repository / name / "config.pbtxt")
        present = {field.name for field, _ in served.ListFields()}
        graphs = list(config.optimization.cuda.graph_spec)  # for the batches and canvases of the new version
        for setting in TUNED:
            config.ClearField(setting)
            if setting in present:
                getattr(config, setting).MergeFrom(getattr(served, setting))
        if options.max_queue and config.dynamic_batching.HasField("default_queue_policy"):
            config.dynamic_batching.default_queue_policy.max_queue_size = options.max_queue
        if config.optimization.cuda.graphs:
            del config.optimization.cuda.graph_spec[:]
            config.optimization.cuda.graph_spec.MergeFrom(graphs)
        for key, value in served.parameters.items():
            if key not in (*OF_THE_DETECTOR, *OF_THE_ENGINE, *LIMITS) and not key.endswith("_sha256"):
                config.parameters[key].CopyFrom(value)


def differences(anew: Mapping[str, Any], configs: Mapping[str, Any]) -> tuple[str, ...]:
    """Return a line for each setting that a repository built anew would have otherwise."""
    found = []
    for name, config in configs.items():
        before, after = (text_format.MessageToString(each, as_utf8=True) for each in (anew[name], config))
        lines = difflib.ndiff(before.splitlines(), after.splitlines())
        found += [f"{name}: {line[2:].strip()}" for line in lines if line[0] == "+" and line[-1] not in "{}"]
    return tuple(found)
