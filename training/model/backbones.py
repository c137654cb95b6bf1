"""Backbones whose parameter names are torchvision's, so its ImageNet weights load unchanged.

    backbone = build_backbone(Network("resnet18", width=32))
    c3, c4, c5 = backbone(images)     # strides 8, 16, 32; backbone.channels says how wide each is
    backbone.stages                   # five, from the stem on: what can be frozen

MobileNetV3's norms have an epsilon of 0.001 where they were made; here it is torch's, and `import` takes it up in
the scales. EfficientNet's stochastic depth is left out.

The names are those of layouts.BACKBONES. Bottlenecks stride in their 3x3 convolution, as torchvision's do
("ResNet v1.5"), or in the first 1x1, as in the paper, by `Network.stride_in`. A width of 64 is the published
network, whatever its stem measures.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby

import torch
from torch import Tensor, nn
from torch.nn import functional

from retinaserve.training.layouts import (
    BACKBONES,
    PUBLISHED_WIDTH,
    EfficientLayout,
    EfficientRow,
    MobileNetLayout,
    ResNetLayout,
)
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


RELU6 = partial(nn.ReLU6, inplace=True)


def make_norm(kind: str, channels: int) -> nn.Module:
    """Return a batch norm, or a group norm of 32 groups, or of fewer where a group would be a single channel."""
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    return nn.GroupNorm(max(1, math.gcd(64, channels) // 2), channels)


class SameConv2d(nn.Conv2d):
    """A strided convolution with TensorFlow's padding: what is missing, the odd pixel at the right and bottom."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the map of (B, C, H, W), with the sides divided by the stride and rounded up."""
        padded = functional.pad(input, _same(input, self.kernel_size[0], self.stride[0]))
        return functional.conv2d(padded, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


def _same(x: Tensor, size: int, stride: int) -> list[int]:
    """Return left, right, top and bottom padding."""
    padding = []
    for side in (x.shape[-1], x.shape[-2]):
        missing = size - stride + -side % stride  # no floor division: of a negative side the exporter's rounds up
        padding += [missing // 2, missing - missing // 2]
    return padding


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut: ResNet18 and 34."""

    expansion = 1

    def __init__(
        self, inputs: int, width: int, stride: int, downsample: nn.Module | None, network: Network
    ) -> None:
        super().__init__()
        norm = network.backbone_norm
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = make_norm(norm, width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = make_norm(norm, width)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's features, at the stride it was made with."""
        shortcut = x if self.downsample is None else self.downsample(x)
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return torch.relu(y + shortcut)


class Bottleneck(nn.Module):
    """1x1 down, 3x3, 1x1 up around a shortcut: ResNet50, 101 and 152; with groups, the ResNeXts."""

    expansion = 4

    def __init__(
        self, inputs: int, width: int, stride: int, downsample: nn.Module | None, network: Network
    ) -> None:
        super().__init__()
        layout, norm = BACKBONES[network.backbone], network.backbone_norm
        assert isinstance(layout, ResNetLayout)
        inner = max(1, width * layout.group_width // PUBLISHED_WIDTH) * layout.groups
        first, second = (stride, 1) if network.stride_in == "1x1" else (1, stride)
        self.conv1 = nn.Conv2d(inputs, inner, 1, first, bias=False)
        self.bn1 = make_norm(norm, inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, second, 1, groups=layout.groups, bias=False)
        self.bn2 = make_norm(norm, inner)
        self.conv3 = nn.Conv2d(inner, width * self.expansion, 1, bias=False)
        self.bn3 = make_norm(norm, width * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's features, at the stride it was made with."""
        shortcut = x if self.downsample is None else self.downsample(x)
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return torch.relu(y + shortcut)


class ResNet(nn.Module):
    """A ResNet or ResNeXt without its classifier; `width` is that of the first stage."""

    def __init__(self, layout: ResNetLayout, network: Network) -> None:
        super().__init__()
        block, width = Bottleneck if layout.bottleneck else BasicBlock, network.width
        self.network = network
        stem = SameConv2d if network.padding == "same" else nn.Conv2d
        first = width if layout.pool else width // 2
        self.conv1 = stem(3, first, layout.stem, 2, layout.stem // 2, bias=False)
        self.bn1 = make_norm(network.backbone_norm, first)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 0 if network.padding == "same" else 1) if layout.pool else nn.Identity()
        self.pads = layout.pool and network.padding == "same"
        outputs = [width * 2**stage * block.expansion for stage in range(4)]
        self.layer1 = _stage(network, first, width, layout.blocks[0], stride=1 if layout.pool else 2)
        self.layer2 = _stage(network, outputs[0], width * 2, layout.blocks[1], stride=2)
        self.layer3 = _stage(network, outputs[1], width * 4, layout.blocks[2], stride=2)
        self.layer4 = _stage(network, outputs[2], width * 8, layout.blocks[3], stride=2)
        self.channels = tuple(outputs if network.finest == "c2" else outputs[1:])
        _initialise(self)

    @property
    def stages(self) -> Sequence[Sequence[nn.Module]]:
        """The stem and the four stages."""
        return ((self.conv1, self.bn1), (self.layer1,), (self.layer2,), (self.layer3,), (self.layer4,))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return C3, C4 and C5 of normalised images (B, 3, H, W), or C2 to C5; every stride of 2 rounds up."""
        x = self.relu(self.bn1(self.conv1(x)))
        if self.pads:  # zeros, which are never above what a ReLU leaves
            x = functional.pad(x, _same(x, 3, 2))
        c2 = self.layer1(self.maxpool(x))
        c3 = self.layer2(c2)
        c4 = self.layer3(c3)
        features = (c3, c4, self.layer4(c4))
        return (c2, *features) if self.network.finest == "c2" else features


class InvertedResidual(nn.Module):
    """1x1 up, 3x3 of each channel by itself, 1x1 down, around a shortcut where the shapes agree."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        layers: list[nn.Module] = [convolution(inputs, hidden, 1, RELU6)] if expansion > 1 else []
        layers += [convolution(hidden, hidden, 3, RELU6, stride=stride, groups=hidden)]
        layers += [nn.Conv2d(hidden, outputs, 1, bias=False), nn.BatchNorm2d(outputs)]
        self.conv = nn.Sequential(*layers)
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's features, at the stride it was made with."""
        y: Tensor = self.conv(x)
        return x + y if self.shortcut else y


class MobileNetV2(nn.Module):
    """MobileNetV2 up to its last block; channels scale with width / 64, in eights as published."""

    def __init__(self, layout: MobileNetLayout, width: int = PUBLISHED_WIDTH) -> None:
        super().__init__()
        self.taps = layout.taps
        scale = width / PUBLISHED_WIDTH
        inputs = eights(32 * scale)
        features: list[nn.Module] = [convolution(3, inputs, 3, RELU6, stride=2)]
        widths = [inputs]
        for expansion, channels, blocks, stride in layout.stages:
            for block in range(blocks):
                outputs = eights(channels * scale)
                features.append(InvertedResidual(inputs, outputs, stride if block == 0 else 1, expansion))
                widths.append(outputs)
                inputs = outputs
        self.features = nn.Sequential(*features)
        self.channels = (widths[self.taps[0]], widths[self.taps[1]], widths[self.taps[2]])
        _initialise(self)

    @property
    def stages(self) -> Sequence[Sequence[nn.Module]]:
        """The blocks by their stride: 2, 4, 8, 16, 32."""
        blocks = list(self.features)
        return (blocks[:2], blocks[2:4], blocks[4:7], blocks[7:14], blocks[14:])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return C3, C4 and C5 of normalised images (B, 3, H, W); every stride of 2 rounds up."""
        taps = []
        for index, block in enumerate(self.features):
            x = block(x)
            if index in self.taps:
                taps.append(x)
        c3, c4, c5 = taps
        return c3, c4, c5


def build_backbone(network: Network) -> ResNet | MobileNetV2 | EfficientNet:
    """Return a network's backbone, of `layouts.BACKBONES`, with random weights."""
    layout = BACKBONES[network.backbone]
    if isinstance(layout, EfficientLayout):
        backbone = EfficientNet(layout, network)
        _initialise(backbone)
        return backbone
    return ResNet(layout, network) if isinstance(layout, ResNetLayout) else MobileNetV2(layout, network.width)


def _stage(network: Network, inputs: int, width: int, depth: int, *, stride: int) -> nn.Sequential:
    layout = BACKBONES[network.backbone]
    assert isinstance(layout, ResNetLayout)
    block = Bottleneck if layout.bottleneck else BasicBlock
    outputs = width * block.expansion
    downsample = None
    if stride != 1 or inputs != outputs:
        projection = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
        downsample = nn.Sequential(projection, make_norm(network.backbone_norm, outputs))
    blocks = [block(inputs, width, stride, downsample, network)]
    blocks += [block(outputs, width, 1, None, network) for _ in range(depth - 1)]
    return nn.Sequential(*blocks)


def _initialise(backbone: nn.Module) -> None:
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
