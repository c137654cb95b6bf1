"""What batch norms do while training: each process's own statistics, those of all processes, or none at all.

    replace_batch_norms(model, "sync", processes=2)

The weights keep their names, so a checkpoint is the same whichever was chosen. Group norms, which need none of
this, are a matter of the network's design (`Network.norm`).
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


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
