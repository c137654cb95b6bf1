"""The processes that train together: started by torchrun, joined by its environment.

    with process_group() as group:              # one process: ProcessGroup(0, 1, 0)
        total = group.sum(count)

    torchrun --nproc-per-node 2 -m retinaserve train model.pth ...

Every process has its part of each batch and the same weights; the main process alone writes and prints. NCCL
between GPUs, gloo between CPUs. Batch norms take their statistics from one process, from all, or from none:

    replace_batch_norms(model, "sync", processes=2)       # the weights keep their names
"""

import gc
import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.distributed.nn
from torch import Tensor, nn

from retinaserve.training.errors import Exit, UserError

T = TypeVar("T")


@dataclass(frozen=True)
class ProcessGroup:
    """Which of how many processes this one is."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0  # rank on this machine: the number of its GPU

    @property
    def is_main_process(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0

    def sum(self, value: Tensor) -> Tensor:
        """Return the sum of all processes' values, the same in each. Carries no gradient."""
        if self.world_size == 1:
            return value
        total = value.detach().clone()
        dist.all_reduce(total)
        return total

    def broadcast(self, value: T | None) -> T | None:
        """Return the main process's value, of any kind that can be pickled, in each."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """Return all processes' values, of any kind that can be pickled, in the order of ranks."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values


ALONE = ProcessGroup()


def read_environment() -> ProcessGroup:
    """Return what torchrun set in the environment; one process without it. Raises UserError for nonsense."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    if not {"RANK", "WORLD_SIZE"} <= os.environ.keys():
        return ALONE
    try:
        rank, world_size, local_rank = (int(os.environ.get(name, "0")) for name in names)
    except ValueError:
        raise UserError(f"{', '.join(names)} are no numbers", "start with torchrun", code=Exit.USAGE) from None
    return ProcessGroup(rank, world_size, local_rank)


@contextmanager
def process_group() -> Iterator[ProcessGroup]:
    """Join the processes that torchrun started, for the time within.

    Whatever holds the group has to be gone by the end, a DistributedDataParallel first of all: gloo's threads end
    with the group, and one that still lets go of a tensor while Python shuts down kills the process (SIGABRT).
    """
    group = read_environment()
    if group.world_size == 1 or dist.is_initialized():
        yield group
        return
    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.set_device(group.local_rank)
    dist.init_process_group("nccl" if gpu else "gloo")
    try:
        yield group
    except BaseException as failure:
        traceback.clear_frames(failure.__traceback__)  # their variables hold the group
        raise
    finally:
        gc.collect()  # DistributedDataParallel is part of a cycle
        dist.destroy_process_group()


def replace_batch_norms(model: nn.Module, kind: str, *, processes: int) -> None:
    """Replace a model's batch norms; with "frozen", those of `model.backbone` only.

    Frozen norms neither learn nor move their statistics: for a backbone that was trained on large batches and now
    sees small ones.
    """
    if kind == "frozen":
        backbone: Any = model.backbone
        _replace(backbone, FrozenBatchNorm)
    elif kind == "sync" and processes > 1:
        _replace(model, nn.SyncBatchNorm if torch.cuda.is_available() else CpuSyncBatchNorm)


def _replace(module: nn.Module, kind: Any) -> None:
    for name, child in module.named_children():
        if type(child) is nn.BatchNorm2d:
            norm = kind(child.num_features, child.eps, child.momentum)
            norm.load_state_dict(child.state_dict())
            norm.train(child.training).to(child.weight.device)
            setattr(module, name, norm)
        else:
            _replace(child, kind)


def lone_side(model: nn.Module, coarsest: int) -> int:
    """Return the side of images up to which one alone leaves a norm that learns a single value; 0: none does.

    coarsest: the stride of the last level.
    """
    learning = {
        name
        for name, part in model.named_children()
        if any(type(each) is nn.BatchNorm2d and each.training for each in part.modules())
    }
    return coarsest if learning - {"backbone"} else 32 if learning else 0


class FrozenBatchNorm(nn.BatchNorm2d):
    """A batch norm that always infers and never learns."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.weight.requires_grad_(False)
        self.bias.requires_grad_(False)

    def train(self, mode: bool = True) -> "FrozenBatchNorm":
        """Stay in evaluation mode, which `model.train()` would end."""
        super().train(False)
        return self


class CpuSyncBatchNorm(nn.BatchNorm2d):
    """A batch norm over the images of all processes, on CPUs.

    torch's SyncBatchNorm raises ValueError for tensors on a CPU, and with plain ones two processes don't learn
    what one does with the whole batch: after a few steps weights differ by a third of what was learnt.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, C, H, W)."""
        if not self.training:
            return super().forward(x)
        wide = x.float()
        count = _sum(wide.new_tensor(wide.numel() / wide.shape[1]))
        mean = _sum(wide.sum((0, 2, 3))) / count
        centred = wide - mean[:, None, None]
        variance = _sum(centred.square().sum((0, 2, 3))) / count
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        assert self.num_batches_tracked is not None
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            # Unbiased, as torch keeps it.
            self.running_var.lerp_(variance * count / (count - 1).clamp(min=1), self.momentum)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        normed: Tensor = centred * scale[:, None, None] + self.bias[:, None, None]
        return normed.to(x.dtype)


def _sum(value: Tensor) -> Tensor:
    total: Tensor = _Sum.apply(value)  # type: ignore[no-untyped-call]
    return total


class _Sum(torch.autograd.Function):
    """The sum over processes; the gradient of a sum of losses reaches every term from every process.

    torch.distributed.nn.functional.all_reduce does this, too, and is deprecated in torch 2.13.
    """

    @staticmethod
    def forward(context: Any, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total
