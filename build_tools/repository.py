"""A Triton repository from a grafted model, put in place in one step.

    build_repository(Path("model.onnx"), Path("repository"), profile="cpu")     # Built(..., version=1, ...)

A new repository appears by one rename. Into an existing one the next version of every model goes the same way,
the ensemble's last, and the configs follow, so a server never reads half of a model.
"""

import io
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from PIL import Image

import build_tools.preprocess
from build_tools.configs import MODELS, TEMPLATES, BuildOptions, read_config, specialise, write_config
from build_tools.preprocess import Prepared, Preprocessor
from build_tools.signature import Signature, read_signature
from build_tools.staging import disk_errors
from training import spec as contract
from training.errors import UserError

__all__ = ["Built", "build_repository"]

PREPROCESS_PACKAGE = Path(build_tools.preprocess.__path__[0])


@dataclass(frozen=True)
class Built:
    """Where the version went."""

    repository: Path
    version: int
    precision: str  # of the graph: fp32 or int8


@dataclass(frozen=True)
class _Warmup:
    """A picture for `preprocess`, and what `preprocess` makes of it for `retinanet`: files by model."""

    files: dict[str, dict[str, bytes]]

    @classmethod
    def draw(cls, signature: Signature) -> Self:
        y, x = np.mgrid[0:480, 0:640]
        waves = [127 + 127 * np.sin(x / 17 + shift) * np.cos(y / 23 - shift) for shift in (0.0, 1.0, 2.0)]
        buffer = io.BytesIO()
        Image.fromarray(np.stack(waves, axis=-1).astype(np.uint8)).save(buffer, "JPEG", quality=90)
        jpeg = buffer.getvalue()
        spec = signature.spec
        (prepared,) = Preprocessor(spec.size, spec.fill, threads=1, max_batch=1).run([jpeg])
        assert isinstance(prepared, Prepared)
        return cls(
            {
                contract.PREPROCESS: {"picture.jpg": jpeg},
                contract.RETINANET: {
                    "image.raw": prepared.image.tobytes(),
                    "letterbox.raw": prepared.letterbox.tobytes(),
                },
            }
        )

    @property
    def picture_bytes(self) -> int:
        return len(self.files[contract.PREPROCESS]["picture.jpg"])


def build_repository(
    model: Path, repository: Path, *, profile: str = "cpu", options: BuildOptions | None = None
) -> Built:
    """Write the three models of a profile and return the version: the next one in an existing repository.

    Raises UserError when the graph does not fit the profile, or the repository serves another kind of detector.
    """
    if profile != "cpu":
        raise UserError(f"profile {profile!r} can't be built yet", "available: cpu")
    signature = read_signature(model)
    if signature.custom_operators:
        raise UserError(
            f"{model} has operators that the cpu profile can't run: {', '.join(signature.custom_operators)}",
            "export it with --flavour standard",
        )
    version = _next_version(repository)
    warmup = _Warmup.draw(signature)
    configs = specialise(signature, profile, options or BuildOptions(), picture_bytes=warmup.picture_bytes)
    if version > 1:
        _check_same_contract(repository, configs)
    record = model.with_suffix(".calibration.json")
    with disk_errors(repository), _staging(repository) as stage:
        _stage(stage, profile, configs, warmup, version)
        shutil.copyfile(model, stage / contract.RETINANET / str(version) / "model.onnx")
        if record.is_file() and signature.precision == "int8":
            shutil.copyfile(record, stage / contract.RETINANET / str(version) / "model.calibration.json")
        if version == 1:
            _appear(stage, repository)
        else:
            _merge(stage, repository, version)
    return Built(repository, version, signature.precision)


def _next_version(repository: Path) -> int:
    if not repository.exists():
        return 1
    missing = [name for name in MODELS if not (repository / name / "config.pbtxt").is_file()]
    if missing:
        raise UserError(
            f"{repository} exists and is not a repository of ours: it has no {missing[0]}/config.pbtxt",
            "name a folder that does not exist yet",
        )
    versions = (int(path.name) for name in MODELS for path in (repository / name).iterdir() if path.name.isdigit())
    return max(versions, default=0) + 1


def _check_same_contract(repository: Path, configs: dict[str, Any]) -> None:
    """A config covers all versions of its model, so a new version must take and give the same tensors."""
    for name, config in configs.items():
        served = read_config(repository / name / "config.pbtxt")
        same = list(served.input) == list(config.input) and list(served.output) == list(config.output)
        keys = ("size", "fill", "classes", "category_ids")
        changed = [key for key in keys if served.parameters[key] != config.parameters[key]]
        if not same or changed:
            what = f"another {changed[0]}" if changed else "other tensors"
            raise UserError(
                f"{repository} serves a detector with {what}; one config covers all versions of a model",
                "build it into a folder of its own",
            )


def _stage(stage: Path, profile: str, configs: dict[str, Any], warmup: _Warmup, version: int) -> None:
    for name, config in configs.items():
        template = TEMPLATES / profile / name / "1"
        shutil.copytree(template, stage / name / str(version), ignore=shutil.ignore_patterns("__pycache__"))
        write_config(stage / name / "config.pbtxt", config)
        for file, content in warmup.files.get(name, {}).items():
            (stage / name / "warmup").mkdir(exist_ok=True)
            (stage / name / "warmup" / file).write_bytes(content)
    shutil.copytree(
        PREPROCESS_PACKAGE,
        stage / contract.PREPROCESS / str(version) / PREPROCESS_PACKAGE.name,
        ignore=shutil.ignore_patterns("__pycache__"),
    )


@contextmanager
def _staging(repository: Path) -> Iterator[Path]:
    """Give a folder beside the repository (same file system, out of a polling server's sight)."""
    repository.parent.mkdir(parents=True, exist_ok=True)
    stage = Path(tempfile.mkdtemp(prefix=f".{repository.name}-", dir=repository.parent))
    stage.chmod(0o755)
    try:
        yield stage
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _appear(stage: Path, repository: Path) -> None:
    try:
        stage.rename(repository)
    except OSError as error:
        raise UserError(f"{repository} could not be put in place: {error.strerror}") from None


def _merge(stage: Path, repository: Path, version: int) -> None:
    """Rename the new version into every model, the ensemble's last; take back what was placed if one fails."""
    placed: list[Path] = []
    try:
        for name in MODELS:
            target = repository / name / str(version)
            (stage / name / str(version)).rename(target)
            placed.append(target)
    except OSError as error:
        for path in placed:
            shutil.rmtree(path)
        raise UserError(f"{repository}: version {version} could not be put in place: {error.strerror}") from None
    for name in MODELS:
        for fresh in (*(stage / name).glob("warmup/*"), stage / name / "config.pbtxt"):
            fresh.replace(repository / fresh.relative_to(stage))
