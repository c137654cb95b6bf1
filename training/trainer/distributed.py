"""The processes that train together: started by torchrun, joined by its environment, and nothing else.

    with team(device) as us:              # one process: Team(0, 1, 0)
        total = us.sum(count)

    torchrun --nproc-per-node 2 -m retinaserve.scripts.cli.main train model.pth ...

Every process has its part of each batch and the same weights; rank 0 alone writes and talks. NCCL between GPUs,
gloo between CPUs. It starts no processes and finds no hosts.
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
class Team:
    """Which of how many processes this one is."""

    rank: int = 0
    world: int = 1
    local: int = 0  # rank on this machine: the number of its GPU

    @property
    def leads(self) -> bool:
        """Whether this process writes and talks."""
        return self.rank == 0

    def sum(self, value: Tensor) -> Tensor:
        """Return the sum of all processes' values, the same in each. Carries no gradient."""
        if self.world == 1:
            return value
        total = value.detach().clone()
        dist.all_reduce(total)
        return total

    def share(self, value: T | None) -> T | None:
        """Return the first process's value, of any kind that can be pickled, in each."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """Return all processes' values, of any kind that can be pickled, in the order of ranks."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values


def found_team() -> Team:
    """Return what torchrun said in the environment; one process without it. Raises UserError for nonsense."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    if not {"RANK", "WORLD_SIZE"} <= os.environ.keys():
        return Team()
    try:
        rank, world, local = (int(os.environ.get(name, "0")) for name in names)
    except ValueError:
        raise UserError(f"{', '.join(names)} are no numbers", "start with torchrun", code=Exit.USAGE) from None
    return Team(rank, world, local)


@contextmanager
def team() -> Iterator[Team]:
    """Join the processes that torchrun started, for the time within.

    Whatever holds the group has to be gone by then, a DistributedDataParallel first of all: gloo's threads end
    with the group, and one that still lets go of a tensor while Python shuts down kills the process (SIGABRT).
    """
    us = found_team()
    if us.world == 1 or dist.is_initialized():
        yield us
        return
    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.set_device(us.local)
    dist.init_process_group("nccl" if gpu else "gloo")
    try:
        yield us
    except BaseException as failure:
        traceback.clear_frames(failure.__traceback__)  # their variables hold the group
        raise
    finally:
        gc.collect()  # DistributedDataParallel is part of a cycle
        dist.destroy_process_group()
