"""A model on disk: weights, the spec they belong to, and what a run needs to go on.

    save(path, Checkpoint(spec, model.state_dict()))
    spec, model = load_model(path)
    save_backbone(path, Backbone("resnet50", 64, weights))     # what a detector can start from

The file is a plain dict of tensors, numbers and strings; it is read with `weights_only=True`, so opening one runs
no code. It replaces the file at its path in one step: a reader, or a crash, sees the old one or the new one.
"""

import argparse
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from retinaserve.training.errors import UserError
from retinaserve.training.files import whole
from retinaserve.training.model import build_model
from retinaserve.training.model.retinanet import RetinaNet
from retinaserve.training.spec import DetectorSpec

__all__ = ["Checkpoint", "load", "load_model", "save"]

FORMAT = 1


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What a file holds. `training` is the state of the optimizer, for a run that goes on."""

    spec: DetectorSpec
    weights: Mapping[str, Tensor]
    iteration: int = 0
    training: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Backbone:
    """A backbone alone, of a name and a width that `Network` knows: what fine-tuning can start from."""

    name: str
    width: int
    weights: Mapping[str, Tensor]


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Write the file, and make its folder. Raises UserError where that can't be done."""
    content = {
        "format": FORMAT,
        "spec": checkpoint.spec.to_json(),
        "iteration": checkpoint.iteration,
        "weights": dict(checkpoint.weights),
        "training": dict(checkpoint.training),
    }
    _write(path, content)


def save_backbone(path: Path, backbone: Backbone) -> None:
    """Write a backbone's file. Raises UserError as `save` does."""
    content = {"name": backbone.name, "width": backbone.width, "weights": dict(backbone.weights)}
    _write(path, {"format": FORMAT, "backbone": content})


def _write(path: Path, content: dict[str, Any]) -> None:
    # Given a path, torch.save raises RuntimeError where the disk is full.
    with whole(path) as (partial,), partial.open("wb") as file:
        torch.save(content, file)


def load(path: Path) -> Checkpoint:
    """Read a file onto the CPU. Raises UserError for one that is missing or no checkpoint."""
    content = read(path)
    if isinstance(content, Backbone):
        raise UserError(
            f"{path}: a backbone alone, not a detector",
            f"train one from it with: retinaserve train MODEL.pth --fine-tune {path} ...",
        )
    if not isinstance(content, Checkpoint):
        raise _not_a_checkpoint(path)
    return content


def read(path: Path) -> object:
    """Read any file of torch onto the CPU, without running code from it; what is written here has its type.

    Raises UserError for a file that is missing, holds more than data, or is of a later version.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint", "make one with: retinaserve train MODEL.pth ...")
    try:
        # torchvision's training script stores its arguments so; a namespace is data
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch remarks on unusual pickles before it refuses them
            content: object = torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except Exception:  # torch raises a dozen types for a file it can't read, among them bare pickle errors
        raise _not_a_checkpoint(path) from None
    if not isinstance(content, dict) or "format" not in content:
        return content
    if not ({"spec", "weights"} <= content.keys() or "backbone" in content):
        return content
    if content["format"] != FORMAT:
        raise UserError(f"{path}: checkpoint format {content['format']!r}", f"this version reads format {FORMAT}")
    if "backbone" in content:
        return Backbone(**content["backbone"])
    return Checkpoint(
        DetectorSpec.from_json(content["spec"]),
        content["weights"],
        content.get("iteration", 0),
        content.get("training", {}),
    )


def load_model(path: Path) -> tuple[DetectorSpec, RetinaNet]:
    """Read a checkpoint's spec and its network, ready to infer. Raises UserError as `load`, and for NaN."""
    checkpoint = load(path)
    model = build_model(checkpoint.spec)
    try:
        model.load_state_dict(checkpoint.weights)
    except (RuntimeError, TypeError, AttributeError):
        raise UserError(f"{path}: the weights don't fit the spec in the same file") from None
    # OpenVINO's activations make numbers of a NaN (findings/openvino_hides_nan.sh): nobody would see it later.
    broken = [name for name, tensor in model.state_dict().items() if not bool(torch.isfinite(tensor).all())]
    if broken:
        raise UserError(
            f"{path}: {len(broken)} tensors hold NaN or infinity, {broken[0]} the first",
            "the training diverged: a lower --lr, or an earlier checkpoint",
        )
    return checkpoint.spec, model.eval()


def _not_a_checkpoint(path: Path) -> UserError:
    return UserError(
        f"{path}: not a checkpoint of retinaserve",
        "a file written by `retinaserve train` is expected; `retinaserve import` converts others",
    )
