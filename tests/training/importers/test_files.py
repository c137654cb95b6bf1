"""Files as people save them: taken rightly, or refused with a remedy that works. Each remedy is tried."""

import pickle
from argparse import Namespace
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from click.testing import CliRunner
from safetensors.torch import save_file
from torch import nn
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.optim.swa_utils import AveragedModel

from retinaserve.scripts.cli.learn.import_weights import import_weights
from retinaserve.training.checkpoint import load
from retinaserve.training.errors import UserError
from retinaserve.training.importers import Choices, import_content
from tests import torchvision_layout
from tests.cli import invoke

STATE = torchvision_layout.retinanet(1, classes=3, width=8, pyramid=64)
MARK = "head.classification_head.cls_logits.bias"
EMA = {name: value + 1 if name == MARK else value for name, value in STATE.items()}


class Layer(nn.Module):
    """A module with somebody's parameters at somebody's names, as a whole model has them."""

    def __init__(self, state: dict[str, torch.Tensor]) -> None:
        super().__init__()
        for name in dict.fromkeys(name.partition(".")[0] for name in state):
            inner = {key.partition(".")[2]: value for key, value in state.items() if key.split(".")[0] == name}
            if "" in inner:
                self.register_buffer(name, inner[""])
            else:
                self.add_module(name, Layer(inner))


class Lightning(dict):  # type: ignore[type-arg]
    """AttributeDict, and any other class that this machine may not have."""


def prefixed(prefix: str, state: dict[str, torch.Tensor] = STATE) -> dict[str, torch.Tensor]:
    return {prefix + name: value for name, value in state.items()}


def cast(kind: torch.dtype) -> dict[str, torch.Tensor]:
    return {name: value.to(kind) if value.is_floating_point() else value for name, value in STATE.items()}


def on_disk(content: Any, name: str = "weights.pth", **how: Any) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        torch.save(content, folder / name, **how)
        return folder / name

    return write


def as_pickle(protocol: int, name: str = "model.pkl") -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        arrays = {key: value.numpy() for key, value in STATE.items()}
        (folder / name).write_bytes(pickle.dumps({"model": arrays}, protocol=protocol))
        return folder / name

    return write


def as_safetensors(folder: Path) -> Path:
    save_file({name: value.contiguous() for name, value in STATE.items()}, folder / "model.safetensors")
    return folder / "model.safetensors"


def sharded(kind: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        names = sorted(STATE)
        parts = {f"m-{number}-of-2.{kind}": names[number::2] for number in (0, 1)}
        for shard, own in parts.items():
            part = {name: STATE[name].contiguous() for name in own}
            save_file(part, folder / shard) if kind == "safetensors" else torch.save(part, folder / shard)
        weight_map = {name: shard for shard, own in parts.items() for name in own}
        (folder / f"model.{kind}.index.json").write_text(str({"weight_map": weight_map}).replace("'", '"'))
        return folder

    return write


OLD = {"_use_new_zipfile_serialization": False}
TAKEN: dict[str, Any] = {
    "state dict": on_disk(STATE),
    "ordered dict": on_disk(OrderedDict(STATE)),
    "torch before 1.6": on_disk(STATE, **OLD),
    "protocol 5": on_disk(STATE, pickle_protocol=5),
    "names before 0.13": on_disk(torchvision_layout.retinanet(1, classes=3, width=8, pyramid=64, old_names=True)),
    "fp16": on_disk(cast(torch.float16)),
    "bf16": on_disk(cast(torch.bfloat16)),
    "fp64": on_disk(cast(torch.float64)),
    "DataParallel": on_disk(prefixed("module.")),
    "compiled": on_disk(prefixed("_orig_mod.")),
    "compiled in parallel": on_disk(prefixed("module._orig_mod.")),
    "Lightning's prefix": on_disk({"state_dict": prefixed("model."), "hyper_parameters": Lightning(lr=0.1)}),
    "detector.": on_disk(prefixed("detector.")),
    "a stack of prefixes": on_disk(prefixed("net.model.detector.module.")),
    "torchvision's train.py": on_disk({"model": STATE, "optimizer": {"state": {}}, "args": Namespace(lr=0.1)}),
    "model_state_dict": on_disk({"model_state_dict": STATE, "epoch": 3}),
    "net": on_disk({"net": STATE}),
    "weights": on_disk({"weights": STATE}),
    "in three dicts": on_disk({"checkpoint": {"detector": {"state": STATE}}}),
    "numpy scalar": on_disk({"model": STATE, "best": np.float64(0.4)}),
    "numpy history": on_disk({"model": STATE, "loss": np.arange(4.0)}),
    "path and config": on_disk({"model": STATE, "dir": PurePosixPath("/x"), "config": Lightning(a=1)}),
    "object array": on_disk({"model": STATE, "history": np.array([{"a": 1}, None], dtype=object)}),
    "states of generators": on_disk(
        {"model": STATE, "rng": (torch.get_rng_state(), np.random.RandomState(1).get_state())}
    ),
    "types": on_disk(
        {"model": STATE, "type": torch.float16, "size": torch.Size([1]), "device": torch.device("cpu")}
    ),
    "sets and bytes": on_disk(
        {"model": STATE, "seen": {1, 2}, "frozen": frozenset("ab"), "raw": b"\xff", "big": 1 << 80}
    ),
    "an optimizer's defaultdict": on_disk(
        {"model": STATE, "optimizer": defaultdict(dict, {0: {"step": torch.ones(1)}})}
    ),
    "views": on_disk(
        {name: value.mT.contiguous().mT if value.ndim > 1 else value for name, value in STATE.items()}
    ),
    "parameters": on_disk({name: nn.Parameter(value, value.is_floating_point()) for name, value in STATE.items()}),
    "whole model": on_disk(Layer(STATE)),
    "whole model, before 1.6": on_disk({"model": Layer(STATE)}, **OLD),
    "whole parallel model": on_disk(nn.DataParallel(Layer(STATE))),
    "averaged model": on_disk(AveragedModel(Layer(STATE)).state_dict()),
    "EMA beside": on_disk({"model": STATE, "model_ema": EMA}),
    "EMA before": on_disk({"ema_state_dict": EMA, "state_dict": STATE}),
    "EMA in one dict": on_disk({**prefixed("ema.", EMA), **prefixed("model.")}),
    "numpy pickle": as_pickle(4),
    "numpy pickle of Python 2's protocol": as_pickle(2),
    "numpy pickle in text": as_pickle(0),
    "pickle by another name": as_pickle(4, "model.pth"),
    "safetensors": as_safetensors,
    "folder": lambda folder: as_safetensors(folder).parent,
    "shards": sharded("safetensors"),
    "shards of torch": sharded("bin"),
}


def imported(weights: Path, folder: Path, *flags: str) -> tuple[dict[str, torch.Tensor], str]:
    result = invoke("import", weights, folder / "out.pth", *flags)
    assert result.exit_code == 0, result.output
    return load(folder / "out.pth").weights, result.output


@cache
def expected() -> dict[str, torch.Tensor]:
    """What the plain state dict gives; what its author's code answers with it, test_authors.py holds."""
    return import_content(STATE, Choices()).weights  # type: ignore[union-attr]


def assert_state(weights: dict[str, torch.Tensor], *, ema: bool = False, rough: bool = False) -> None:
    assert weights.keys() == expected().keys()
    for name, value in expected().items():
        wanted = value + 1 if ema and name == "cls_head.output.bias" else value
        torch.testing.assert_close(weights[name], wanted, rtol=1e-2 if rough else 0, atol=1e-3)


@pytest.mark.parametrize("name", TAKEN)
@pytest.mark.filterwarnings("ignore")
def test_it_is_taken_rightly(name: str, tmp_path: Path) -> None:
    weights, output = imported(TAKEN[name](tmp_path), tmp_path)
    assert_state(weights, rough=name in ("fp16", "bf16"))
    assert "output 0 is dropped" in output
    assert ("kept as float32" in output) == (name in ("fp16", "bf16"))
    if "EMA" in name:
        key = {"EMA beside": "model_ema", "EMA before": "ema_state_dict", "EMA in one dict": "ema"}[name]
        assert f"--key {key}" in output
        assert_state(imported(TAKEN[name](tmp_path), tmp_path, "--key", key)[0], ema=True)


def refused(weights: Path, folder: Path, *flags: str) -> UserError:
    error = CliRunner().invoke(import_weights, [str(weights), str(folder / "out.pth"), *flags]).exception
    assert isinstance(error, UserError) and not (folder / "out.pth").exists()
    return error


@pytest.mark.filterwarnings("ignore")
def test_a_distributed_checkpoint_becomes_one_file_by_the_remedy(tmp_path: Path) -> None:
    dcp.save({"model": STATE}, checkpoint_id=tmp_path / "dcp", no_dist=True)
    error = refused(tmp_path / "dcp", tmp_path)
    assert "dcp_to_torch" in error.hint
    dcp_to_torch_save(tmp_path / "dcp", tmp_path / "model.pth")
    assert_state(imported(tmp_path / "model.pth", tmp_path)[0])


REFUSED: dict[str, tuple[Any, str, str]] = {
    "a classifier's head": (
        {**STATE, "head.extra.weight": torch.zeros(1)},
        "an unexpected 'head.extra.weight'",
        "plain",
    ),
    "a layer less": ({name: STATE[name] for name in STATE if "layer3.2.conv1" not in name}, "lack", "plain"),
    "NaN": (
        {**STATE, "backbone.fpn.extra_blocks.p7.bias": torch.full((64,), torch.nan)},
        "no numbers",
        "diverged",
    ),
    "a whole model of another kind": ({"epoch": 3, "model": nn.Linear(2, 2)}, "model (class torch.nn.", "--help"),
    "an optimizer alone": (
        {"optimizer": {"state": {0: torch.zeros(1)}}},
        "not a RetinaNet that is known",
        "--help",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_with_a_remedy(name: str, tmp_path: Path) -> None:
    content, message, hint = REFUSED[name]
    torch.save(content, tmp_path / "weights.pth")
    error = refused(tmp_path / "weights.pth", tmp_path)
    assert message in error.message and hint in error.hint, (error.message, error.hint)


def test_other_anchors_come_in_by_the_remedy(tmp_path: Path) -> None:
    heads = {MARK: 9, "head.regression_head.bbox_reg.bias": 12}
    few = {name: STATE[name][:count] for name, count in heads.items()}
    few |= {name.replace("bias", "weight"): STATE[name.replace("bias", "weight")][:n] for name, n in heads.items()}
    torch.save({**STATE, **few}, tmp_path / "weights.pth")
    error = refused(tmp_path / "weights.pth", tmp_path)
    assert "other anchors than torchvision's own: 3 a cell, not 9" in error.message
    flags = error.hint.split(": ")[1].split(" (")[0].split()
    _, output = imported(tmp_path / "weights.pth", tmp_path, *flags)
    assert "anchors: sizes 32 64 128 256 512, ratios 0.5,1,2 (as you said)" in output


def test_a_checkpoint_of_this_project_needs_no_import(tmp_path: Path) -> None:
    imported(on_disk(STATE)(tmp_path), tmp_path)
    (tmp_path / "out.pth").rename(tmp_path / "own.pth")
    assert "a checkpoint of retinaserve already" in refused(tmp_path / "own.pth", tmp_path).message


def test_no_backbone_is_taken_for_one(tmp_path: Path) -> None:
    layout = torchvision_layout.Layout()
    torchvision_layout.resnet(layout, "", "resnet50", width=16, classifier=True)
    whole = layout.state
    for name, state in {
        "more": {**whole, "layer1.0.se.fc1.weight": torch.zeros(1)},
        "less": {key: value for key, value in whole.items() if "layer4.2.bn3" not in key},
    }.items():
        torch.save(state, tmp_path / "weights.pth")
        error = refused(tmp_path / "weights.pth", tmp_path, "--from", "torchvision-backbone")
        assert ("unexpected" if name == "more" else "lack") in error.message
    torch.save(STATE, tmp_path / "weights.pth")
    error = refused(tmp_path / "weights.pth", tmp_path, "--from", "yhenon")
    assert "looks like a RetinaNet of torchvision" in error.message and "leave out --from" in error.hint
