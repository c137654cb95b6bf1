"""How to train: one frozen record of every choice that is not the detector's own (that is the spec's).

    TrainConfig(1000, batch=8, lr=0.005, augment="multiscale", ema=0.999)

Each field is a flag of `retinaserve train`, a key of recipes and a line of the run's record.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

from retinaserve.training.data.augment import MODES
from retinaserve.training.errors import Exit, UserError
from retinaserve.training.settings import check_settings, from_flags, setting

REFERENCE_BATCH = 16  # what the optimizers' default rates are for
# In proportion to the batch: https://arxiv.org/abs/1706.02677. SGD's is Detectron's RetinaNet's, others by trial.
BASE_RATES = {"adamw": 0.002, "sgd": 0.01, "muon": 0.012}
DECAYS = {"adamw": 0.01, "sgd": 1e-4, "muon": 0.01}


@dataclass(frozen=True)
class TrainConfig:
    """How to train; what to train is the spec's. `lr` and `weight_decay` follow the optimizer where not given."""

    iterations: int = setting(90000, "Iterations, counted from the first run.", name="iters", low=1)
    batch: int = setting(16, "Images of an iteration, of all processes together.", low=1)
    optimizer: Literal["adamw", "sgd", "muon"] = setting(
        "adamw", "What takes the steps; muon is for a start from nothing."
    )
    lr: float = setting(
        None,
        "Highest learning rate.  [default: adamw 0.002, muon 0.012, sgd 0.01 at 16 images, in proportion]",
        low=0,
        open_low=True,
    )
    warmup: int = setting(1000, "Iterations of rising learning rate.", low=0)
    milestones: tuple[int, ...] = setting((), "Where --gamma applies; without it, a cosine.", low=1)
    gamma: float = setting(0.1, "What the learning rate is multiplied by.", low=0, open_low=True)
    weight_decay: float = setting(
        None,
        "Of convolutions.  [default: adamw and muon 0.01, sgd 0.0001]",  # not of norms and biases
        aliases=("regularization_l2",),
        low=0,
    )
    clip: float = setting(10.0, "Norm that the gradient is cut to.", low=0, open_low=True)
    box_weight: float = setting(1.0, "Of the box loss beside the class loss.", low=0)
    assign: Literal["overlap", "aligned"] = setting(
        "overlap", "Which anchors learn a box: those that overlap it, or those that are best at it."
    )
    giou: bool = setting(False, "Generalised IoU for boxes, instead of smooth L1 of their deltas.")
    ema: float = setting(0.0, "Decay of the weights' average.", low=0, high=1, open_high=True)
    batch_norms: Literal["local", "sync", "frozen"] = setting(
        "sync", "Batch norms: each process's, all processes', or the backbone's as they are.", name="batch_norm"
    )
    freeze: int = setting(0, "Stages of the backbone that don't learn, from the stem.", low=0, high=5)
    shorter: int | None = setting(
        None, "Train at this shorter side instead of letterboxed into --size.", name="resize", low=1
    )
    longest: int = setting(1333, "The longest side, with --resize.", name="max_size", low=1)
    jitter: tuple[int, int] | None = setting(
        None, "Range of the shorter side, from multiscale on.", low=1, metavar="MIN MAX"
    )
    augment: str = setting("basic", "Each does what those before it do, too.", choices=MODES)
    loader: Literal["torch", "dali"] = setting("torch", "What reads the images.")
    workers: int = setting(0, "Processes (DALI: threads) that read images.", low=0)
    full_decode: bool = setting(False, "Decode all pixels of a JPEG, not only as many as can be seen.")
    seed: int = setting(0, "Fixes weights, order and augmentation.", low=0)
    precision: Literal["auto", "fp32", "bf16", "fp16"] = setting(
        "auto", "auto: bf16 or fp16 on a GPU, fp32 on a CPU."
    )
    compile: bool = setting(False, "Compile the network with torch.compile.")
    report_every: int = setting(20, low=1)
    val_every: int = setting(1000, "Iterations between validations.", name="val_iters", low=1)
    patience: int = setting(0, "Validations without a better AP that end the run; 0: none do.", low=0)
    save_every: int = setting(1000, "Iterations between checkpoints.", low=1)

    def __post_init__(self) -> None:
        check_settings(self)
        if self.jitter is not None and self.jitter[0] > self.jitter[1]:
            raise UserError(
                f"jitter is {self.jitter}",
                "a smaller and a larger number of pixels are expected",
                code=Exit.USAGE,
            )
        usual = {
            "lr": BASE_RATES[self.optimizer] * self.batch / REFERENCE_BATCH,
            "weight_decay": DECAYS[self.optimizer],
        }
        for name, value in usual.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)

    @classmethod
    def from_flags(cls, values: Mapping[str, Any]) -> Self:
        """Return the record that values by the names of flags ask for, others among them or not.

        `schedule` multiplies iterations and milestones.
        """
        chosen = from_flags(cls, values)
        factor: float = values.get("schedule", 1.0)

        def scheduled(iteration: int) -> int:
            return max(1, round(iteration * factor))

        iterations = scheduled(chosen.pop("iterations", cls.iterations))
        milestones = tuple(sorted(scheduled(milestone) for milestone in chosen.pop("milestones", ())))
        return cls(iterations, milestones=milestones, **chosen)

    def lr_at(self, iteration: int) -> float:
        """Return the learning rate of an iteration, counted from 0: a warm-up, then a cosine or steps down."""
        warm = min(1.0, (iteration + 1) / max(1, self.warmup))
        if self.milestones:
            return self.lr * warm * self.gamma ** sum(iteration >= milestone for milestone in self.milestones)
        return self.lr * warm * (1 + math.cos(math.pi * min(1.0, iteration / self.iterations))) / 2
