"""RetinaNet: a backbone, a pyramid and two small heads shared over the levels, built from a spec alone.

    model = RetinaNet(spec)
    for logits, deltas in model(images): ...     # a level each: (B, A*C, h, w) and (B, A*4, h, w)

The network ends at the raw heads: what makes boxes of them is training/postprocess.py in torch and the grafted
graph when served. https://arxiv.org/abs/1708.02002
"""

import math

from torch import Tensor, nn

from training.backbones import ResNet
from training.fpn import FeaturePyramid
from training.spec import DetectorSpec

PRIOR = 0.01  # the score of every anchor at the start, so that the many negatives don't drown the first steps


class RetinaNet(nn.Module):
    """The network of a spec; its outputs follow `spec.head_names`."""

    def __init__(self, spec: DetectorSpec) -> None:
        super().__init__()
        network = spec.network
        anchors = spec.anchors_per_cell
        self.backbone = ResNet(network.backbone, network.width)
        self.fpn = FeaturePyramid(self.backbone.channels, network.fpn_channels)
        self.cls_head = head(network.fpn_channels, network.head_depth, anchors * len(spec.classes))
        self.box_head = head(network.fpn_channels, network.head_depth, anchors * 4)
        bias = self.cls_head[-1].bias
        assert isinstance(bias, Tensor)
        nn.init.constant_(bias, -math.log((1 - PRIOR) / PRIOR))

    def forward(self, images: Tensor) -> tuple[tuple[Tensor, Tensor], ...]:
        """Return (class logits, box deltas) a level of normalised pictures (B, 3, H, W), any size from 32."""
        levels = self.fpn(self.backbone(images))
        return tuple((self.cls_head(level), self.box_head(level)) for level in levels)


def head(channels: int, depth: int, outputs: int) -> nn.Sequential:
    """Return `depth` 3x3 convolutions with ReLU and the output convolution, initialised as in the paper."""
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(inplace=True)]
    layers.append(nn.Conv2d(channels, outputs, 3, padding=1))
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return nn.Sequential(*layers)
