"""The learning rate over a run: a linear warm-up, then a cosine to zero or steps down.

    Schedule(0.002, iterations=9000, warmup=100).at(0)
    Schedule(0.01, iterations=90000, milestones=(60000, 80000))     # times gamma at each

A function of the iteration alone, so that a resumed run needs no state of it.
"""

import math
from dataclasses import dataclass

REFERENCE_BATCH = 16  # what the optimizers' default rates are for
# https://arxiv.org/abs/1706.02677 for SGD (0.01 at 16, as Detectron's RetinaNet); AdamW's by trial.
BASE_RATES = {"adamw": 0.002, "sgd": 0.01}


@dataclass(frozen=True)
class Schedule:
    """`milestones` turn the cosine into steps."""

    lr: float
    iterations: int
    warmup: int = 0
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1

    def at(self, iteration: int) -> float:
        """Return the learning rate of an iteration, counted from 0."""
        warm = min(1.0, (iteration + 1) / max(1, self.warmup))
        if self.milestones:
            return self.lr * warm * self.gamma ** sum(iteration >= milestone for milestone in self.milestones)
        return self.lr * warm * (1 + math.cos(math.pi * min(1.0, iteration / self.iterations))) / 2


def scaled_rate(optimizer: str, batch: int) -> float:
    """Return an optimizer's default rate at a batch, in proportion to it (https://arxiv.org/abs/1706.02677)."""
    return BASE_RATES[optimizer] * batch / REFERENCE_BATCH
