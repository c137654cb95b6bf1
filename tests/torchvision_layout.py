"""The parameters of torchvision's ResNets and RetinaNets by name, with random values.

Written after models/detection/retinanet.py, ops/feature_pyramid_network.py and models/resnet.py of torchvision 0.8
to 0.20. What the networks answer is held by the records of tests/training/importers/answers.
"""

import math

import torch

DEPTHS = {"resnet18": (2, 2, 2, 2), "resnet50": (3, 4, 6, 3)}


class Layout:
    """A state dict that is being written, with random weights that keep the scale of what flows through."""

    def __init__(self, seed=0):
        self.state = {}
        self.generator = torch.Generator().manual_seed(seed)

    def uniform(self, low, high, *shape):
        return low + (high - low) * torch.rand(shape, generator=self.generator)

    def conv(self, name, inputs, outputs, size, *, bias=False, groups=1, gain=2.0):
        fan = inputs // groups * size * size
        weight = torch.randn(outputs, inputs // groups, size, size, generator=self.generator)
        self.state[f"{name}.weight"] = weight * math.sqrt(gain / fan)
        if bias:
            self.state[f"{name}.bias"] = self.uniform(-0.2, 0.2, outputs)

    def norm(self, name, channels, *, tracked=True, low=0.5):
        self.state[f"{name}.weight"] = self.uniform(0.7, 1.0, channels)
        self.state[f"{name}.bias"] = self.uniform(-0.2, 0.2, channels)
        self.state[f"{name}.running_mean"] = self.uniform(-0.2, 0.2, channels)
        self.state[f"{name}.running_var"] = self.uniform(low, 1.5, channels)
        if tracked:
            self.state[f"{name}.num_batches_tracked"] = torch.tensor(7)


def resnet(layout, prefix, name="resnet50", *, width=64, groups=1, group_width=64, tracked=True, classifier=False):
    """Write a ResNet as torchvision.models.resnet names it."""
    layout.conv(f"{prefix}conv1", 3, width, 7)
    layout.norm(f"{prefix}bn1", width, tracked=tracked)
    inputs = width
    for stage, blocks in enumerate(DEPTHS[name], start=1):
        planes = width * 2 ** (stage - 1)
        outputs = planes * (4 if name == "resnet50" else 1)
        for block in range(blocks):
            here = f"{prefix}layer{stage}.{block}"
            if name == "resnet50":
                inner = planes * group_width // 64 * groups
                sizes = [(inputs, inner, 1, 1), (inner, inner, 3, groups), (inner, outputs, 1, 1)]
            else:
                sizes = [(inputs, planes, 3, 1), (planes, planes, 3, 1)]
            for number, (before, after, size, grouped) in enumerate(sizes, start=1):
                layout.conv(f"{here}.conv{number}", before, after, size, groups=grouped)
                layout.norm(f"{here}.bn{number}", after, tracked=tracked)
            if block == 0 and (stage > 1 or inputs != outputs):
                layout.conv(f"{here}.downsample.0", inputs, outputs, 1)
                layout.norm(f"{here}.downsample.1", outputs, tracked=tracked)
            inputs = outputs
    if classifier:
        layout.state[f"{prefix}fc.weight"] = layout.uniform(-1, 1, 1000, inputs)
        layout.state[f"{prefix}fc.bias"] = layout.uniform(-1, 1, 1000)


def retinanet(version, *, width=64, pyramid=256, classes=91, old_names=False, frozen=True, seed=0):
    """Return the state dict of retinanet_resnet50_fpn (1) or _v2 (2); `old_names` are those before 0.13."""
    layout = Layout(seed)
    resnet(layout, "backbone.body.", width=width, tracked=version == 2 or not frozen)
    place = "" if old_names else ".0"
    for kind, size in (("inner_blocks", 1), ("layer_blocks", 3)):
        for level, inputs in enumerate((8 * width, 16 * width, 32 * width)):
            inputs = inputs if size == 1 else pyramid
            layout.conv(f"backbone.fpn.{kind}.{level}{place}", inputs, pyramid, size, bias=True, gain=1)
    layout.conv(
        "backbone.fpn.extra_blocks.p6", pyramid if version == 1 else 32 * width, pyramid, 3, bias=True, gain=1
    )
    layout.conv("backbone.fpn.extra_blocks.p7", pyramid, pyramid, 3, bias=True)
    for head, output, channels in (("classification", "cls_logits", 9 * classes), ("regression", "bbox_reg", 36)):
        for number in range(4):
            name = f"head.{head}_head.conv.{2 * number}" if old_names else f"head.{head}_head.conv.{number}.0"
            layout.conv(name, pyramid, pyramid, 3, bias=version == 1)
            if version == 2:
                layout.state[f"head.{head}_head.conv.{number}.1.weight"] = layout.uniform(0.5, 1.5, pyramid)
                layout.state[f"head.{head}_head.conv.{number}.1.bias"] = layout.uniform(-0.2, 0.2, pyramid)
        gain = {"cls_logits": 0.5, "bbox_reg": 0.02}[output]
        layout.conv(f"head.{head}_head.{output}", pyramid, channels, 3, bias=True, gain=gain)
    return layout.state
