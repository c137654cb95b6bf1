"""The feature pyramid P3 to P7 (https://arxiv.org/abs/1612.03144, with RetinaNet's two levels on top).

    p3, p4, p5, p6, p7 = FeaturePyramid(backbone.channels, 256)(backbone(images))

P6 is made from C5, as in the RetinaNet paper, or from P5, as in Detectron's and torchvision's first models; P7 is
made from P6. There is no other fusion of levels.
"""

import math

from torch import Tensor, nn
from torch.nn import functional


class FeaturePyramid(nn.Module):
    """Laterals of C3 to C5, added from the top down and smoothed, and two coarser levels.

    `norm` of `spec.NORMS` is put behind every convolution; `p6_from` is one of `spec.P6_SOURCES`.
    """

    def __init__(
        self, inputs: tuple[int, int, int], channels: int, *, norm: str = "none", p6_from: str = "c5"
    ) -> None:
        super().__init__()
        self.p6_from = p6_from
        self.laterals = nn.ModuleList(_convolution(width, channels, 1, 1, norm) for width in inputs)
        self.smooth = nn.ModuleList(_convolution(channels, channels, 3, 1, norm) for _ in inputs)
        self.p6 = _convolution(inputs[-1] if p6_from == "c5" else channels, channels, 3, 2, norm)
        self.p7 = _convolution(channels, channels, 3, 2, norm)

    def forward(self, features: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, ...]:
        """Return the five levels of C3, C4 and C5, each half as large as the one before, rounded up."""
        merged = [lateral(feature) for lateral, feature in zip(self.laterals, features, strict=True)]
        for level in (1, 0):
            # To the lateral's own size: twice the coarser one is a row too many where a stride rounded up.
            size = merged[level].shape[-2:]
            merged[level] = merged[level] + functional.interpolate(merged[level + 1], size=size, mode="nearest")
        levels = [smooth(level) for smooth, level in zip(self.smooth, merged, strict=True)]
        p6 = self.p6(features[-1] if self.p6_from == "c5" else levels[-1])
        return (*levels, p6, self.p7(functional.relu(p6)))


def make_norm(kind: str, channels: int) -> nn.Module:
    """Return a batch norm, or a group norm of 32 groups, or of fewer where a group would be a single channel."""
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    return nn.GroupNorm(max(1, math.gcd(64, channels) // 2), channels)


def _convolution(inputs: int, outputs: int, size: int, stride: int, norm: str) -> nn.Module:
    convolution = nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=norm == "none")
    nn.init.kaiming_uniform_(convolution.weight, a=1)
    if norm != "none":
        return nn.Sequential(convolution, make_norm(norm, outputs))
    assert convolution.bias is not None
    nn.init.zeros_(convolution.bias)
    return convolution
