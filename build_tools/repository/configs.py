"""The `config.pbtxt` of each model of a profile, specialised for one detector and checked against it.

    configs = specialise(spec, "cpu", BuildOptions(), source, picture_bytes=20_000)

They are read and changed through Triton's own protobuf classes, so that what Triton would refuse fails here, and
nothing is left to the server's auto-completion.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from retinaserve.build_tools.engine.manifest import Manifest
from retinaserve.build_tools.preprocess import MAX_BYTES, MAX_PIXELS
from retinaserve.build_tools.repository.config_checks import check_configs
from retinaserve.build_tools.repository.config_schema import read_config, write_config
from retinaserve.build_tools.repository.triton_release import EMBEDDED, PRODUCTION, TritonRelease
from retinaserve.training import spec as contract
from retinaserve.training.errors import Exit, UserError
from retinaserve.training.spec import DetectorSpec, Tensor

__all__ = [
    "MODELS",
    "TEMPLATES",
    "BuildOptions",
    "Profile",
    "check_configs",
    "read_config",
    "specialise",
    "write_config",
]

Profile = Literal["cpu", "gpu"]
MODELS: Mapping[str, tuple[str, ...]] = {
    "cpu": (contract.PREPROCESS, contract.RETINANET, contract.DETECTOR),
    "gpu": (contract.ADMISSION, contract.PREPROCESS, contract.RETINANET, contract.DETECTOR),
}
TEMPLATES = Path(__file__).parents[2] / "model_repository"
DEFAULT_BATCH = 4  # on CPUs: cores take pictures one by one, and more would only be decoded earlier
# The output convolutions of an INT8 graph are float and, in f32, take as long as all the others together.
INT8_ARITHMETIC = "bf16"


@dataclass(frozen=True)
class BuildOptions:
    """What the deployer chooses; everything else comes from the model."""

    precision: str = "f32"  # what the CPU computes in where the graph is float: f32, or bf16 if it can
    max_batch: int | None = None  # 4, or the largest that a plan takes
    max_image_bytes: int = MAX_BYTES
    max_image_pixels: int = MAX_PIXELS
    triton: TritonRelease = PRODUCTION  # GPU profile: the server that it is for
    max_queue: int | None = None  # CPU profile: requests that wait, at most; 32, or two batches
    max_inflight: int = 0  # GPU profile: requests between two steps of the ensemble, at most; 0: no limit


def specialise(
    spec: DetectorSpec,
    profile: Profile,
    options: BuildOptions,
    *,
    picture_bytes: int,
    precision: str = "fp32",
    identity: Mapping[str, str] | None = None,
    manifest: Manifest | None = None,
) -> dict[str, Any]:
    """Return the profile's configs (ModelConfig by model name) made for one detector, and checked against it.

    `picture_bytes` is the length of the encoded warm-up picture, which Triton wants as a dimension, `precision`
    the graph's, `identity` the hashes that a client is told. The GPU profile needs the plan's manifest. Raises
    UserError where configs, model and target do not fit together.
    """
    max_batch = options.max_batch or (manifest.batch[2] if manifest else DEFAULT_BATCH)
    picture = Tensor("uint8", (picture_bytes,))
    tensors = spec.inputs | spec.outputs
    parameters = _parameters(spec, profile, options, precision, manifest)
    for key, text in (identity or {}).items():
        parameters[contract.DETECTOR][key] = text
    configs = {}
    for name in MODELS[profile]:
        config = read_config(TEMPLATES / profile / name / "config.pbtxt")
        config.max_batch_size = max_batch
        if profile == "cpu" and config.dynamic_batching.HasField("default_queue_policy"):
            # Two full batches keep the engine busy.
            policy = config.dynamic_batching.default_queue_policy
            policy.max_queue_size = options.max_queue or max(policy.max_queue_size, 2 * max_batch)
        for tensor in (*config.input, *config.output):
            if tensor.name in tensors:
                tensor.dims[:] = tensors[tensor.name].shape
        for sample in config.model_warmup:
            for key, value in sample.inputs.items():
                value.dims[:] = (picture if key == contract.IMAGE_BYTES else tensors[key]).shape
        for key, text in parameters[name].items():
            config.parameters[key].string_value = text
        if config.optimization.cuda.graphs:
            _write_graph_specs(config, spec)
        configs[name] = config
    if options.max_inflight:
        configs[contract.DETECTOR].ensemble_scheduling.max_inflight_requests = options.max_inflight
    check_configs(configs, spec, manifest=manifest)
    _check_release(configs, profile, options)
    return configs


def _parameters(
    spec: DetectorSpec, profile: Profile, options: BuildOptions, precision: str, manifest: Manifest | None
) -> dict[str, dict[str, str]]:
    """Return the parameters that depend on the detector, by model."""
    limits = {
        "max_image_bytes": str(options.max_image_bytes),
        "max_image_pixels": str(options.max_image_pixels),
    }
    preparation = {"size": json.dumps(spec.size), "fill": json.dumps(spec.pad_value)}
    detector = {
        "classes": json.dumps(spec.classes, ensure_ascii=False),
        "category_ids": json.dumps(spec.category_ids),
        "size": json.dumps(spec.size),
        "score_threshold": repr(spec.score_threshold),
        **limits,
    }
    if profile == "cpu":
        return {
            contract.PREPROCESS: preparation | limits,
            contract.RETINANET: {"precision": options.precision, "graph": precision},
            contract.DETECTOR: detector,
        }
    if manifest is None:
        raise UserError("the gpu profile needs the manifest of the plan", "a plan written by `retinaserve export`")
    built = ("precision", "tensorrt", "compute_capability")
    return {
        contract.ADMISSION: limits,
        contract.PREPROCESS: preparation,
        contract.RETINANET: {key: getattr(manifest, key) for key in built},
        contract.DETECTOR: detector,
    }


def _write_graph_specs(config: Any, spec: DetectorSpec) -> None:
    """Write a CUDA graph for each power of two up to the largest batch, and for that one.

    Each serves the sizes between it and the one before, so that no batch runs without a graph.
    """
    most = config.max_batch_size
    sizes = [*(2**power for power in range(most.bit_length()) if 2**power < most), most]
    del config.optimization.cuda.graph_spec[:]
    for before, size in zip([0, *sizes], sizes, strict=False):
        graph = config.optimization.cuda.graph_spec.add(batch_size=size)
        bounds = [graph] if before + 1 == size else [graph, graph.graph_lower_bound]
        if before + 1 < size:
            graph.graph_lower_bound.batch_size = before + 1
        for name, tensor in spec.inputs.items():
            for bound in bounds:
                bound.input[name].dim[:] = tensor.shape


def _check_release(configs: Mapping[str, Any], profile: Profile, options: BuildOptions) -> None:
    release = EMBEDDED if profile == "cpu" else options.triton
    for name, config in configs.items():
        unknown = release.unknown_fields(config)
        if unknown:
            raise UserError(
                f"{name}/config.pbtxt: Triton {release} does not know {unknown[0]}",
                "leave it out, or build for a later server with --triton-version",
                code=Exit.USAGE,
            )
