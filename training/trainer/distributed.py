"""The processes that train together: started by torchrun, joined by its environment.

    with process_group() as group:              # one process: ProcessGroup(0, 1, 0)
        total = group.sum(count)

    torchrun --nproc-per-node 2 -m retinaserve train model.pth ...

Every process has its part of each batch and the same weights; the main process alone writes and prints. NCCL
between GPUs, gloo between CPUs.
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

# Before there is a group: some of its functions have the group of their import as a default, and would keep it for
# good (DistributedDataParallel imports it when it is built).
import torch.distributed.nn
from torch import Tensor

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
