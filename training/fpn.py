"""The feature pyramid P3 to P7 (https://arxiv.org/abs/1612.03144, with RetinaNet's two levels on top).

    p3, p4, p5, p6, p7 = FeaturePyramid(backbone.channels, 256)(backbone(images))

P6 is made from C5 and P7 from P6, as in the RetinaNet paper. There is no norm and no other fusion.
"""

from torch import Tensor, nn
from torch.nn import functional


class FeaturePyramid(nn.Module):
    """Laterals of C3 to C5, added from the top down and smoothed, and two coarser levels."""

    def __init__(self, inputs: tuple[int, int, int], channels: int) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(nn.Conv2d(width, channels, 1) for width in inputs)
        self.smooth = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in inputs)
        self.p6 = nn.Conv2d(inputs[-1], channels, 3, 2, 1)
        self.p7 = nn.Conv2d(channels, channels, 3, 2, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def forward(self, features: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, ...]:
        """Return the five levels of C3, C4 and C5, each half as large as the one before, rounded up."""
        merged = [lateral(feature) for lateral, feature in zip(self.laterals, features, strict=True)]
        for level in (1, 0):
            # To the lateral's own size: twice the coarser one is a row too many where a stride rounded up.
            size = merged[level].shape[-2:]
            merged[level] = merged[level] + functional.interpolate(merged[level + 1], size=size, mode="nearest")
        levels = [smooth(level) for smooth, level in zip(self.smooth, merged, strict=True)]
        p6 = self.p6(features[-1])
        return (*levels, p6, self.p7(functional.relu(p6)))
