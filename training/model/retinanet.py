"""RetinaNet: a backbone, a feature pyramid and two small heads shared over the levels, built from a spec alone.

    model = RetinaNet(spec)
    for logits, deltas in model(images): ...     # a level each: (B, A*C, h, w) and (B, A*4, h, w)

The network ends at the raw heads. RetinaNet: https://arxiv.org/abs/1708.02002; the pyramid P3 to P7:
https://arxiv.org/abs/1612.03144, with RetinaNet's two levels on top.
"""

import math
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from retinaserve.training.model.backbones import SameConv2d, build_backbone, make_norm
from retinaserve.training.spec import DetectorSpec, Network

SMALLEST = 1e-6  # box, in anchors
PRIOR = 0.01  # the score of every anchor at the start, so that the many negatives don't drown the first steps


class RetinaNet(nn.Module):
    """The network of a spec; its outputs follow `spec.head_names`."""

    def __init__(self, spec: DetectorSpec) -> None:
        super().__init__()
        network, anchors, levels = spec.network, spec.anchors_per_cell, len(spec.strides)
        channels, depth, norm = network.fpn_channels, network.head_depth, network.norm
        self.spec = spec
        self.frozen_stages = 0
        self.backbone = build_backbone(network)
        self.fpn = FeaturePyramid(self.backbone.channels, network)
        shared = depth if network.towers == "one" else 0
        self.tower = Tower(channels, shared, norm=norm, levels=levels)
        self.tower.initialise()
        rest = depth - shared
        self.cls_head = Head(channels, rest, anchors * len(spec.classes), norm=norm, levels=levels)
        self.box_head = Head(channels, rest, anchors * 4, norm=norm, levels=levels)
        assert self.cls_head.output.bias is not None
        nn.init.constant_(self.cls_head.output.bias, -math.log((1 - PRIOR) / PRIOR))
        if network.growth == "linear":
            assert self.box_head.output.bias is not None
            nn.init.constant_(self.box_head.output.bias.view(-1, 4)[:, 2:], 1.0)  # an anchor's own size

    def forward(self, images: Tensor) -> tuple[tuple[Tensor, Tensor], ...]:
        """Return (class logits, box deltas) a level of normalised images (B, 3, H, W), any size from 32."""
        levels = [self.tower(x, level) for level, x in enumerate(self.fpn(self.backbone(images)))]
        size = images.shape[-2:]
        return tuple(
            (self.cls_head(x, level), self._deltas(self.box_head(x, level), level, size))
            for level, x in enumerate(levels)
        )

    def _deltas(self, outputs: Tensor, level: int, size: Sequence[int]) -> Tensor:
        """Return the box outputs (B, A*4, h, w) as deltas dx, dy, dw, dh of the spec's anchors."""
        network = self.spec.network
        if network.growth == "linear":
            grown = outputs.new_tensor((False, False, True, True), dtype=torch.bool)
            grown = grown.repeat(self.spec.anchors_per_cell)[:, None, None]  # (A*4, 1, 1)
            outputs = torch.where(grown, outputs.clamp(min=SMALLEST).log(), outputs)
        stride = self.spec.strides[level]
        rows, columns = outputs.shape[-2:]
        down, across = size[0] // rows - stride, size[1] // columns - stride
        rule = self.spec.resizing
        # Where canvases differ, one graph stands for multiples of the stride and for other sides.
        off = (down, across) != (0, 0) if rule.fixed else bool(rule.multiple % stride)
        if network.grid == "size" and off:
            table = outputs.new_tensor(self.spec.anchors[level])
            # What a cell's centre is off by, in anchors.
            width, height = (table[:, 2:] - table[:, :2])[:, :, None, None].unbind(1)  # (A, 1, 1) each
            x, y = torch.arange(columns).to(outputs), torch.arange(rows).to(outputs)
            none = outputs.new_zeros(len(table), rows, columns)
            dx = across * x / width + none
            dy = down * y[:, None] / height + none
            # (A, 4, h, w) -> (A*4, h, w)
            outputs = outputs + torch.stack((dx, dy, none, none), dim=1).flatten(0, 1)
        return outputs

    def freeze(self, stages: int) -> None:
        """Keep the backbone's first `stages` as they are: 0 none, 1 the stem, 5 all of it. There is no thawing."""
        self.frozen_stages = stages
        for stage in self.backbone.stages[:stages]:
            for module in stage:
                module.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Switch to training; frozen stages stay as at inference, so that their batch norms keep still too."""
        super().train(mode)
        for stage in self.backbone.stages[: self.frozen_stages]:
            for module in stage:
                module.eval()
        return self


class Tower(nn.Module):
    """`depth` 3x3 convolutions with ReLU, the same for every level.

    With norm "batch" each level has norms of its own between the shared convolutions: features of different
    levels have different statistics (https://arxiv.org/abs/1904.07392, section 4.1). Group norms keep none, and
    are shared.
    """

    def __init__(self, channels: int, depth: int, *, norm: str = "none", levels: int = 1) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, padding=1, bias=norm == "none") for _ in range(depth)
        )
        sets = {"none": 0, "batch": levels, "group": 1}[norm] if depth else 0
        self.norms = nn.ModuleList(
            nn.ModuleList(make_norm(norm, channels) for _ in range(depth)) for _ in range(sets)
        )

    def initialise(self) -> None:
        """Draw the weights."""
        for convolution in self.modules():
            if not isinstance(convolution, nn.Conv2d):
                continue
            nn.init.normal_(convolution.weight, std=0.01)  # section 4.1 of the RetinaNet paper
            if convolution.bias is not None:
                nn.init.zeros_(convolution.bias)
            else:  # a norm behind it undoes any scale, so small weights would only mean large steps
                nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor, level: int) -> Tensor:
        """Return the features of a level (B, channels, h, w), of the same shape."""
        for index, convolution in enumerate(self.convs):
            x = convolution(x)
            if self.norms:
                x = self.norms[min(level, len(self.norms) - 1)][index](x)  # type: ignore[index]
            x = functional.relu(x)
        return x


class Head(Tower):
    """A tower and an output convolution."""

    def __init__(self, channels: int, depth: int, outputs: int, *, norm: str = "none", levels: int = 1) -> None:
        super().__init__(channels, depth, norm=norm, levels=levels)
        self.output = nn.Conv2d(channels, outputs, 3, padding=1)
        self.initialise()

    def forward(self, x: Tensor, level: int) -> Tensor:
        """Return the maps of a level (B, outputs, h, w) from its features (B, channels, h, w)."""
        output: Tensor = self.output(super().forward(x, level))
        return output


class FeaturePyramid(nn.Module):
    """Laterals of the backbone's features, added from the top down and smoothed, and one or two coarser levels.

    A network's `norm` is put behind every convolution. P6 is made from C5, as in the RetinaNet paper, or from P5,
    as in Detectron's and torchvision's first models, and P7 from P6; or P6 is pooled from P5, and there is no P7.
    """

    def __init__(self, inputs: Sequence[int], network: Network) -> None:
        super().__init__()
        channels, norm = network.fpn_channels, network.norm if network.pyramid_norm else "none"
        self.network = network
        self.laterals = nn.ModuleList(_convolution(width, channels, 1, 1, norm) for width in inputs)
        self.smooth = nn.ModuleList(_convolution(channels, channels, 3, 1, norm) for _ in inputs)
        if network.p6_from in ("c5", "p5"):
            top = inputs[-1] if network.p6_from == "c5" else channels
            self.p6 = _convolution(top, channels, 3, 2, norm, network.padding)
            self.p7 = _convolution(channels, channels, 3, 2, norm, network.padding)

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return the levels, finest first, each half as large as the one before, rounded up."""
        merged = [lateral(feature) for lateral, feature in zip(self.laterals, features, strict=True)]
        for level in reversed(range(len(merged) - 1)):
            # To the lateral's own size: twice the coarser one is a row too many where a stride rounded up.
            size = merged[level].shape[-2:]
            merged[level] = merged[level] + functional.interpolate(merged[level + 1], size=size, mode="nearest")
        levels = [smooth(level) for smooth, level in zip(self.smooth, merged, strict=True)]
        if self.network.p6_from == "none":
            return tuple(levels)
        if self.network.p6_from == "pool":
            return (*levels, functional.max_pool2d(levels[-1], 1, 2))
        p6 = self.p6(features[-1] if self.network.p6_from == "c5" else levels[-1])
        return (*levels, p6, self.p7(functional.relu(p6) if self.network.p7_relu else p6))


def _convolution(
    inputs: int, outputs: int, size: int, stride: int, norm: str, padding: str = "symmetric"
) -> nn.Module:
    kind = SameConv2d if padding == "same" else nn.Conv2d
    convolution = kind(inputs, outputs, size, stride, size // 2, bias=norm == "none")
    nn.init.kaiming_uniform_(convolution.weight, a=1)
    if norm != "none":
        return nn.Sequential(convolution, make_norm(norm, outputs))
    assert convolution.bias is not None
    nn.init.zeros_(convolution.bias)
    return convolution
