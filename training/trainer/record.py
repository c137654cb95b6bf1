"""What a run was asked for, in YAML files that can be asked for again, and what it ran on.

    values = read_settings(Path("cpu"))             # a file, or the name of one in training/recipes
    save_record(model, values, {"spec": ..., "training": ...})

The record is MODEL.config.yaml, which `train --config` reads, and MODEL.environment.json.
"""

import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Hashable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from retinaserve.training.errors import Exit, UserError
from retinaserve.training.files import write_json, write_text
from retinaserve.training.machine import cpu_model

RECIPES = Path(__file__).parents[1] / "recipes"
PACKAGES = (
    "retinaserve",
    "torch",
    "numpy",
    "pillow",
    "nvidia-dali-cuda120",
    "onnx",
    "hotcoco",
    "pycocotools",
    "click",
    "pyyaml",
)


def find_settings(path: Path) -> Path:
    """Return the file, or the recipe of that name."""
    if path.is_file():
        return path
    names = sorted(recipe.stem for recipe in RECIPES.glob("*.yaml"))
    if str(path) in names:
        return RECIPES / f"{path}.yaml"
    raise UserError(f"{path}: no such file", f"a YAML file, or a recipe: {', '.join(names)}", code=Exit.USAGE)


def read_settings(path: Path) -> Mapping[Hashable, Any]:
    """Return what a YAML file sets, whatever its keys are. Raises UserError for what is not a mapping in YAML."""
    import yaml

    try:
        document = yaml.compose(path.read_text(encoding="utf-8"), yaml.SafeLoader)
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: {error}", "a YAML file is expected", code=Exit.USAGE) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "not YAML"
        raise UserError(
            f"{path}{where}: {problem}", "flags and values are expected: lr: 0.01", code=Exit.USAGE
        ) from None
    if content is None:
        return {}
    if not isinstance(content, Mapping):
        raise UserError(f"{path}: not a mapping", "flags and values are expected: lr: 0.01", code=Exit.USAGE)
    keys = [key.value for key, _ in document.value] if isinstance(document, yaml.MappingNode) else []
    twice = [key for key in keys if keys.count(key) > 1]
    if twice:  # YAML's reader would take the last without a word
        raise UserError(f"{path}: {twice[0]!r} is there twice", "keep one", code=Exit.USAGE)
    return content


def save_record(model: Path, values: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Write, beside a model, the flags its run was given and what it ran on; `facts` join the latter."""
    import yaml

    options = {
        name.replace("_", "-"): str(value) if isinstance(value, Path) else _listed(value)
        for name, value in values.items()
        if value is not None and value != ()
    }
    text = yaml.safe_dump(options, sort_keys=False, allow_unicode=True, default_flow_style=None)
    write_text(model.with_suffix(".config.yaml"), f"# retinaserve train MODEL.pth --config THIS_FILE\n{text}")
    write_json(model.with_suffix(".environment.json"), {**environment(), **facts})


def environment() -> dict[str, Any]:
    """Return what a run depends on: command, commit, versions, processors."""
    import torch

    versions: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "git": git_commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": versions,
        "cpu": {"model": cpu_model(), "cores": os.cpu_count()},
        "gpus": gpus,
        "cuda": torch.version.cuda,
        "processes": int(os.environ.get("WORLD_SIZE", 1)),
    }


def git_commit(folder: Path = Path(__file__).parent) -> dict[str, Any] | None:
    """Return the commit of the code that runs and whether it was changed since; None outside of git."""
    try:
        commit, changes = (
            subprocess.run(
                ["git", *words], cwd=folder, capture_output=True, text=True, check=True, timeout=10
            ).stdout
            for words in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit.strip(), "changed": bool(changes.strip())}


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
