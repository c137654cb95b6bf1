"""EfficientNet-B0 and MobileNetV3-Large, whose parameter names are torchvision's.

    backbone = EfficientNet(BACKBONES["efficientnet_b0"], Network("efficientnet_b0"))
    c3, c4, c5 = backbone(images)     # of the layers `Network.taps` names, or the layout's

MobileNetV3's norms have an epsilon of 0.001 where they were made; here it is torch's, and `import` takes it up in
the scales. Stochastic depth is left out.
"""

from collections.abc import Callable, Sequence
from itertools import groupby

import torch
from torch import Tensor, nn
from torch.nn import functional

from retinaserve.training.layouts import PUBLISHED_WIDTH, EfficientLayout, EfficientRow
from retinaserve.training.spec import Network

HARDSWISH = 80  # channels, from which on MobileNetV3's activation is no ReLU


class Squeeze(nn.Module):
    """A scale for each channel, made of the means of all: https://arxiv.org/abs/1709.01507."""

    def __init__(self, channels: int, squeezed: int, *, hard: bool) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)
        self.hard = hard

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, H, W) with its channels scaled."""
        means = self.fc1(functional.adaptive_avg_pool2d(x, 1))
        if self.hard:
            return x * functional.hardsigmoid(self.fc2(functional.relu(means)))
        return x * torch.sigmoid(self.fc2(functional.silu(means)))


class MobileBlock(nn.Module):
    """1x1 up, a convolution of each channel by itself, a squeeze, 1x1 down, around a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int, row: EfficientRow, *, hard: bool) -> None:
        super().__init__()
        kernel, expansion, published, _, _, squeezes = row
        activation = nn.SiLU if not hard else nn.Hardswish if published >= HARDSWISH else nn.ReLU
        hidden = eights(inputs * expansion)
        layers: list[nn.Module] = [convolution(inputs, hidden, 1, activation)] if expansion > 1 else []
        layers.append(convolution(hidden, hidden, kernel, activation, stride=stride, groups=hidden))
        if squeezes:
            squeezed = eights(hidden // 4) if hard else max(1, inputs // 4)
            layers.append(Squeeze(hidden, squeezed, hard=hard))
        self.block = nn.Sequential(*layers, convolution(hidden, outputs, 1, None))
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's features, at the stride it was made with."""
        y: Tensor = self.block(x)
        return x + y if self.shortcut else y


class EfficientNet(nn.Module):
    """The network up to its last tap; channels scale with width / 64."""

    def __init__(self, layout: EfficientLayout, network: Network) -> None:
        super().__init__()
        self.taps = network.taps or layout.taps
        scale, hard = network.width / PUBLISHED_WIDTH, layout.hard
        last = nn.Hardswish if hard else nn.SiLU
        self.widths, self.strides = [eights(layout.stem * scale)], [2]  # of each layer
        widths = self.widths
        layers: list[nn.Module] = [convolution(3, widths[0], 3, last, stride=2)]
        for row in layout.rows:
            outputs, blocks = eights(row[2] * scale), []
            for number in range(row[3]):
                stride = row[4] if number == 0 else 1
                blocks.append(MobileBlock(widths[-1], outputs, stride, row, hard=hard))
                if hard or number == 0:  # torchvision numbers its blocks, and EfficientNet's rows
                    widths.append(outputs)
                    self.strides.append(self.strides[-1] * stride)
                else:
                    widths[-1] = outputs
            layers += blocks if hard else [nn.Sequential(*blocks)]
        widths.append(layout.top)
        self.strides.append(self.strides[-1])
        layers.append(convolution(widths[-2], layout.top, 1, last))
        self.features = nn.Sequential(*layers[: self.taps[-1] + 1])
        self.channels = tuple(widths[tap] for tap in self.taps)

    @property
    def stages(self) -> Sequence[Sequence[nn.Module]]:
        """The layers by their stride: 2, 4, 8, 16, 32."""
        layers = zip(self.strides, self.features, strict=False)
        return [[layer for _, layer in group] for _, group in groupby(layers, lambda each: each[0])]

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return C3, C4 and C5 of normalised images (B, 3, H, W); every stride of 2 rounds up."""
        features = []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in self.taps:
                features.append(x)
        return tuple(features)


def eights(channels: float) -> int:
    """Round to a multiple of 8, at least 8 and never by more than a tenth down, as MobileNets do."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


def convolution(
    inputs: int,
    outputs: int,
    kernel: int,
    activation: Callable[[], nn.Module] | None,
    *,
    stride: int = 1,
    groups: int = 1,
) -> nn.Sequential:
    """Return a convolution without bias, its norm, and an activation."""
    weights = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(weights, nn.BatchNorm2d(outputs), *([activation()] if activation else []))
