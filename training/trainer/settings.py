"""How to train: one frozen record of every choice that is not the detector's own (that is the spec's).

TrainConfig(1000, batch=8, lr=0.005, augment="multiscale", ema=0.999)
"""

from dataclasses import dataclass
from typing import Literal

from retinaserve.training.data.augment import MODES
from retinaserve.training.data.stream import Loader, StreamSettings
from retinaserve.training.errors import Exit, UserError
from retinaserve.training.model.norms import BATCH_NORMS, BatchNorms
from retinaserve.training.trainer.schedule import BASE_RATES, Schedule

Precision = Literal["auto", "fp32", "bf16", "fp16"]
LOADERS = ("torch", "dali")


@dataclass(frozen=True)
class TrainConfig:
    """How to train; what to train is the spec's."""

    iterations: int
    batch: int = 16  # of all processes together
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
    milestones: tuple[int, ...] = ()  # none: a cosine to zero
    gamma: float = 0.1
    optimizer: str = "adamw"
    ema: float = 0.0  # decay of the average of weights; 0: none is kept
    giou: bool = False
    batch_norms: BatchNorms = "sync"  # in one process the same as "local"
    freeze: int = 0  # stages of the backbone
    compile: bool = False
    loader: Loader = "torch"
    shorter: int | None = None  # see placement.Frame
    longest: int = 1333
    jitter: tuple[int, int] | None = None  # of the shorter side
    val_every: int = 1000

    def __post_init__(self) -> None:
        for name in ("iterations", "batch", "report_every", "save_every", "val_every", "longest"):
            if getattr(self, name) < 1:
                raise _nonsense(name, getattr(self, name), "1 or more is expected")
        for name in ("lr", "clip", "gamma"):
            if not getattr(self, name) > 0:
                raise _nonsense(name, getattr(self, name), "a positive number is expected")
        for name in ("box_weight", "weight_decay"):
            if not getattr(self, name) >= 0:
                raise _nonsense(name, getattr(self, name), "0 or more is expected")
        if not 0 <= self.ema < 1:
            raise _nonsense("ema", self.ema, "a decay from 0 to below 1 is expected, 0.999 for a start")
        for name, known in (
            ("augment", MODES),
            ("optimizer", tuple(BASE_RATES)),
            ("batch_norms", BATCH_NORMS),
            ("loader", LOADERS),
        ):
            if getattr(self, name) not in known:
                raise _nonsense(name, repr(getattr(self, name)), f"one of: {', '.join(known)}")
        if self.jitter is not None and not 0 < self.jitter[0] <= self.jitter[1]:
            raise _nonsense("jitter", self.jitter, "a smaller and a larger number of pixels are expected")

    def stream(self, rank: int = 0, world: int = 1) -> StreamSettings:
        """Return the part that a process's batches depend on."""
        return StreamSettings(
            self.batch,
            self.seed,
            self.augment,
            self.workers,
            self.loader,
            self.shorter,
            self.longest,
            self.jitter,
            rank,
            world,
        )

    def lr_at(self, iteration: int) -> float:
        """Return the learning rate of an iteration, counted from 0."""
        return Schedule(self.lr, self.iterations, self.warmup, self.milestones, self.gamma).at(iteration)


def _nonsense(name: str, value: object, expected: str) -> UserError:
    return UserError(f"{name} is {value}", expected, code=Exit.USAGE)
