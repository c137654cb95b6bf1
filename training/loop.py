"""The training loop: from a data set to a checkpoint, resumable at every iteration.

    result = train(Path("model.pth"), spec, dataset, TrainConfig(iterations=1000), on_progress=print)

Linear warm-up and a cosine to zero, gradients clipped by norm, mixed precision on a GPU. The checkpoint is
written every so often, at the end, and when the run is interrupted; a run that finds its own checkpoint goes on
from there and ends with the weights an uninterrupted one would have. One process, one device.
"""

import json
import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from training.anchors import grid_anchors
from training.augment import MODES
from training.checkpoint import Checkpoint, load, save
from training.dataset import CocoDataset
from training.errors import Exit, UserError
from training.loaders import Batch, StreamSettings, training_batches
from training.losses import Losses, Target, detection_loss
from training.model import RetinaNet
from training.progress import Meter, Metrics, Progress, metrics_path
from training.spec import DetectorSpec

# The gradients of the first steps, which learn that nearly everything is background, are many times larger than
# those that tell classes apart later. AdamW's usual 0.999 would remember them for a thousand iterations.
BETAS = (0.9, 0.97)

Precision = Literal["auto", "fp32", "bf16", "fp16"]


@dataclass(frozen=True)
class TrainConfig:
    """How to train; what to train is the spec's."""

    iterations: int
    batch: int = 16
    lr: float = 0.002
    warmup: int = 100  # iterations
    weight_decay: float = 0.01  # of convolutions, not of norms and biases
    clip: float = 10.0  # norm of the gradient
    box_weight: float = 1.0  # of the box loss beside the class loss
    augment: str = "basic"
    seed: int = 0
    workers: int = 0
    precision: Precision = "auto"  # bf16 or fp16 on a GPU, fp32 on a CPU
    report_every: int = 20
    save_every: int = 500

    def __post_init__(self) -> None:
        for name in ("iterations", "batch", "report_every", "save_every"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}", "1 or more is expected", code=Exit.USAGE)
        if not self.lr > 0:
            raise UserError(f"lr is {self.lr}", "a positive number is expected", code=Exit.USAGE)
        if not self.box_weight >= 0:
            raise UserError(f"box_weight is {self.box_weight}", "0 or more is expected", code=Exit.USAGE)
        if self.augment not in MODES:
            raise UserError(f"augment is {self.augment!r}", f"one of: {', '.join(MODES)}", code=Exit.USAGE)

    @property
    def stream(self) -> StreamSettings:
        """The part that the batches depend on."""
        return StreamSettings(self.batch, self.seed, self.augment, self.workers)

    def lr_at(self, iteration: int) -> float:
        """Return the learning rate of an iteration, counted from 0."""
        warm = min(1.0, (iteration + 1) / max(1, self.warmup))
        return self.lr * warm * (1 + math.cos(math.pi * min(1.0, iteration / self.iterations))) / 2


@dataclass(frozen=True)
class TrainResult:
    """What a run did."""

    iteration: int  # of the checkpoint
    trained: int  # iterations of this run: none if the checkpoint was complete
    seconds: float
    interrupted: bool
    last: Progress | None


def train(
    path: Path,
    spec: DetectorSpec,
    dataset: CocoDataset,
    config: TrainConfig,
    *,
    device: str | None = None,
    on_progress: Callable[[Progress], object] = lambda _: None,
) -> TrainResult:
    """Train into the checkpoint at `path`, or go on with the one that is there.

    Metrics are appended to `<stem>.metrics.jsonl` beside it. SIGINT and SIGTERM end the run after the current
    iteration, with everything saved. Raises UserError for a data set without boxes, for a checkpoint of another
    detector, and when the loss stops being a number.
    """
    if not dataset.box_count:
        raise UserError("the data set has no boxes to learn", "annotations with iscrowd 0 are expected")
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    torch.manual_seed(config.seed)
    run = _Run(spec, config, where)
    start = run.restore(load(path)) if path.exists() else 0
    metrics = Metrics(metrics_path(path), keep=start)
    started, iteration, saved, last = time.monotonic(), start, start, None
    meter = Meter(config.iterations, config.batch, start)
    with interruptible() as interrupted:
        batches = training_batches(dataset, spec, config.stream, first=start)
        while iteration < config.iterations and not interrupted():
            with meter.waiting():
                batch = next(batches)
            meter.add(run.step(batch, iteration))
            iteration += 1
            if iteration % config.report_every == 0 or iteration == config.iterations:
                last = meter.report(iteration, config.lr_at(iteration - 1))
                metrics.append(last)
                on_progress(last)
            if iteration % config.save_every == 0:
                save(path, run.checkpoint(iteration))
                saved = iteration
        if iteration > saved or not path.exists():
            save(path, run.checkpoint(iteration))
        stopped = interrupted() and iteration < config.iterations
    return TrainResult(iteration, iteration - start, time.monotonic() - started, stopped, last)


class _Run:
    """The network, its optimizer and its device: all that one step needs."""

    def __init__(self, spec: DetectorSpec, config: TrainConfig, device: torch.device) -> None:
        self.spec, self.config, self.device = spec, config, device
        # On CPUs oneDNN picks its own layouts, and torch 2.13's strided 1x1 convolutions of fewer than 16 channels
        # write out of bounds on channels-last input.
        self.layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
        model = RetinaNet(spec).to(device)
        # torch's own signature of Module.to leaves this argument out
        self.model: RetinaNet = model.to(memory_format=self.layout).train()  # type: ignore[call-overload]
        matrices = [parameter for parameter in self.model.parameters() if parameter.ndim > 1]
        vectors = [parameter for parameter in self.model.parameters() if parameter.ndim <= 1]
        groups: list[dict[str, Any]] = [
            {"params": matrices, "weight_decay": config.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, config.lr, BETAS, fused=True)
        self.precision = _precision(config.precision, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.precision is torch.float16)
        self.anchors = all_anchors(spec).to(device)
        self.mean = 255 * torch.tensor(spec.mean, device=device).view(1, 3, 1, 1)
        self.std = 255 * torch.tensor(spec.std, device=device).view(1, 3, 1, 1)

    def step(self, batch: Batch, iteration: int) -> Losses:
        """Learn from a batch; return its losses. Raises UserError if they are no numbers."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr_at(iteration)
        targets = [
            Target(*(part.to(self.device, non_blocking=True) for part in target)) for target in batch.targets
        ]
        images = (batch.images.to(self.device, non_blocking=True).float() - self.mean) / self.std
        images = images.contiguous(memory_format=self.layout)
        with torch.autocast(self.device.type, self.precision, enabled=self.precision is not torch.float32):
            heads = self.model(images)
        losses = detection_loss(heads, targets, self.anchors)
        total = losses.cls + self.config.box_weight * losses.box
        if not bool(torch.isfinite(total)):
            raise UserError(
                f"the loss is {total.item()} at iteration {iteration}, on images {_some(batch.image_ids)}",
                f"try a lower --lr than {self.config.lr:g}, or a longer --warmup than {self.config.warmup}",
            )
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(total).backward()  # type: ignore[no-untyped-call]
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return Losses(losses.cls.detach(), losses.box.detach())

    def checkpoint(self, iteration: int) -> Checkpoint:
        """Return the state after `iteration` iterations."""
        training = {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "config": json.dumps(asdict(self.config)),
        }
        return Checkpoint(self.spec, self.model.state_dict(), iteration, training)

    def restore(self, checkpoint: Checkpoint) -> int:
        """Take over a checkpoint's state; return its iteration. Raises UserError for another detector's."""
        if checkpoint.spec != self.spec:
            raise UserError(
                "the checkpoint is of another detector: " + _difference(checkpoint.spec, self.spec),
                "name another file, or start afresh with --override",
            )
        self.model.load_state_dict(checkpoint.weights)
        if checkpoint.training:
            self.optimizer.load_state_dict(dict(checkpoint.training["optimizer"]))
            self.scaler.load_state_dict(dict(checkpoint.training["scaler"]))
        return checkpoint.iteration


def all_anchors(spec: DetectorSpec) -> Tensor:
    """Return the anchors of all levels (N, 4), each level in the order of a flattened (A, h, w) map."""
    levels = enumerate(zip(spec.anchor_table, spec.strides, strict=True))
    grids = [grid_anchors(table, stride, *spec.feature_size(level)) for level, (table, stride) in levels]
    return torch.from_numpy(np.concatenate(grids))


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Turn the first SIGINT or SIGTERM into a question that can be asked; a second one ends the process."""
    asked = False

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    try:
        previous = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread: its owner handles signals
        previous = {}
    try:
        yield lambda: asked
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _precision(wanted: Precision, device: torch.device) -> torch.dtype:
    if wanted == "auto":
        if device.type != "cuda":
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if wanted == "fp16" and device.type == "cpu":
        raise UserError("precision fp16 needs a GPU", "on a CPU: fp32 or bf16", code=Exit.USAGE)
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[wanted]


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
