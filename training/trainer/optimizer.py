"""What takes the steps of a training, and the average of the weights that they lead to.

    optimizer = build_optimizer(network, TrainConfig(1000, optimizer="muon"))
    average = Ema(network, decay=0.9998)
    average.update(network)          # after every step; average.state is a state_dict

The average is what is validated, exported and served in place of the last weights. Running statistics of norms are
averaged with the weights they belong to; counters are copied.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from retinaserve.training.trainer.config import TrainConfig

# The gradients of the first steps, which learn that nearly everything is background, are many times larger than
# those that tell classes apart later. AdamW's usual 0.999 would remember them for a thousand iterations.
BETAS = (0.9, 0.97)
SGD_MOMENTUM, MOMENTUM = 0.9, 0.95
POLYNOMIAL, ROUNDS = (3.4445, -4.7750, 2.0315), 5  # bring singular values from 0..1 to about 1
STEP = 0.2  # root mean square of AdamW's steps


def build_optimizer(network: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Return the optimizer of what a network learns; norms and biases don't decay.

    Muon turns what is a matrix between features: no convolution of pixels, of groups, or to outputs.
    """
    learnt = [parameter for parameter in network.parameters() if parameter.requires_grad]
    turned = {
        id(module.weight)
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d) and module.in_channels > 3 and module.groups == 1
        if config.optimizer == "muon" and not name.endswith("output")
    }
    plain = [each for each in learnt if each.ndim > 1 and id(each) not in turned]
    groups: list[dict[str, Any]] = [
        {"params": plain, "weight_decay": config.weight_decay},
        {"params": [each for each in learnt if each.ndim <= 1], "weight_decay": 0.0},
    ]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, config.lr, SGD_MOMENTUM)
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, config.lr, BETAS, fused=True)
    matrices = [each for each in learnt if id(each) in turned]
    matrices = [each for each in learnt if id(each) in turned]
    groups.append({"params": matrices, "weight_decay": config.weight_decay, "orthogonal": True})
    return Muon(groups, config.lr, BETAS, fused=True)


class Muon(torch.optim.AdamW):
    """AdamW, its steps orthogonal for the groups that ask for that: from nothing, it learns in fewer iterations.

    https://kellerjordan.github.io/posts/muon; that its steps are as large as AdamW's, so that one learning rate
    serves both: https://arxiv.org/abs/2502.16982, section 2.2.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        """As AdamW's."""
        super().__init__(*args, **options)
        # Fused, AdamW leaves a step out by itself where fp16 overflowed; GradScaler has to do it for both.
        self._step_supports_amp_scaling = False

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take a step."""
        for group in self.param_groups:
            for weight in group["params"] if group.get("orthogonal") else ():
                if weight.grad is not None:
                    self._turn(weight, group)
        return super().step(closure)

    def _turn(self, weight: Tensor, group: dict[str, Any]) -> None:
        """Take a weight's step, and leave AdamW nothing to do for it."""
        gradient, weight.grad = weight.grad, None
        assert gradient is not None
        state = self.state[weight]
        if not state:  # by the names that AdamW's own state has in checkpoints
            state["step"], state["exp_avg"] = torch.zeros(()), torch.zeros_like(weight)
        average = state["exp_avg"].lerp_(gradient, 1 - MOMENTUM)
        step = orthogonal(gradient.lerp(average, MOMENTUM).flatten(1))  # (O, I, k, k) -> (O, I*k*k)
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        weight.add_(step.view(weight.shape), alpha=-group["lr"] * STEP * max(step.shape) ** 0.5)


def orthogonal(matrix: Tensor) -> Tensor:
    """Return a matrix (M, N) of the same singular vectors, its singular values all near 1.

    In bf16, which is enough: the published rounds leave them between 0.7 and 1.2.
    """
    a, b, c = POLYNOMIAL
    tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if tall else matrix).bfloat16()
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(ROUNDS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    turned: Tensor = x.T if tall else x
    return turned.to(matrix.dtype)


class Ema:
    """`decay` is reached slowly, so that the first, random weights are forgotten soon."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.state: dict[str, Tensor] = {name: value.clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take a step's weights into the average."""
        self.updates += 1
        # The mean of all weights so far at first: TensorFlow's ExponentialMovingAverage with num_updates.
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                self.state[name].lerp_(value, 1 - decay)
            else:
                self.state[name].copy_(value)

    def restore(self, state: Mapping[str, Tensor], updates: int) -> None:
        """Go on with an average that was saved."""
        for name, value in state.items():
            self.state[name].copy_(value)
        self.updates = updates
