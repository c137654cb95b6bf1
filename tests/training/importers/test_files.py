"""Files as people save them: taken rightly, or refused with a remedy that works. Each remedy is tried."""

import pickle
import warnings
import zipfile
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


def as_npz(folder: Path) -> Path:
    np.savez(folder / "model.npz", **{name: value.numpy() for name, value in STATE.items()})
    return folder / "model.npz"


def unpacked(folder: Path) -> Path:
    zipfile.ZipFile(on_disk(STATE)(folder)).extractall(folder)
    return folder / "weights"


with warnings.catch_warnings(action="ignore"):  # torch is about to give them up
    QUANTISED = torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)
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
    "whole compiled model": lambda folder: on_disk(torch.compile(Layer(STATE), backend="eager"))(folder),
    "first of a tuple": on_disk((STATE, {"lr": 0.1})),
    "list in a dict": on_disk({"models": [STATE], "epoch": 1}),
    "quantised and complex tensors beside": on_disk(
        {"model": STATE, "fc": QUANTISED, "fft": torch.zeros(2, dtype=torch.complex64)}
    ),
    "the same, before 1.6": on_disk({"model": STATE, "fc": QUANTISED}, **OLD),
    "averaged model": on_disk(AveragedModel(Layer(STATE)).state_dict()),
    "EMA beside": on_disk({"model": STATE, "model_ema": EMA}),
    "EMA before": on_disk({"ema_state_dict": EMA, "state_dict": STATE}),
    "EMA by Lightning": on_disk(
        {"state_dict": prefixed("model."), "averaging_state": {}, "current_model_state": prefixed("model.", EMA)}
    ),
    "EMA in one dict": on_disk({**prefixed("ema.", EMA), **prefixed("model.")}),
    "numpy pickle": as_pickle(4),
    "numpy pickle of Python 2's protocol": as_pickle(2),
    "numpy pickle in text": as_pickle(0),
    "pickle by another name": as_pickle(4, "model.pth"),
    "safetensors": as_safetensors,
    "folder": lambda folder: as_safetensors(folder).parent,
    "shards": sharded("safetensors"),
    "index of shards": lambda folder: sharded("safetensors")(folder) / "model.safetensors.index.json",
    "npz": as_npz,
    "unpacked by a browser": unpacked,
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
        key = {
            "EMA beside": "model_ema",
            "EMA before": "ema_state_dict",
            "EMA by Lightning": "current_model_state.model",  # where state_dict is the average
            "EMA in one dict": "ema",
        }[name]
        assert ("before averaging" in output) == ("Lightning" in name)
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


HEAD, BOXES = "head.classification_head.cls_logits.weight", "head.regression_head.bbox_reg.weight"
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
    "quantised": ({**STATE, HEAD: QUANTISED, BOXES: QUANTISED}, "it holds", "the float weights"),
    "on the device meta": ({name: value.to("meta") for name, value in STATE.items()}, "it holds", "its weights"),
    "pruned": ({**STATE, f"{BOXES}_orig": STATE[BOXES], BOXES: None}, f"it lacks {BOXES}", "prune.remove"),
    "FCOS": ({**STATE, "head.regression_head.bbox_ctrness.weight": torch.zeros(1)}, "bbox_ctrness", "plain"),
    "another detector": (
        {**{name: STATE[name] for name in STATE if "backbone." in name}, "rpn.head.conv.weight": torch.zeros(1)},
        "not a RetinaNet that is known",
        "--from torchvision-backbone",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_with_a_remedy(name: str, tmp_path: Path) -> None:
    content, message, hint = REFUSED[name]
    torch.save(content, tmp_path / "weights.pth")
    error = refused(tmp_path / "weights.pth", tmp_path)
    assert message in error.message and hint in error.hint, (error.message, error.hint)


class Part(nn.Module):
    """A part of a whole model that holds settings."""

    def __init__(self, **held: Any) -> None:
        super().__init__()
        self.__dict__.update(held)


def transform(**changes: Any) -> Part:
    """What GeneralizedRCNNTransform holds."""
    held = {"min_size": (256,), "max_size": 480, "fixed_size": None, "size_divisible": 32}
    return Part(image_mean=[0.5] * 3, image_std=[0.25] * 3, **{**held, **changes})


def whole(folder: Path, **parts: Any) -> Path:
    model = Layer(STATE)
    model.__dict__["box_coder"] = parts.pop("box_coder", Namespace(weights=(1.0,) * 4, bbox_xform_clip=4.0))
    for name, part in parts.items():
        model.add_module(name, part)
    return on_disk(model)(folder)


@pytest.mark.parametrize(
    ("changes", "size", "rule"),
    [({}, (256, 480), "torchvision"), ({"fixed_size": (320, 256)}, (256, 320), "mlperf")],
    ids=["short side", "fixed, as (w, h)"],
)
def test_a_whole_model_says_its_size(changes: Any, size: tuple[int, int], rule: str, tmp_path: Path) -> None:
    path = whole(tmp_path, transform=transform(**changes))
    output = imported(path, tmp_path)[1]
    spec = load(tmp_path / "out.pth").spec
    assert (spec.size, spec.resize, spec.mean) == (size, rule, (0.5, 0.5, 0.5))
    assert f"({rule}) (from the file" in output
    imported(path, tmp_path, "--size", "320", "640")
    assert load(tmp_path / "out.pth").spec.size == (320, 640)


def test_a_whole_model_says_what_its_deltas_are_divided_by(tmp_path: Path) -> None:
    coder = Namespace(weights=(10.0, 10.0, 5.0, 5.0), bbox_xform_clip=3.0)
    weights, output = imported(whole(tmp_path, box_coder=coder), tmp_path)
    parts = (each["box_head.output.bias"].view(-1, 4) for each in (weights, expected()))
    torch.testing.assert_close(next(parts), next(parts) / torch.tensor([10.0, 10.0, 5.0, 5.0]))
    assert "deltas divided by 10,10,5,5" in output and load(tmp_path / "out.pth").spec.delta_clamp == 3


ALIKE = {  # what has the same parameters, or none, and computes something else
    "LeakyReLU": {"act": nn.LeakyReLU()},
    "InstanceNorm2d": {"norm": nn.InstanceNorm2d(64)},
    "GroupNorm of 16 groups": {"norm": nn.GroupNorm(16, 64)},
    "multiples of 64": {"transform": transform(size_divisible=64)},
}


@pytest.mark.parametrize("name", ALIKE)
def test_a_whole_model_of_other_layers_is_refused(name: str, tmp_path: Path) -> None:
    error = refused(whole(tmp_path, **ALIKE[name]), tmp_path)
    assert name in error.message and "expected" in error.hint


FOLDERS: dict[str, tuple[Any, str]] = {
    "two, and the last is named": (("a.pth", "b.pth", "c.pth"), "b.pth"),
    "folders of a trainer": (("checkpoint-1/model.safetensors", "checkpoint-2/model.safetensors"), "checkpoint-1"),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_with_several_names_one_that_works(name: str, tmp_path: Path) -> None:
    files, chosen = FOLDERS[name]
    folder = tmp_path / "run"
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        as_safetensors(tmp_path).rename(folder / file)
    (folder / "last_checkpoint").write_text("/somewhere/else/b.pth")
    assert "text, not weights" in refused(folder / "last_checkpoint", tmp_path).message
    (folder / "last_checkpoint").write_text("b.pth")
    if chosen == "b.pth":
        assert f"name that file: {folder / chosen}" in refused(folder / "last_checkpoint", tmp_path).hint
    error = refused(folder, tmp_path)
    assert f"retinaserve import {folder / chosen} OUT.pth" in error.hint
    assert_state(imported(folder / chosen, tmp_path)[0])


LACKING = {
    "a tensor of": {MARK: None},
    "the values of": {HEAD: torch.zeros(0)},
    "the shape of": {BOXES: torch.zeros(3, 1, 1, 1)},
    "numbers in": {BOXES: STATE[BOXES].bool()},
}


@pytest.mark.parametrize("name", LACKING)
def test_a_state_that_lacks_something_is_refused(name: str, tmp_path: Path) -> None:
    """As a ZeRO or FSDP shard does, and a model that was edited."""
    state = {key: value for key, value in {**STATE, **LACKING[name]}.items() if value is not None}
    error = refused(on_disk(state)(tmp_path), tmp_path)
    assert "weights" in error.message and len(error.message) < 400, error.message


def test_one_shard_is_told_to_be_one(tmp_path: Path) -> None:
    folder = sharded("safetensors")(tmp_path)
    assert "name their folder" in refused(folder / "m-0-of-2.safetensors", tmp_path).hint


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


FLAGS = {  # what does not go with torchvision's weights, or with any
    "--anchors legacy": ("--anchors is nothing for a RetinaNet of torchvision", "it is for odtk"),
    "--style caffe": ("--style is nothing for", "detectron2, mmdetection"),
    "--anchor-ratios 0,1,2": ("an anchor of 0", "positive"),
    "--anchor-sizes 9,8,7/6,5/4,3,2/9,8,7/9,8,7": ("more on some levels", "as many"),
    "--anchor-sizes 9,8,7/6,5,4": ("2 levels, the weights have 5", ""),
}


@pytest.mark.parametrize("flags", FLAGS)
def test_no_flag_is_ignored(flags: str, tmp_path: Path) -> None:
    error = refused(on_disk(STATE)(tmp_path), tmp_path, *flags.split())
    message, hint = FLAGS[flags]
    assert message in error.message and hint in error.hint, (error.message, error.hint)


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
