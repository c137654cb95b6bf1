"""The moving average of a network's weights: what is validated, exported and served in place of the last ones.

    average = Ema(model, decay=0.9998)
    average.update(model)          # after every step
    average.state                  # a state_dict

Running statistics of norms are averaged with the weights they belong to; counters are copied.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class Ema:
    """`decay` is reached slowly, so that the first, random weights are forgotten soon."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.state: dict[str, Tensor] = {name: value.detach().clone() for name, value in _state(model).items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take a step's weights into the average."""
        self.updates += 1
        # The mean of all weights so far at first: TensorFlow's ExponentialMovingAverage with num_updates.
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, value in _state(model).items():
            if value.is_floating_point():
                self.state[name].lerp_(value, 1 - decay)
            else:
                self.state[name].copy_(value)

    def restore(self, state: Mapping[str, Tensor], updates: int) -> None:
        """Go on with an average that was saved."""
        for name, value in state.items():
            self.state[name].copy_(value)
        self.updates = updates


def _state(model: nn.Module) -> Mapping[str, Tensor]:
    return model.state_dict()
