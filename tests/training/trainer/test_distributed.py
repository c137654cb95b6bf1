"""Processes that torchrun starts are one run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from click.testing import CliRunner
from torch import nn

from retinaserve.scripts.cli.learn.train import train
from retinaserve.training.checkpoint import load
from retinaserve.training.errors import UserError
from retinaserve.training.model import build_model
from retinaserve.training.trainer.distributed import (
    CpuSyncBatchNorm,
    FrozenBatchNorm,
    ProcessGroup,
    read_environment,
    replace_batch_norms,
)
from retinaserve.training.trainer.progress import metrics_path
from tests.training.squares import draw

ROOT = Path(__file__).parents[3]
# SGD: the sign-like first steps of AdamW would make much of a rounding.
FLAGS = "--backbone resnet18 --width 8 --fpn-channels 8 --head-depth 1 --size 64 64 --batch 4 --optimizer sgd"
FLAGS += " --lr 0.02 --warmup 2 --iters 5 --val-iters 3 --ema 0.5"


def test_two_processes_learn_what_one_does(tmp_path: Path) -> None:
    draw(tmp_path / "set", 7)
    data = ["--images", str(tmp_path / "set"), "--annotations", str(tmp_path / "set" / "annotations.json")]
    data += ["--val-annotations", str(tmp_path / "set" / "annotations.json"), *FLAGS.split()]
    alone, together = tmp_path / "alone.pth", tmp_path / "together.pth"
    result = CliRunner().invoke(train, [str(alone), *data])
    assert result.exit_code == 0, result.output
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    torchrun += ["--log-dir", str(tmp_path / "logs")]  # it makes a folder among the temporary ones, and leaves it
    process = subprocess.run(
        [*torchrun, "-m", "tests.training.trainer.group_member", "train", str(together), *data],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert process.returncode == 0, process.stderr
    assert "2 processes with 2 images each" in process.stderr
    assert process.stderr.count("validation at 5") == 1, "the main process alone prints"
    # One that outlives the group may kill its process while Python shuts down; on a busy machine it did.
    assert process.stdout.count("threads: ") == 2 and "gloo" not in process.stdout, process.stdout
    lines = [
        [json.loads(line) for line in metrics_path(path).read_text().splitlines()] for path in (alone, together)
    ]
    for expected, found in zip(*lines, strict=True):
        for key in {"cls_loss", "box_loss", "ap"} & expected.keys():
            assert found[key] == pytest.approx(expected[key], rel=1e-4), key
    one, two = load(alone), load(together)
    torch.manual_seed(0)
    start = build_model(one.spec).state_dict()
    for first, second in ((one.weights, two.weights), (one.training["model"], two.training["model"])):
        # Sums are taken in another order, and what that rounds differently grows with every step: what is learnt
        # may differ by a hundredth of itself. Batch norms or losses of a half batch each differ by a third.
        learnt = sum(float((first[key] - start[key]).square().sum()) for key in start if "num_batches" not in key)
        apart = sum(float((first[key] - second[key]).square().sum()) for key in start if "num_batches" not in key)
        assert (apart / learnt) ** 0.5 < 0.01


@pytest.mark.parametrize(
    ("environment", "group"),
    [
        ({}, ProcessGroup(0, 1, 0)),
        ({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}, ProcessGroup(3, 4, 1)),
        ({"RANK": "3"}, ProcessGroup(0, 1, 0)),
    ],
    ids=["alone", "torchrun", "something else"],
)
def test_the_environment_has_the_ranks(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], group: ProcessGroup
) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert read_environment() == group


def test_nonsense_in_the_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "first")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="RANK"):
        read_environment()


def test_synchronised_norms_are_batch_norms(tmp_path: Path) -> None:
    """In a group of one they are torch's; that several are one is what the test above holds."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        torch.manual_seed(0)
        plain, synced = nn.BatchNorm2d(3), CpuSyncBatchNorm(3)
        for _ in range(3):
            x = torch.randn(2, 3, 4, 5) * 3 + 1
            a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
            first, second = plain(a), synced(b)
            assert torch.allclose(first, second, atol=1e-5)
            (first**3).sum().backward()
            (second**3).sum().backward()
            assert a.grad is not None and b.grad is not None and torch.allclose(a.grad, b.grad, atol=1e-4)
        for name, value in plain.state_dict().items():
            assert torch.allclose(value, synced.state_dict()[name], atol=1e-5), name
        assert torch.allclose(plain.eval()(x), synced.eval()(x), atol=1e-5)
    finally:
        dist.destroy_process_group()


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        self.head = nn.BatchNorm2d(4)


def test_frozen_norms_keep_still_in_the_backbone_only() -> None:
    model = Toy()
    replace_batch_norms(model, "frozen", processes=1)
    model.train()
    norm = model.backbone[1]
    assert isinstance(norm, FrozenBatchNorm) and not norm.training and not norm.weight.requires_grad
    assert type(model.head) is nn.BatchNorm2d and model.head.training
    before = norm.running_mean.clone()
    model.backbone(torch.randn(2, 3, 4, 4) + 5)
    assert torch.equal(norm.running_mean, before)
    assert model.state_dict().keys() == Toy().state_dict().keys()


@pytest.mark.parametrize(("processes", "kind"), [(1, nn.BatchNorm2d), (2, CpuSyncBatchNorm)])
def test_norms_are_synchronised_among_several(processes: int, kind: type) -> None:
    model = Toy()
    replace_batch_norms(model, "sync", processes=processes)
    assert type(model.head) is kind and type(model.backbone[1]) is kind
