"""The backbones that a network can have, as their papers' tables have them.

BACKBONES["resnet18"].blocks    # (2, 2, 2, 2); model/backbones.py builds them
"""

from collections.abc import Mapping
from dataclasses import dataclass

PUBLISHED_WIDTH = 64  # of Network: layouts of fixed channels scale with it


@dataclass(frozen=True)
class ResNetLayout:
    """A ResNet or, with groups, a ResNeXt: https://arxiv.org/abs/1512.03385, https://arxiv.org/abs/1611.05431."""

    blocks: tuple[int, int, int, int]  # of the four stages
    bottleneck: bool = True
    groups: int = 1
    group_width: int = 64  # channels of a group in the first stage
    stem: int = 7  # kernel of the first convolution
    pool: bool = True  # behind it; without one it has half the channels, and the first stage strides


@dataclass(frozen=True)
class MobileNetLayout:
    """A MobileNetV2: https://arxiv.org/abs/1801.04381, table 2."""

    stages: tuple[tuple[int, int, int, int], ...]  # expansion, channels, blocks, first stride
    taps: tuple[int, int, int]  # the last blocks of strides 8, 16 and 32


# kernel, expansion, channels, blocks, first stride, whether it squeezes
EfficientRow = tuple[int, float, int, int, int, bool]


@dataclass(frozen=True)
class EfficientLayout:
    """An EfficientNet (https://arxiv.org/abs/1905.11946, table 1) or MobileNetV3 (1905.02244, table 1)."""

    rows: tuple[EfficientRow, ...]
    stem: int
    top: int  # channels behind the last row
    taps: tuple[int, ...]  # layers as torchvision numbers them: the last of strides 8, 16 and 32
    hard: bool  # MobileNetV3's activations


# What --backbone can name. Another ResNet is a line here; another architecture is a layout here, with a class in
# model/backbones.py that builds it.
BACKBONES: Mapping[str, ResNetLayout | MobileNetLayout | EfficientLayout] = {
    "resnet18": ResNetLayout((2, 2, 2, 2), bottleneck=False),
    "resnet34": ResNetLayout((3, 4, 6, 3), bottleneck=False),
    "resnet50": ResNetLayout((3, 4, 6, 3)),
    "resnet101": ResNetLayout((3, 4, 23, 3)),
    "resnet152": ResNetLayout((3, 8, 36, 3)),
    "resnext50_32x4d": ResNetLayout((3, 4, 6, 3), groups=32, group_width=4),
    "resnext101_32x4d": ResNetLayout((3, 4, 23, 3), groups=32, group_width=4),
    "resnext101_32x8d": ResNetLayout((3, 4, 23, 3), groups=32, group_width=8),
    "resnext101_64x4d": ResNetLayout((3, 4, 23, 3), groups=64, group_width=4),
    "wide_resnet50_2": ResNetLayout((3, 4, 6, 3), group_width=128),
    "wide_resnet101_2": ResNetLayout((3, 4, 23, 3), group_width=128),
    "mobilenet_v2": MobileNetLayout(
        stages=(
            (1, 16, 1, 1),
            (6, 24, 2, 2),
            (6, 32, 3, 2),
            (6, 64, 4, 2),
            (6, 96, 3, 1),
            (6, 160, 3, 2),
            (6, 320, 1, 1),
        ),
        taps=(6, 13, 17),
    ),
    "mobilenet_v3_large": EfficientLayout(
        rows=(
            (3, 1, 16, 1, 1, False),
            (3, 4, 24, 1, 2, False),
            (3, 3, 24, 1, 1, False),
            (5, 3, 40, 3, 2, True),
            (3, 6, 80, 1, 2, False),
            (3, 2.5, 80, 1, 1, False),
            (3, 2.3, 80, 2, 1, False),
            (3, 6, 112, 2, 1, True),
            (5, 6, 160, 3, 2, True),
        ),
        stem=16,
        top=960,
        taps=(6, 12, 15),
        hard=True,
    ),
    "efficientnet_b0": EfficientLayout(
        rows=(
            (3, 1, 16, 1, 1, True),
            (3, 6, 24, 2, 2, True),
            (5, 6, 40, 2, 2, True),
            (3, 6, 80, 3, 2, True),
            (5, 6, 112, 3, 1, True),
            (5, 6, 192, 4, 2, True),
            (3, 6, 320, 1, 1, True),
        ),
        stem=32,
        top=1280,
        taps=(3, 5, 7),
        hard=False,
    ),
    # Made for CPUs: maps of half the input's side are few and narrow, but without them small shapes look alike.
    "fast-n": ResNetLayout((1, 1, 1, 1), bottleneck=False, stem=3, pool=False),
}
