"""RetinaNet: a backbone, a pyramid and two small heads shared over the levels, built from a spec alone.

    model = RetinaNet(spec)
    for logits, deltas in model(images): ...     # a level each: (B, A*C, h, w) and (B, A*4, h, w)

The network ends at the raw heads: what makes boxes of them is training/postprocess.py in torch and the grafted
graph when served. https://arxiv.org/abs/1708.02002
"""

import math

from torch import Tensor, nn
from torch.nn import functional

from training.backbones import ResNet
from training.fpn import FeaturePyramid
from training.spec import DetectorSpec

PRIOR = 0.01  # the score of every anchor at the start, so that the many negatives don't drown the first steps


class RetinaNet(nn.Module):
    """The network of a spec; its outputs follow `spec.head_names`."""

    def __init__(self, spec: DetectorSpec) -> None:
        super().__init__()
        network, anchors, levels = spec.network, spec.anchors_per_cell, len(spec.strides)
        norm = network.norm == "batch"
        channels, depth = network.fpn_channels, network.head_depth
        self.backbone = ResNet(network.backbone, network.width)
        self.fpn = FeaturePyramid(self.backbone.channels, channels, norm=norm)
        self.cls_head = Head(channels, depth, anchors * len(spec.classes), norms=levels * norm)
        self.box_head = Head(channels, depth, anchors * 4, norms=levels * norm)
        assert self.cls_head.output.bias is not None
        nn.init.constant_(self.cls_head.output.bias, -math.log((1 - PRIOR) / PRIOR))

    def forward(self, images: Tensor) -> tuple[tuple[Tensor, Tensor], ...]:
        """Return (class logits, box deltas) a level of normalised pictures (B, 3, H, W), any size from 32."""
        levels = self.fpn(self.backbone(images))
        return tuple((self.cls_head(x, level), self.box_head(x, level)) for level, x in enumerate(levels))


class Head(nn.Module):
    """`depth` 3x3 convolutions with ReLU and an output convolution, the same for every level.

    With `norms` levels, each level has batch norms of its own between the shared convolutions: features of
    different levels have different statistics (https://arxiv.org/abs/1904.07392, section 4.1).
    """

    def __init__(self, channels: int, depth: int, outputs: int, *, norms: int = 0) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, padding=1, bias=not norms) for _ in range(depth)
        )
        self.norms = nn.ModuleList(
            nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(depth)) for _ in range(norms)
        )
        self.output = nn.Conv2d(channels, outputs, 3, padding=1)
        for convolution in (*self.convs, self.output):
            assert isinstance(convolution, nn.Conv2d)
            nn.init.normal_(convolution.weight, std=0.01)  # section 4.1 of the RetinaNet paper
            if convolution.bias is not None:
                nn.init.zeros_(convolution.bias)
            else:  # a norm behind it undoes any scale, so small weights would only mean large steps
                nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor, level: int) -> Tensor:
        """Return the maps of a level (B, outputs, h, w) from its features (B, channels, h, w)."""
        for index, convolution in enumerate(self.convs):
            x = convolution(x)
            if self.norms:
                x = self.norms[level][index](x)  # type: ignore[index]
            x = functional.relu(x)
        output: Tensor = self.output(x)
        return output
