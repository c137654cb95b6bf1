"""AdamW whose steps of convolutions are orthogonal: from nothing, it learns in fewer iterations.

    optimizer = Muon(groups, lr=0.004)        # groups of parameters with "orthogonal": True where they are meant

Muon: https://kellerjordan.github.io/posts/muon; that its steps are as large as AdamW's, so that one learning rate
serves both: https://arxiv.org/abs/2502.16982, section 2.2.
"""

from typing import Any

import torch
from torch import Tensor

MOMENTUM = 0.95
POLYNOMIAL, ROUNDS = (3.4445, -4.7750, 2.0315), 5  # bring singular values from 0..1 to about 1
STEP = 0.2  # root mean square of AdamW's steps


class Muon(torch.optim.AdamW):
    """Orthogonal steps for the groups that ask for them, AdamW's for the others."""

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
