"""What an operator has set in the configs of a repository: kept when the next version is built into it.

    options = kept_options(repository, options, manifest)      # what was not asked for now is as it was
    keep_settings(repository, configs, options)
    told = differences(anew, configs)                          # ["preprocess: max_queue_size: 5", ...]

Tensors, warm-up and the parameters that `build` writes follow the new version. How requests queue and share
processors, and parameters that `build` does not know, are the operator's.
"""

import difflib
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from google.protobuf import text_format

from retinaserve.build_tools.engine.manifest import Manifest
from retinaserve.build_tools.repository.configs import BuildOptions, read_config
from retinaserve.training.spec import DETECTOR, PREPROCESS, RETINANET

TUNED = ("dynamic_batching", "instance_group", "optimization", "response_cache", "version_policy")
# Parameters that say what the served version is, and are gone where a version has none.
OF_THE_DETECTOR = ("classes", "category_ids", "size", "fill", "resize", "score_threshold", "tile", "overlap")
OF_THE_ENGINE = ("decode", "graph", "precision", "tensorrt", "compute_capability", "previous_version")
LIMITS = ("max_image_bytes", "max_image_pixels")


def kept_options(repository: Path, options: BuildOptions, manifest: Manifest | None) -> BuildOptions:
    """Return the options with the repository's where none were asked for."""
    detector, preprocess, retinanet = (
        read_config(repository / name / "config.pbtxt") for name in (DETECTOR, PREPROCESS, RETINANET)
    )
    most = manifest.batch[2] if manifest else retinanet.max_batch_size
    limits = {
        name: int(detector.parameters[name].string_value) for name in ("max_image_bytes", "max_image_pixels")
    }
    found: dict[str, Any] = {
        "max_batch": min(retinanet.max_batch_size, most) or None,
        "max_inflight": detector.ensemble_scheduling.max_inflight_requests,
        **limits,
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
            ours = key in (*OF_THE_DETECTOR, *OF_THE_ENGINE, *LIMITS) or key.endswith("_sha256")
            if not ours:
                config.parameters[key].CopyFrom(value)


def differences(anew: Mapping[str, Any], configs: Mapping[str, Any]) -> tuple[str, ...]:
    """Return a line for each setting that a repository built anew would have otherwise."""
    found = []
    for name, config in configs.items():
        before, after = (text_format.MessageToString(each, as_utf8=True) for each in (anew[name], config))
        lines = difflib.ndiff(before.splitlines(), after.splitlines())
        found += [f"{name}: {line[2:].strip()}" for line in lines if line[0] == "+" and line[-1] not in "{}"]
    return tuple(found)
