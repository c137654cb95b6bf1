"""A small detector with random weights that finds plenty in a checkerboard and nothing in a flat picture."""

import torch
from torch import nn

from training.model import RetinaNet
from training.spec import DetectorSpec

CLASSES, CATEGORY_IDS = ("disc", "box", "étoile filante"), (1, 5, 9)


def toy_spec() -> DetectorSpec:
    """Return a spec whose height, width, classes and category ids are all different numbers."""
    return DetectorSpec.create(
        CLASSES,
        category_ids=CATEGORY_IDS,
        size=(128, 192),
        backbone="resnet18",
        width=8,
        fpn_channels=16,
        head_depth=1,
    )


def toy_model(spec: DetectorSpec) -> RetinaNet:
    """Return the network with weights chosen so that scores spread around the threshold."""
    torch.manual_seed(0)
    model = RetinaNet(spec).eval()
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d) and layer.bias is not None:
            nn.init.kaiming_normal_(layer.weight)
    with torch.no_grad():
        model.cls_head.output.weight.mul_(0.08)
        model.cls_head.output.bias.sub_(1)
        model.box_head.output.weight.mul_(0.3)
    return model
