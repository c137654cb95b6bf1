"""The trainer: from a data set to a checkpoint, resumable at every iteration.

    result = Trainer(spec, TrainConfig(iterations=1000)).fit(Path("model.pth"), dataset, on_progress=print)
    result = train(Path("model.pth"), images=..., annotations=..., iters=1000)     # as `retinaserve train` does

The checkpoint is written every so often, at the end, and when the run is interrupted; a run that finds its own
checkpoint goes on from there and ends with the weights an uninterrupted one would have, wherever it was killed.
Started by torchrun it is one process of many, with its part of every batch.
"""

import json
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from retinaserve.training.check.checks import preflight
from retinaserve.training.checkpoint import Checkpoint, load
from retinaserve.training.data.augment import Batch, StreamSettings
from retinaserve.training.data.dataset import CocoDataset
from retinaserve.training.data.loaders import training_batches
from retinaserve.training.errors import Exit, UserError
from retinaserve.training.model import build_model
from retinaserve.training.model.losses import Losses, Target, aligned_loss, detection_loss
from retinaserve.training.model.retinanet import RetinaNet
from retinaserve.training.spec import DetectorSpec
from retinaserve.training.trainer.config import TrainConfig
from retinaserve.training.trainer.distributed import (
    ALONE,
    ProcessGroup,
    lone_side,
    process_group,
    replace_batch_norms,
)
from retinaserve.training.trainer.optimizer import Ema, build_optimizer
from retinaserve.training.trainer.progress import Meter, Progress, Recorder
from retinaserve.training.trainer.start import detector_to_train, find_start, initialise
from retinaserve.training.trainer.validate import Scores, check, predict, score


@dataclass(frozen=True)
class TrainResult:
    """What a run did."""

    iteration: int  # of the checkpoint
    trained: int  # iterations of this run: none if the checkpoint was complete
    seconds: float
    interrupted: bool
    last: Progress | None
    scores: Scores | None = None  # of this run's last validation
    stalled: bool = False  # ended by `patience`
    best: tuple[float, int] | None = None  # the highest AP and its iteration, of this run or those before


def train(
    model: str | Path,
    *,
    images: str | Path,
    annotations: str | Path,
    val_images: str | Path | None = None,
    val_annotations: str | Path | None = None,
    fine_tune: str | Path | None = None,
    **settings: Any,
) -> TrainResult:
    """Train a detector into the checkpoint `model`, or go on with the one that is there.

    `settings` are the flags of `retinaserve train`, with underscores: backbone="resnet18", iters=3000, ema=0.999.
    Raises UserError for data that can't be trained on, and for a checkpoint of another detector.
    """
    model, start = Path(model), find_start(Path(fine_tune)) if fine_tune else None
    held_out = Path(val_images or images), Path(val_annotations) if val_annotations else None
    with process_group() as group:
        if group.is_main_process:
            preflight(Path(images), Path(annotations), *held_out)
        dataset = CocoDataset(Path(images), Path(annotations))
        validation = CocoDataset(held_out[0], held_out[1], split="val") if held_out[1] else None
        begins = group.broadcast(not model.exists())
        spec = group.broadcast(
            detector_to_train(model, dataset, settings, start) if group.is_main_process else None
        )
        assert spec is not None
        prepare = (lambda network: initialise(network, start)) if start and begins else None
        # Without a name for the trainer: it has to be gone before the process group is.
        return Trainer(spec, TrainConfig.from_flags(settings), group=group, prepare=prepare).fit(
            model, dataset, validation=validation
        )


class Trainer:
    """All that a step needs and a checkpoint keeps: network, average, optimizer and scaler, in one process."""

    def __init__(
        self,
        spec: DetectorSpec,
        config: TrainConfig,
        *,
        device: str | None = None,
        group: ProcessGroup = ALONE,
        prepare: Callable[[RetinaNet], object] | None = None,
    ) -> None:
        """`prepare` may put other weights into the fresh network."""
        if config.batch % group.world_size:
            raise UserError(
                f"a batch of {config.batch} can't be shared by {group.world_size} processes",
                "--batch counts the images of all processes: a multiple of their number is expected",
                code=Exit.USAGE,
            )
        self.spec, self.config, self.group = spec, config, group
        default = f"cuda:{group.local_rank}" if torch.cuda.is_available() else "cpu"
        self.device = torch.device(device or default)
        self.precision = precision_of(config.precision, self.device)
        torch.manual_seed(config.seed)
        network = build_model(spec)
        if prepare is not None:
            prepare(network)
        if config.freeze:
            network.freeze(config.freeze)
        replace_batch_norms(network, config.batch_norms, processes=group.world_size)
        last = self.device.type == "cuda" or takes_channels_last(network)
        self.layout = torch.channels_last if last else torch.contiguous_format
        # torch's own signature of Module.to leaves this argument out
        self.network: RetinaNet = network.to(self.device).to(memory_format=self.layout).train()  # type: ignore[call-overload]
        self.lone_side = lone_side(self.network, spec.strides[-1])
        self.ema = Ema(self.network, config.ema) if config.ema else None
        self.optimizer = build_optimizer(self.network, config)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision is torch.float16)
        self.model: Any = self.network
        if group.world_size > 1:
            self.model = nn.parallel.DistributedDataParallel(self.network)
        if config.compile:
            self.model = torch.compile(self.model)
        self.best, self.best_at = -1.0, 0  # the highest AP of a validation, and its iteration
        self.anchors: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        self.mean = 255 * torch.tensor(spec.mean, device=self.device).view(1, 3, 1, 1)
        self.std = 255 * torch.tensor(spec.std, device=self.device).view(1, 3, 1, 1)

    def fit(
        self,
        path: Path,
        dataset: CocoDataset,
        *,
        validation: CocoDataset | None = None,
        on_progress: Callable[[Progress], object] = lambda _: None,
        on_scores: Callable[[int, Scores], object] = lambda *_: None,
    ) -> TrainResult:
        """Train into the checkpoint at `path`, or go on with the one that is there.

        Beside it are `<stem>.metrics.jsonl` and `<stem>.train_batch.jpg`, and with a validation set
        `<stem>.val_predictions.jpg` and the best checkpoint so far, `<stem>.best.pth`. SIGINT and SIGTERM end the
        run after the current iteration, with everything saved. Of several processes only the main one writes and
        is called back. Raises UserError for a data set without boxes, for a checkpoint of another detector, and
        when the loss stops being a number.
        """
        if not dataset.box_count:
            raise UserError("the data set has no boxes to learn", "annotations with iscrowd 0 are expected")
        if validation is not None:
            check(validation, self.spec)
        config, main = self.config, self.group.is_main_process
        recorder = Recorder(path, enabled=main, on_progress=on_progress, on_scores=on_scores)
        # The main process reads, for on another machine the file may be missing.
        found = self.group.broadcast(load(path) if main and path.exists() else None)
        iteration = first = self.restore(found) if found else 0
        recorder.start(first)
        started, last, scores, stopping, stalled = time.monotonic(), None, None, False, False
        meter = Meter(config.iterations, config.batch, first)
        batches = training_batches(dataset, self.spec, stream_settings(config, self.group), first=first)
        with interruptible() as interrupted:
            while iteration < config.iterations and not (stopping or stalled):
                with meter.waiting():
                    batch = next(batches)
                if iteration == first:
                    recorder.batch(batch, self.spec)
                meter.add(self.step(batch, iteration))
                iteration += 1
                complete = iteration == config.iterations
                if iteration % config.report_every == 0 or complete:
                    last = meter.report(iteration, config.lr_at(iteration - 1))
                    recorder.progress(last)
                if validation is not None and (iteration % config.val_every == 0 or complete):
                    with meter.paused():  # before the checkpoint: one that is killed in between does both again
                        scores = self.validate(validation, iteration, recorder)
                    stalled = 0 < config.patience * config.val_every <= iteration - self.best_at
                if iteration % config.save_every == 0:
                    with meter.paused():
                        recorder.save(self.checkpoint(iteration))
                stopping = bool(self.group.sum(torch.tensor(float(interrupted()), device=self.device)))
        recorder.save(self.checkpoint(iteration))
        return TrainResult(
            iteration,
            iteration - first,
            time.monotonic() - started,
            stopping and iteration < config.iterations,
            last,
            scores,
            stalled,
            (self.best, self.best_at) if self.best >= 0 else None,
        )

    def step(self, batch: Batch, iteration: int) -> Losses:
        """Learn from this process's part of a batch; return the losses of all of it.

        Raises UserError if they are no numbers, and for a batch too small for batch norms.
        """
        count, _, height, width = batch.images.shape
        if count == 1 and max(height, width) <= self.lone_side:
            raise UserError(
                f"batch norms learn from more than one value: one image of {height} x {width} is one cell of the "
                "coarsest level",
                f"a batch of 2 a process, or a side above {self.lone_side}, is expected",
                code=Exit.USAGE,
            )
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr_at(iteration)
        targets = [
            Target(*(part.to(self.device, non_blocking=True) for part in target)) for target in batch.targets
        ]
        images = (batch.images.to(self.device, non_blocking=True).float() - self.mean) / self.std
        images = images.contiguous(memory_format=self.layout)
        with torch.autocast(self.device.type, self.precision, enabled=self.precision is not torch.float32):
            heads = self.model(images)
        losses = self._losses(heads, targets, (images.shape[2], images.shape[3]))
        total = losses.cls + self.config.box_weight * losses.box
        cls, box = self.group.sum(torch.stack((losses.cls, losses.box)).detach()) / self.group.world_size
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

    def validate(self, dataset: CocoDataset, iteration: int, recorder: Recorder) -> Scores:
        """Score the weights that are served, each process a part of the images."""
        group = self.group
        with torch.device("meta"):  # which draws no random numbers: validating changes nothing that training sees
            model = build_model(self.spec)
        model.load_state_dict(self.weights(), assign=True)
        part = range(group.rank, len(dataset), group.world_size)
        own = predict(
            model.eval(), self.spec, dataset, part, precision=self.precision, full_decode=self.config.full_decode
        )
        found = {image_id: each for some in group.gather(own) for image_id, each in some.items()}
        scores = group.broadcast(score(dataset, self.spec, found) if group.is_main_process else None)
        assert scores is not None
        if scores.ap > self.best:
            self.best, self.best_at = scores.ap, iteration
            recorder.save_best(Checkpoint(self.spec, self.weights(), iteration))
        recorder.validation(iteration, scores, dataset, self.spec, found)
        return scores

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
            "best_at": self.best_at,
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
                f"the checkpoint is of another detector: {_difference(checkpoint.spec, self.spec)}",
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
        self.best, self.best_at = state.get("best", self.best), state.get("best_at", checkpoint.iteration)
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
        # The fused step goes through memory, not through strides: both have to lie as this run's weights do.
        for parameter, own in self.optimizer.state.items():
            for name, value in own.items():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    own[name] = torch.empty_like(parameter, requires_grad=False).copy_(value)

    def _losses(
        self, heads: Sequence[tuple[Tensor, Tensor]], targets: Sequence[Target], size: tuple[int, int]
    ) -> Losses:
        if size not in self.anchors:
            table, steps = self.spec.all_anchors(size), self.spec.all_strides(size)
            self.anchors[size] = torch.from_numpy(table).to(self.device), torch.from_numpy(steps).to(self.device)
        anchors, strides = self.anchors[size]
        if self.config.assign == "aligned":
            return aligned_loss(heads, targets, anchors, strides, divisor=self._divisor)
        return detection_loss(heads, targets, anchors, giou=self.config.giou, divisor=self._divisor)

    def _divisor(self, count: Tensor) -> Tensor:
        # Gradients are averaged over processes, so each divides by the mean of all counts.
        return self.group.sum(count).clamp(min=1) / self.group.world_size

    def _diverged(self, what: str, batch: Batch, iteration: int) -> UserError:
        numbers = [number for part in self.group.gather(batch.image_ids) for number in part]
        shown = ", ".join(str(number) for number in numbers[:8])
        more = f" and {len(numbers) - 8} more" if len(numbers) > 8 else ""
        exact = "" if self.precision is torch.float32 else ", or --precision fp32"
        return UserError(
            f"{what} at iteration {iteration}, on images {shown}{more}",
            f"try a lower --lr than {self.config.lr:g}, or a longer --warmup than {self.config.warmup}{exact}",
        )


def precision_of(wanted: str, device: torch.device) -> torch.dtype:
    """Return what a device computes in. Raises UserError for fp16 on a CPU."""
    if wanted == "auto":
        if device.type != "cuda":
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if wanted == "fp16" and device.type == "cpu":
        raise UserError("precision fp16 needs a GPU", "on a CPU: fp32 or bf16", code=Exit.USAGE)
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[wanted]


def takes_channels_last(network: nn.Module) -> bool:
    """Return whether a CPU may keep channels last, which saves a tenth of a step, and more in bf16.

    torch 2.13's strided 1x1 convolutions of fewer than 16 channels write out of bounds on such input.
    """
    convolutions = (module for module in network.modules() if isinstance(module, nn.Conv2d))
    return all(
        each.in_channels >= 16 or each.kernel_size != (1, 1) or each.stride == (1, 1) for each in convolutions
    )


def stream_settings(config: TrainConfig, group: ProcessGroup = ALONE) -> StreamSettings:
    """Return what a process's batches depend on."""
    values = {"rank": group.rank, "world": group.world_size, **vars(config)}
    return StreamSettings(**{each.name: values[each.name] for each in fields(StreamSettings)})


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


def _difference(before: DetectorSpec, now: DetectorSpec) -> str:
    """Return the first field that two specs differ in, with both values."""
    names = [each.name for each in fields(DetectorSpec) if each.name != "network"]
    pairs = [(name, getattr(before, name), getattr(now, name)) for name in names]
    pairs += [(name, value, getattr(now.network, name)) for name, value in asdict(before.network).items()]
    name, first, second = next(pair for pair in pairs if pair[1] != pair[2])
    return name if name == "anchors" else f"{name} is {first!r}, not {second!r}"
