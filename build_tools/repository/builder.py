"""A Triton repository from a checkpoint, a grafted graph or a plan, put in place in one step.

    build("model.pth", "repository")     # Built(..., version=1, ...)
    build("model.plan", "repository", profile="gpu")

A new repository appears by one rename. Into an existing one the next version of every model goes the same way,
the ensemble's last, and the configs follow, so a server never reads half of a model.
"""

import io
import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from PIL import Image

from retinaserve.build_tools import openvino_cpu
from retinaserve.build_tools.engine.manifest import Manifest, Target, check_plan, manifest_path, this_target
from retinaserve.build_tools.export import export
from retinaserve.build_tools.graph.onnx_io import OnnxGraph
from retinaserve.build_tools.openvino_cpu import HINTS
from retinaserve.build_tools.preprocess import Prepared, Preprocessor
from retinaserve.build_tools.preprocess.pipeline import serialise
from retinaserve.build_tools.repository.configs import (
    INT8_ARITHMETIC,
    MODELS,
    WARMUP,
    BuildOptions,
    Profile,
    cuda_pool_bytes,
    read_config,
    specialise,
    template,
    write_config,
)
from retinaserve.build_tools.repository.versions import differences, keep_pins, keep_settings, kept_options
from retinaserve.plugins import tiles
from retinaserve.training import spec as contract
from retinaserve.training.errors import Exit, UserError
from retinaserve.training.files import staging
from retinaserve.training.spec import DetectorSpec

if TYPE_CHECKING:
    from retinaserve.build_tools.quantize.calibrate import Int8Options, Progress

__all__ = ["Built", "build", "build_repository"]

CUDA_POOL = "cuda_memory_pool_bytes"  # beside the models of the GPU profile; start.sh gives it to the server
TRAINING, BUILD_TOOLS, PLUGINS = (
    Path(contract.__file__).parent,
    Path(__file__).parents[1],
    Path(tiles.__file__).parent,
)
PIXELS = {"pixels": TRAINING / "pixels"}
# What each model directory gets a copy of, and where: a Triton model imports nothing of ours.
COPIED: Mapping[str, Mapping[str, Path]] = {
    contract.DETECTOR_TILED: PIXELS
    | {f"merging/{name}": PLUGINS / name for name in ("__init__.py", "reference.py", "tiles.py")},
    contract.PREPROCESS: {
        "preprocess": BUILD_TOOLS / "preprocess",
        "preprocess/pixels": TRAINING / "pixels",
        **{f"preprocess/{name}": TRAINING / "images" / name for name in ("operators.py", "resize.py")},
    },
    contract.ADMISSION: PIXELS,
    contract.RETINANET: {"openvino_cpu.py": Path(openvino_cpu.__file__)},  # on CPUs: a plan stands alone
}


@dataclass(frozen=True)
class Built:
    """Where the version went."""

    repository: Path
    version: int
    precision: str  # of the graph or the plan: fp32, fp16 or int8
    models: tuple[str, ...]
    calibration: Mapping[str, Any] = field(default_factory=dict)  # the record of a checkpoint that became INT8
    kept: tuple[str, ...] = ()  # settings of the repository's configs that it would not have if it were built anew


def _warmup(spec: DetectorSpec) -> tuple[bytes, dict[str, dict[str, bytes]]]:
    """Return an image for `preprocess`, and files by model: that, and what becomes of it for `retinanet`."""
    y, x = np.mgrid[: WARMUP[0], : WARMUP[1]]
    waves = [127 + 127 * np.sin(x / 17 + shift) * np.cos(y / 23 - shift) for shift in (0.0, 1.0, 2.0)]
    buffer = io.BytesIO()
    Image.fromarray(np.stack(waves, axis=-1).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    jpeg = buffer.getvalue()
    (prepared,) = Preprocessor(**spec.preprocessing, threads=1, max_batch=1).run([jpeg])
    assert isinstance(prepared, Prepared)
    tensors = {"image.raw": prepared.image.tobytes(), "letterbox.raw": prepared.letterbox.tobytes()}
    encoded = {"picture.jpg": jpeg}
    return jpeg, {contract.ADMISSION: encoded, contract.PREPROCESS: encoded, contract.RETINANET: tensors}


@dataclass(frozen=True)
class _Model:
    """What is served: a graph or a plan, and its file or files by the names they get."""

    spec: DetectorSpec
    precision: str
    identity: dict[str, str]  # SHA-256 of the files, and of what they were made from
    files: dict[str, Path]
    manifest: Manifest | None = None  # of a plan

    @classmethod
    def read(cls, path: Path, profile: Profile, target: Target) -> Self:
        """Read what the profile serves. Raises UserError for what it can't."""
        if profile == "gpu":
            if path.suffix != ".plan":
                raise UserError(
                    f"{path}: the gpu profile serves a TensorRT plan",
                    "make one on the GPU that will serve it: retinaserve export MODEL.pth MODEL.plan",
                )
            manifest = check_plan(path, target)
            files = {"model.plan": path, "model.plan.json": manifest_path(path)}
            identity = {"graph_sha256": manifest.onnx_sha256, "plan_sha256": manifest.plan_sha256}
            return cls(manifest.spec, manifest.precision, identity, files, manifest)
        if path.suffix == ".plan":
            raise UserError(f"{path}: the cpu profile serves an ONNX model", "or build with --profile gpu")
        graph = OnnxGraph.read(path)
        graph.check_served()
        custom = graph.custom_operators()
        if custom:
            raise UserError(
                f"{path} has operators that the cpu profile can't run: {', '.join(custom)}",
                "export it with --flavour standard",
            )
        files = {"model.onnx": path}
        record = path.with_suffix(".calibration.json")
        if record.is_file() and graph.precision == "int8":
            files["model.calibration.json"] = record
        return cls(graph.spec, graph.precision, graph.identity(), files)


def build(
    model: str | Path,
    repository: str | Path,
    *,
    profile: Profile = "cpu",
    precision: str = "fp32",
    calibration_images: "str | Path | Int8Options | None" = None,
    options: BuildOptions | None = None,
    target: Target | None = None,
    progress: "Progress | None" = None,
) -> Built:
    """Make the Triton repository of a model; an existing one gets the next version.

    model: for the cpu profile a grafted .onnx, or a checkpoint .pth that is exported first; for the gpu profile a
    .plan with its manifest beside it.
    precision: on CPUs, "fp32" or "bf16" for what is float in the graph, or "int8", which quantizes a checkpoint
    with `calibration_images` first and computes in bf16 what stays float.
    target: where a plan is to run; this machine if None. Raises UserError for a plan that was built for another.
    """
    model, repository = Path(model), Path(repository)
    if precision not in (*HINTS, "int8"):
        raise UserError(f"precision {precision!r} is not known", "one of: fp32, bf16, int8", code=Exit.USAGE)
    options = replace(options or BuildOptions(), arithmetic=INT8_ARITHMETIC if precision == "int8" else precision)
    if profile == "gpu":
        target = target or this_target()
        return build_repository(model, repository, profile=profile, options=options, target=target)
    record: Mapping[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="retinaserve-") as scratch:
        graph = model
        if model.suffix == ".pth":
            graph = Path(scratch) / "model.onnx"
            record = export(
                model,
                graph,
                precision="int8" if precision == "int8" else "fp32",
                calibration_images=calibration_images,
                progress=progress,
            ).calibration
        elif precision == "int8" and OnnxGraph.read(graph).precision != "int8":
            raise UserError(
                f"{model} is a float graph; INT8 is made from the checkpoint",
                "retinaserve export MODEL.pth MODEL.onnx --precision int8 --calibration-images DIR",
                code=Exit.USAGE,
            )
        built = build_repository(graph, repository, profile=profile, options=options)
    return replace(built, calibration=record)


def build_repository(
    model: Path,
    repository: Path,
    *,
    profile: Profile = "cpu",
    options: BuildOptions | None = None,
    target: Target | None = None,
) -> Built:
    """Write the models of a profile and return the version: the next one in an existing repository.

    `target` is where a plan will run; what is known of it is compared with the plan's manifest. Raises UserError
    when the model does not fit the profile or the target, or the repository serves another kind of detector.
    """
    options = options or BuildOptions()
    served = _Model.read(model, profile, replace(target or Target(), max_batch=options.max_batch or 0))
    version = _next_version(repository, profile)
    image, warmup = _warmup(served.spec)
    made = partial(
        specialise,
        served.spec,
        profile,
        image_bytes=len(image),
        precision=served.precision,
        identity=served.identity,
        manifest=served.manifest,
    )
    configs, kept = made(options), tuple[str, ...]()
    if version > 1:
        anew = {name: each for name, each in configs.items() if (repository / name / "config.pbtxt").is_file()}
        _check_same_contract(repository, anew)
        options = kept_options(repository, options, served.manifest)
        configs = made(options)
        there = {name: configs[name] for name in anew}
        keep_settings(repository, there, options)
        kept = differences(anew, there)
        keep_pins(repository, there)
    with staging(repository) as scratch:
        stage = scratch / repository.name
        _stage(stage, profile, configs, warmup, version)
        for name, source in served.files.items():
            shutil.copyfile(source, stage / contract.RETINANET / str(version) / name)
        if profile == "gpu":
            _write_pipeline(stage / contract.PREPROCESS / str(version), served.spec, configs)
            (stage / CUDA_POOL).write_text(f"{cuda_pool_bytes(configs)}\n")
        if version > 1:
            _merge(stage, repository, version, tuple(configs))
        else:
            try:
                stage.rename(repository)
            except OSError as error:
                raise UserError(f"{repository} could not be put in place: {error.strerror}") from None
    return Built(repository, version, served.precision, tuple(configs), kept=kept)


def _write_pipeline(folder: Path, spec: DetectorSpec, configs: dict[str, Any]) -> None:
    """Write the DALI pipeline for the backend, and what its source dali.py needs to write it again."""
    config = configs[contract.PREPROCESS]
    settings: dict[str, Any] = {
        "size": spec.size,
        "fill": spec.pad_value,
        "resize": spec.resize,
        **({"pixels": spec.pixels} if spec.pixels != DetectorSpec.pixels else {}),
        "max_batch": config.max_batch_size,
        "threads": int(config.parameters["num_threads"].string_value),
        "decoder": "mixed",
    }
    (folder / "pipeline.json").write_text(json.dumps(settings) + "\n")
    (folder / "model.dali").write_bytes(serialise(**settings))


def _next_version(repository: Path, profile: Profile) -> int:
    if not repository.exists():
        return 1
    names = MODELS[profile]
    missing = [name for name in names if not (repository / name / "config.pbtxt").is_file()]
    if missing == [contract.ADMISSION]:
        raise UserError(f"{repository} is of the cpu profile", "build for the gpu into a folder of its own")
    if profile == "cpu" and (repository / contract.ADMISSION).exists():
        raise UserError(f"{repository} is of the gpu profile", "build for the cpu into a folder of its own")
    if missing:
        raise UserError(
            f"{repository} exists and is not a repository of ours: it has no {missing[0]}/config.pbtxt",
            "name a folder that does not exist yet",
        )
    versions = (int(path.name) for name in names for path in (repository / name).iterdir() if path.name.isdigit())
    return max(versions, default=0) + 1


def _check_same_contract(repository: Path, configs: dict[str, Any]) -> None:
    """A config covers all versions of its model, so a new version must take and give the same tensors."""
    for name, config in configs.items():
        served = read_config(repository / name / "config.pbtxt")
        same = list(served.input) == list(config.input) and list(served.output) == list(config.output)
        keys: tuple[str, ...] = ("size", "resize", "fill", "classes", "category_ids")
        keys += tuple(key for key in ("value_range",) if key in {*served.parameters, *config.parameters})
        changed = [key for key in keys if served.parameters[key] != config.parameters[key]]
        if not same or changed:
            what = f"another {changed[0]}" if changed else "other tensors"
            raise UserError(
                f"{repository} serves a detector with {what}; one config covers all versions of a model",
                "build it into a folder of its own",
            )


def _stage(
    stage: Path, profile: Profile, configs: dict[str, Any], warmup: dict[str, dict[str, bytes]], version: int
) -> None:
    for name, config in configs.items():
        source, folder = template(profile, name) / "1", stage / name / str(version)
        if source.is_dir():
            shutil.copytree(source, folder, ignore=shutil.ignore_patterns("__pycache__"))
        else:  # a plan stands alone
            folder.mkdir(parents=True)
        write_config(stage / name / "config.pbtxt", config)
        for file, content in warmup.get(name, {}).items():
            (stage / name / "warmup").mkdir(exist_ok=True)
            (stage / name / "warmup" / file).write_bytes(content)
    for name in configs:
        copies = COPIED.get(name, {}) if (profile, name) != ("gpu", contract.RETINANET) else {}
        for place, source in copies.items():
            target = stage / name / str(version) / place
            target.parent.mkdir(exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "pixels.py"))
            else:
                shutil.copyfile(source, target)


def _merge(stage: Path, repository: Path, version: int, models: tuple[str, ...]) -> None:
    """Rename the new version into every model, the ensemble's last; take back what was placed if one fails."""
    placed: list[Path] = []
    try:
        for name in models:
            target = repository / name / str(version)
            target.parent.mkdir(exist_ok=True)
            (stage / name / str(version)).rename(target)
            placed.append(target)
    except OSError as error:
        for path in placed:
            shutil.rmtree(path)
        raise UserError(f"{repository}: version {version} could not be put in place: {error.strerror}") from None
    for name in models:
        for fresh in (stage / name).glob("warmup/*"):
            fresh.replace(repository / fresh.relative_to(stage))
        write_config(repository / name / "config.pbtxt", read_config(stage / name / "config.pbtxt"))
    for pool in stage.glob(CUDA_POOL):
        pool.replace(repository / CUDA_POOL)
