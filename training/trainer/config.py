"""A training from a file: YAML whose keys are the flags, and a record of what a run was made with.

    @click.option("--config", type=PATH, is_eager=True, callback=use_config, expose_value=False)
    save_record(model, context, {"spec": ..., "training": ...})

Flags override the file, the file overrides defaults. `--config NAME` is a recipe of `training/recipes`. The record
is MODEL.config.yaml, which --config reads again, and MODEL.environment.json.
"""

import difflib
import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Hashable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from retinaserve.training.errors import Exit, UserError
from retinaserve.training.files import write_json, write_text

RECIPES = Path(__file__).parents[1] / "recipes"
NOT_IN_A_FILE = ("config", "override", "help")
PACKAGES = (
    "retinaserve",
    "torch",
    "numpy",
    "pillow",
    "nvidia-dali-cuda120",
    "onnx",
    "pycocotools",
    "click",
    "pyyaml",
)


def use_config(context: click.Context, parameter: click.Parameter, value: Path | None) -> None:
    """Let a file's values stand for the defaults of a command: the callback of an eager --config."""
    if value is not None and not context.resilient_parsing:
        context.default_map = {**(context.default_map or {}), **load_config(value, context)}


def load_config(path: Path, context: click.Context) -> dict[str, Any]:
    """Return a file's values by the names of the command's parameters.

    Raises UserError for a key that is no flag, a value that its flag would refuse, and for what is not YAML.
    """
    path = _find(path)
    known = {
        flag.lstrip("-").replace("-", "_"): parameter
        for parameter in context.command.params
        if isinstance(parameter, click.Option) and parameter.name not in NOT_IN_A_FILE
        for flag in parameter.opts
    }
    values: dict[str, Any] = {}
    for key, value in _read(path).items():
        option = known.get(str(key).replace("-", "_"))
        if option is None:
            near = difflib.get_close_matches(str(key).replace("-", "_"), known, 1, 0.5)
            raise UserError(
                f"{path}: {key!r} is not a flag of {context.info_name or context.command.name}",
                f"did you mean {near[0].replace('_', '-')!r}?" if near else "see --help for those there are",
                code=Exit.USAGE,
            )
        if value is None:
            continue
        try:
            option.type_cast_value(context, value)
        except click.BadParameter as error:
            raise UserError(
                f"{path}: {key}: {error.message.rstrip('.')}", f"it is {value!r}", code=Exit.USAGE
            ) from None
        assert option.name is not None
        values[option.name] = value
    return values


def save_record(model: Path, context: click.Context, extra: Mapping[str, Any]) -> None:
    """Write, beside a model, what its run was asked for and what it ran on; `extra` joins the latter."""
    import yaml

    options = {
        name.replace("_", "-"): _plain(value)
        for name, value in context.params.items()
        if value is not None and name not in (*NOT_IN_A_FILE, "model") and value != ()
    }
    text = yaml.safe_dump(options, sort_keys=False, allow_unicode=True, default_flow_style=None)
    write_text(model.with_suffix(".config.yaml"), f"# retinaserve train MODEL.pth --config THIS_FILE\n{text}")
    record = {**environment(), **extra}
    write_json(model.with_suffix(".environment.json"), record)


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
        "cpu": {"model": _cpu_model(), "cores": os.cpu_count()},
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


def _find(path: Path) -> Path:
    """Return the file, or the recipe of that name."""
    if path.is_file():
        return path
    names = sorted(recipe.stem for recipe in RECIPES.glob("*.yaml"))
    if str(path) in names:
        return RECIPES / f"{path}.yaml"
    raise UserError(f"{path}: no such file", f"a YAML file, or a recipe: {', '.join(names)}", code=Exit.USAGE)


def _read(path: Path) -> Mapping[Hashable, Any]:
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


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine()
    )
