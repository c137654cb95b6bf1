"""The state of a run and one step of it: network, average, optimizer and scaler, in one process of many.

    run = Run(spec, config, device, team)
    losses = run.step(batch, iteration)
    save(path, run.checkpoint(iteration + 1))

It knows neither files nor loaders nor when to stop (training/trainer/loop.py).
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from retinaserve.training.anchors import grid_anchors
from retinaserve.training.checkpoint import Checkpoint
from retinaserve.training.data.stream import Batch
from retinaserve.training.errors import Exit, UserError
from retinaserve.training.model import build_model
from retinaserve.training.model.losses import Losses, Target, detection_loss
from retinaserve.training.model.norms import with_batch_norms
from retinaserve.training.model.retinanet import RetinaNet
from retinaserve.training.spec import DetectorSpec
from retinaserve.training.trainer.distributed import Team
from retinaserve.training.trainer.ema import Ema
from retinaserve.training.trainer.settings import Precision, TrainConfig

# The gradients of the first steps, which learn that nearly everything is background, are many times larger than
# those that tell classes apart later. AdamW's usual 0.999 would remember them for a thousand iterations.
BETAS = (0.9, 0.97)
MOMENTUM = 0.9


class Run:
    """All that one step needs, and all that a checkpoint keeps."""

    def __init__(
        self,
        spec: DetectorSpec,
        config: TrainConfig,
        device: torch.device,
        us: Team,
        *,
        prepare: Callable[[RetinaNet], object] | None = None,
    ) -> None:
        """`prepare` may put other weights into the fresh network."""
        if config.batch % us.world:
            raise UserError(
                f"a batch of {config.batch} can't be shared by {us.world} processes",
                "--batch counts the images of all processes: a multiple of their number is expected",
                code=Exit.USAGE,
            )
        self.spec, self.config, self.device, self.us = spec, config, device, us
        self.precision = precision_of(config.precision, device)
        torch.manual_seed(config.seed)
        network = build_model(spec)
        if prepare is not None:
            prepare(network)
        if config.freeze:
            network.freeze(config.freeze)
        with_batch_norms(network, config.batch_norms, us)
        # On CPUs oneDNN picks its own layouts, and torch 2.13's strided 1x1 convolutions of fewer than 16 channels
        # write out of bounds on channels-last input.
        self.layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
        # torch's own signature of Module.to leaves this argument out
        self.network: RetinaNet = network.to(device).to(memory_format=self.layout).train()  # type: ignore[call-overload]
        self.ema = Ema(self.network, config.ema) if config.ema else None
        self.optimizer = _optimizer(self.network, config)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.precision is torch.float16)
        self.model: Any = self.network
        if us.world > 1:
            self.model = nn.parallel.DistributedDataParallel(self.network)
        if config.compile:
            self.model = torch.compile(self.model)
        self.best = -1.0  # the highest AP of a validation
        self.anchors: dict[tuple[int, int], Tensor] = {}
        self.mean = 255 * torch.tensor(spec.mean, device=device).view(1, 3, 1, 1)
        self.std = 255 * torch.tensor(spec.std, device=device).view(1, 3, 1, 1)

    def step(self, batch: Batch, iteration: int) -> Losses:
        """Learn from this process's part of a batch; return the losses of all of it.

        Raises UserError if they are no numbers.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr_at(iteration)
        targets = [
            Target(*(part.to(self.device, non_blocking=True) for part in target)) for target in batch.targets
        ]
        images = (batch.images.to(self.device, non_blocking=True).float() - self.mean) / self.std
        images = images.contiguous(memory_format=self.layout)
        with torch.autocast(self.device.type, self.precision, enabled=self.precision is not torch.float32):
            heads = self.model(images)
        anchors = self._anchors((images.shape[2], images.shape[3]))
        losses = detection_loss(heads, targets, anchors, giou=self.config.giou, divisor=self._divisor)
        total = losses.cls + self.config.box_weight * losses.box
        cls, box = self.us.sum(torch.stack((losses.cls, losses.box)).detach()) / self.us.world
        if not bool(torch.isfinite(cls + box)):
            raise self._diverged(f"the loss is {float(cls + self.config.box_weight * box)}", batch, iteration)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(total).backward()  # type: ignore[no-untyped-call]
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.config.clip)
        # The scaler leaves a step out whose gradient overflowed, and scales the next ones less.
        if not self.scaler.is_enabled() and not bool(torch.isfinite(norm)):
            raise self._diverged(f"the gradient's norm is {float(norm)}", batch, iteration)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.ema is not None:
            self.ema.update(self.network)
        return Losses(cls, box)

    def weights(self) -> Mapping[str, Tensor]:
        """Return what is validated and served: the average, where one is kept."""
        return self.ema.state if self.ema is not None else self.network.state_dict()

    def checkpoint(self, iteration: int) -> Checkpoint:
        """Return the state after `iteration` iterations."""
        training: dict[str, Any] = {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "config": json.dumps(asdict(self.config)),
            "random": torch.get_rng_state(),
            "best": self.best,
        }
        if self.device.type == "cuda":
            training["random_cuda"] = torch.cuda.get_rng_state(self.device)
        if self.ema is not None:
            training["model"] = self.network.state_dict()
            training["ema_updates"] = self.ema.updates
        return Checkpoint(self.spec, self.weights(), iteration, training)

    def restore(self, checkpoint: Checkpoint) -> int:
        """Take over a checkpoint's state; return its iteration. Raises UserError for another detector's."""
        if checkpoint.spec != self.spec:
            raise UserError(
                "the checkpoint is of another detector: " + _difference(checkpoint.spec, self.spec),
                "name another file, or start afresh with --override",
            )
        state = checkpoint.training
        self.network.load_state_dict(state.get("model", checkpoint.weights))
        if self.ema is not None:
            self.ema.restore(checkpoint.weights, state.get("ema_updates", 0))
        if state:
            self._restore_optimizer(state)
            self.scaler.load_state_dict(dict(state["scaler"]))
        if "random" in state:
            torch.set_rng_state(state["random"])
        if "random_cuda" in state and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["random_cuda"], self.device)
        self.best = state.get("best", self.best)
        return checkpoint.iteration

    def _restore_optimizer(self, state: Mapping[str, Any]) -> None:
        before = json.loads(state["config"]).get("optimizer", "adamw")
        if before != self.config.optimizer:
            raise UserError(
                f"the checkpoint was trained with --optimizer {before}",
                "name another file, or start afresh with --override",
            )
        try:
            self.optimizer.load_state_dict(dict(state["optimizer"]))
        except ValueError:
            raise UserError(
                "the checkpoint's optimizer has other weights to learn",
                "--freeze and --batch-norm have to stay as they were",
            ) from None

    def _anchors(self, size: tuple[int, int]) -> Tensor:
        if size not in self.anchors:
            self.anchors[size] = all_anchors(self.spec.with_size(*size)).to(self.device)
        return self.anchors[size]

    def _divisor(self, count: Tensor) -> Tensor:
        # Gradients are averaged over processes, so each divides by the mean of all counts.
        return self.us.sum(count).clamp(min=1) / self.us.world

    def _diverged(self, what: str, batch: Batch, iteration: int) -> UserError:
        numbers = [number for part in self.us.gather(batch.image_ids) for number in part]
        exact = "" if self.precision is torch.float32 else ", or --precision fp32"
        return UserError(
            f"{what} at iteration {iteration}, on images {_some(numbers)}",
            f"try a lower --lr than {self.config.lr:g}, or a longer --warmup than {self.config.warmup}{exact}",
        )


def all_anchors(spec: DetectorSpec) -> Tensor:
    """Return the anchors of all levels (N, 4), each level in the order of a flattened (A, h, w) map."""
    levels = enumerate(zip(spec.anchor_table, spec.strides, strict=True))
    grids = [grid_anchors(table, stride, *spec.feature_size(level)) for level, (table, stride) in levels]
    return torch.from_numpy(np.concatenate(grids))


def precision_of(wanted: Precision, device: torch.device) -> torch.dtype:
    """Return what a device computes in. Raises UserError for fp16 on a CPU."""
    if wanted == "auto":
        if device.type != "cuda":
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if wanted == "fp16" and device.type == "cpu":
        raise UserError("precision fp16 needs a GPU", "on a CPU: fp32 or bf16", code=Exit.USAGE)
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[wanted]


def _optimizer(network: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    learnt = [parameter for parameter in network.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [each for each in learnt if each.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [each for each in learnt if each.ndim <= 1], "weight_decay": 0.0},
    ]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, config.lr, MOMENTUM)
    return torch.optim.AdamW(groups, config.lr, BETAS, fused=True)


def _difference(theirs: DetectorSpec, ours: DetectorSpec) -> str:
    """Say what the first field is that two specs differ in."""
    first, second = asdict(theirs), asdict(ours)
    flat = [
        {**{name: value for name, value in spec.items() if name != "network"}, **spec["network"]}
        for spec in (first, second)
    ]
    name = next(name for name in flat[0] if flat[0][name] != flat[1][name])
    return name if name == "anchors" else f"{name} is {flat[0][name]!r}, not {flat[1][name]!r}"


def _some(numbers: list[int], limit: int = 8) -> str:
    shown = ", ".join(str(number) for number in numbers[:limit])
    return shown + (f" and {len(numbers) - limit} more" if len(numbers) > limit else "")
