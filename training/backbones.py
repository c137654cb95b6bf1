"""ResNet backbones whose parameter names are torchvision's, so its ImageNet weights load unchanged.

    backbone = ResNet("resnet18", width=32)
    c3, c4, c5 = backbone(images)     # strides 8, 16, 32; backbone.channels says how wide each is

The last three stages are given to the pyramid; there is no classifier. Bottlenecks stride in their 3x3
convolution, as torchvision's do ("ResNet v1.5"), and not in the first 1x1 of the paper.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut: ResNet18 and 34."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's features, at the stride it was made with."""
        shortcut = x if self.downsample is None else self.downsample(x)
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return torch.relu(y + shortcut)


class Bottleneck(nn.Module):
    """1x1 down, 3x3, 1x1 up around a shortcut: ResNet50, 101 and 152."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, width * self.expansion, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's features, at the stride it was made with."""
        shortcut = x if self.downsample is None else self.downsample(x)
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return torch.relu(y + shortcut)


# Blocks of the four stages (https://arxiv.org/abs/1512.03385, table 1).
STAGES: Mapping[str, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, int, int, int]]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
    "resnet101": (Bottleneck, (3, 4, 23, 3)),
    "resnet152": (Bottleneck, (3, 8, 36, 3)),
}


class ResNet(nn.Module):
    """A ResNet without its classifier; `width` is the number of the stem's channels, 64 as published."""

    def __init__(self, name: str, width: int = 64) -> None:
        super().__init__()
        block, depths = STAGES[name]
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        outputs = [width * 2**stage * block.expansion for stage in range(4)]
        self.layer1 = _stage(block, width, width, depths[0], stride=1)
        self.layer2 = _stage(block, outputs[0], width * 2, depths[1], stride=2)
        self.layer3 = _stage(block, outputs[1], width * 4, depths[2], stride=2)
        self.layer4 = _stage(block, outputs[2], width * 8, depths[3], stride=2)
        self.channels = (outputs[1], outputs[2], outputs[3])
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return C3, C4 and C5 of normalised pictures (B, 3, H, W); every stride of 2 rounds up."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        c3 = self.layer2(self.layer1(x))
        c4 = self.layer3(c3)
        return c3, c4, self.layer4(c4)


def _stage(
    block: type[BasicBlock] | type[Bottleneck], inputs: int, width: int, depth: int, *, stride: int
) -> nn.Sequential:
    outputs = width * block.expansion
    downsample = None
    if stride != 1 or inputs != outputs:
        downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
    blocks = [block(inputs, width, stride, downsample)]
    blocks += [block(outputs, width, 1, None) for _ in range(depth - 1)]
    return nn.Sequential(*blocks)
