"""torchvision's RetinaNets restated in plain torch: their parameters by name, forward, and post-processing.

Written after torchvision's models/detection/retinanet.py, anchor_utils.py, ops/feature_pyramid_network.py and
models/resnet.py, from version 0.8 to 0.20, sharing nothing with our own network, anchors, decode or NMS.
"""

import math

import torch
from torch.nn import functional

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


def settle(state, prefix, images):
    """Give the norms of a ResNet the statistics that they would have learnt, so that no signal drowns."""
    features(state, prefix, images, eps=0.0, learn=True)


def features(state, prefix, images, *, eps, groups=1, learn=False):
    """Return C3, C4 and C5 of a ResNet."""

    def norm(name, x):
        if learn:
            state[f"{prefix}{name}.running_mean"] = x.mean(dim=(0, 2, 3))
            state[f"{prefix}{name}.running_var"] = x.var(dim=(0, 2, 3))
        part = [state[f"{prefix}{name}.{key}"] for key in ("running_mean", "running_var", "weight", "bias")]
        scale = part[2] * (part[1] + eps).rsqrt()  # FrozenBatchNorm2d
        return x * scale.view(1, -1, 1, 1) + (part[3] - part[0] * scale).view(1, -1, 1, 1)

    def conv(name, x, **how):
        return functional.conv2d(x, state[f"{prefix}{name}.weight"], **how)

    x = functional.relu(norm("bn1", conv("conv1", images, stride=2, padding=3)))
    x = functional.max_pool2d(x, 3, 2, 1)
    outputs = []
    for stage in (1, 2, 3, 4):
        block = 0
        while f"{prefix}layer{stage}.{block}.conv1.weight" in state:
            here, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            y = functional.relu(norm(f"{here}.bn1", conv(f"{here}.conv1", x)))
            y = conv(f"{here}.conv2", y, stride=stride, padding=1, groups=groups)
            y = functional.relu(norm(f"{here}.bn2", y))
            y = norm(f"{here}.bn3", conv(f"{here}.conv3", y))
            if f"{prefix}{here}.downsample.0.weight" in state:
                x = norm(f"{here}.downsample.1", conv(f"{here}.downsample.0", x, stride=stride))
            x = functional.relu(x + y)
            block += 1
        outputs.append(x)
    return outputs[1:]


def forward(state, images, *, version, old_names, eps):
    """Return (logits (B, HWA, K), deltas (B, HWA, 4)) a level."""

    def conv(name, x, **how):
        return functional.conv2d(x, state[f"{name}.weight"], state.get(f"{name}.bias"), **how)

    place = "" if old_names else ".0"
    c = features(state, "backbone.body.", images, eps=eps)
    inner = conv(f"backbone.fpn.inner_blocks.2{place}", c[2])
    levels = [conv(f"backbone.fpn.layer_blocks.2{place}", inner, padding=1)]
    for level in (1, 0):
        lateral = conv(f"backbone.fpn.inner_blocks.{level}{place}", c[level])
        inner = lateral + functional.interpolate(inner, size=lateral.shape[-2:], mode="nearest")
        levels.insert(0, conv(f"backbone.fpn.layer_blocks.{level}{place}", inner, padding=1))
    p6 = conv("backbone.fpn.extra_blocks.p6", levels[-1] if version == 1 else c[2], stride=2, padding=1)
    p7 = conv("backbone.fpn.extra_blocks.p7", functional.relu(p6), stride=2, padding=1)

    found = []
    for x in (*levels, p6, p7):
        pair = []
        for head, output, width in (("classification", "cls_logits", -1), ("regression", "bbox_reg", 4)):
            y = x
            for number in range(4):
                if old_names:
                    y = conv(f"head.{head}_head.conv.{2 * number}", y, padding=1)
                else:
                    y = conv(f"head.{head}_head.conv.{number}.0", y, padding=1)
                if version == 2:
                    scale, shift = (state[f"head.{head}_head.conv.{number}.1.{key}"] for key in ("weight", "bias"))
                    y = functional.group_norm(y, 32, scale, shift, 1e-5)
                y = functional.relu(y)
            y = conv(f"head.{head}_head.{output}", y, padding=1)
            batch, channels, height, columns = y.shape
            values = channels // 9 if width < 0 else width
            y = y.view(batch, -1, values, height, columns).permute(0, 3, 4, 1, 2)
            pair.append(y.reshape(batch, -1, values))
        found.append((*pair, x.shape[-2:]))
    return found


def anchors(image_size, grid, level):
    """Return the anchors of a level (HWA, 4), in torchvision's order."""
    side = 32 * 2**level
    sides = torch.tensor([side, int(side * 2 ** (1.0 / 3)), int(side * 2 ** (2.0 / 3))], dtype=torch.float32)
    h = torch.tensor([0.5, 1.0, 2.0]).sqrt()
    w = 1 / h
    ws, hs = (w[:, None] * sides[None]).view(-1), (h[:, None] * sides[None]).view(-1)
    base = (torch.stack([-ws, -hs, ws, hs], dim=1) / 2).round()
    steps = [image_size[axis] // grid[axis] for axis in (0, 1)]
    y, x = torch.meshgrid(torch.arange(grid[0]) * steps[0], torch.arange(grid[1]) * steps[1], indexing="ij")
    shifts = torch.stack([x.flatten(), y.flatten(), x.flatten(), y.flatten()], dim=1)
    return (shifts.view(-1, 1, 4) + base.view(1, -1, 4)).reshape(-1, 4)


def detections(levels, image_size):
    """Return (boxes, scores, labels) of the first picture, and how many candidates there were in each level."""
    boxes, scores, labels, counts = [], [], [], []
    for level, (logits, deltas, grid) in enumerate(levels):
        classes = logits.shape[-1]
        flat = torch.sigmoid(logits[0]).flatten()
        kept = torch.where(flat > 0.05)[0]
        counts.append(len(kept))
        best = flat[kept].topk(min(1000, len(kept)))
        index = kept[best.indices]
        anchor = anchors(image_size, grid, level)[index // classes]
        dx, dy, dw, dh = deltas[0][index // classes].unbind(1)
        width, height = anchor[:, 2] - anchor[:, 0], anchor[:, 3] - anchor[:, 1]
        centre_x, centre_y = anchor[:, 0] + 0.5 * width, anchor[:, 1] + 0.5 * height
        clip = math.log(1000.0 / 16)
        half_w = 0.5 * torch.exp(dw.clamp(max=clip)) * width
        half_h = 0.5 * torch.exp(dh.clamp(max=clip)) * height
        x, y = dx * width + centre_x, dy * height + centre_y
        box = torch.stack([x - half_w, y - half_h, x + half_w, y + half_h], dim=1)
        box[:, 0::2] = box[:, 0::2].clamp(0, image_size[1])
        box[:, 1::2] = box[:, 1::2].clamp(0, image_size[0])
        boxes.append(box)
        scores.append(best.values)
        labels.append(index % classes)
    box, score, label = torch.cat(boxes), torch.cat(scores), torch.cat(labels)
    order = score.argsort(descending=True)
    survivors: list[int] = []
    for index in order.tolist():
        rivals = [other for other in survivors if label[other] == label[index]]
        if not rivals or overlap(box[index][None], box[rivals]).max() <= 0.5:
            survivors.append(index)
    chosen = torch.tensor(survivors[:300], dtype=torch.int64)
    return box[chosen], score[chosen], label[chosen], counts


def overlap(first, second):
    """Return the IoU (N, M)."""
    low = torch.maximum(first[:, None, :2], second[None, :, :2])
    high = torch.minimum(first[:, None, 2:], second[None, :, 2:])
    inner = (high - low).clamp(min=0).prod(dim=2)
    sizes = [(each[:, 2:] - each[:, :2]).prod(dim=1) for each in (first, second)]
    return inner / (sizes[0][:, None] + sizes[1][None] - inner).clamp(min=1e-9)
