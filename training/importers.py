"""Public weights become checkpoints: torchvision's RetinaNets and backbones, and the predecessor's detectors.

    detector = import_torchvision(content, size=(1024, 1024))
    save(path, Checkpoint(detector.spec, detector.weights))

Weights are renamed, never changed, but for two things: the class convolution loses the outputs of categories that
don't exist, and scales of batch norms take up a different epsilon. Boxes come out as the original's own, because
their anchors are stored as a table. Nothing is downloaded and torchvision is not needed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from retinaserve.training.anchors import FloatArray
from retinaserve.training.checkpoint import Backbone
from retinaserve.training.coco import COCO_NAMES
from retinaserve.training.errors import UserError
from retinaserve.training.model import build_model
from retinaserve.training.spec import BACKBONES, STRIDES, DetectorSpec, Network, ResNetLayout, anchor_rows

Weights = dict[str, Tensor]
Categories = Mapping[int, str]  # id: name, in the order of the annotation file

EPS = 1e-5  # of every norm in torch and here
# torchvision's COCO_V1 was trained with norms without an epsilon (torchvision sets it to 0 when it loads them).
FROZEN_EPS = 0.0
TORCHVISION_CLASSES = 91  # COCO's ids up to 90 as they are: outputs for the background and for unused ids
TORCHVISION_DETECTIONS = 300
TORCHVISION_NEEDS = {
    "backbone.fpn.extra_blocks.p6.weight",
    "backbone.fpn.extra_blocks.p7.weight",
    "head.classification_head.cls_logits.weight",
    "head.classification_head.cls_logits.bias",
    "head.regression_head.bbox_reg.weight",
}
TORCHVISION_SIZES = (32, 64, 128, 256, 512)
ODTK_CLASSES = 80
ODTK_CONVENTIONS = ("current", "legacy")
ODTK_BACKBONES: Mapping[str, str] = {
    "ResNet18FPN": "resnet18",
    "ResNet34FPN": "resnet34",
    "ResNet50FPN": "resnet50",
    "ResNet101FPN": "resnet101",
    "ResNet152FPN": "resnet152",
    "ResNeXt50_32x4dFPN": "resnext50_32x4d",
    "ResNeXt101_32x8dFPN": "resnext101_32x8d",
    "MobileNetV2FPN": "mobilenet_v2",
}
ODTK_PYRAMID: Mapping[str, str] = {
    **{f"lateral{level}": f"fpn.laterals.{level - 3}" for level in (3, 4, 5)},
    **{f"smooth{level}": f"fpn.smooth.{level - 3}" for level in (3, 4, 5)},
    "pyramid6": "fpn.p6",
    "pyramid7": "fpn.p7",
}
UNUSED = ("fc.", "classifier.", "features.18.")  # what a backbone has behind its last stage


@dataclass(frozen=True, eq=False)
class Imported:
    """A detector of this project, and what was decided on the way, in sentences."""

    spec: DetectorSpec
    weights: Weights
    notes: tuple[str, ...]


def import_torchvision(
    content: object, *, size: tuple[int, int], categories: Categories | None = None, eps: float | None = None
) -> Imported:
    """Return a state dict of retinanet_resnet50_fpn or _v2, of any ResNet and any number of classes.

    categories: whose id is the output's number; COCO's where not given. eps: of the backbone's norms; not given,
    it is 0 for frozen norms of 91 classes (torchvision's COCO_V1), else 1e-5. Raises UserError for other files.
    """
    state = _torchvision_names(_state_dict(content))
    if not state.keys() >= TORCHVISION_NEEDS:
        raise _not("a RetinaNet of torchvision", state)
    body = {
        name.removeprefix("backbone.body."): value for name, value in state.items() if "backbone.body." in name
    }
    backbone, width = recognise_backbone(body)
    pyramid = state["backbone.fpn.extra_blocks.p7.weight"].shape[0]
    p6_inputs = state["backbone.fpn.extra_blocks.p6.weight"].shape[1]
    depth = sum(name.startswith("head.regression_head.conv.") and name.endswith(".0.weight") for name in state)
    normed = "head.classification_head.conv.0.1.weight" in state
    table = torchvision_anchors()
    outputs, anchors = state["head.classification_head.cls_logits.weight"].shape[0], table.shape[1]
    if state["head.regression_head.bbox_reg.weight"].shape[0] != 4 * anchors or outputs % anchors:
        raise UserError("the weights have other anchors than torchvision's own", f"{anchors} a cell are expected")
    classes = outputs // anchors
    categories = categories or (COCO_NAMES if classes == TORCHVISION_CLASSES else _numbered(classes - 1))
    beyond = [number for number in categories if not 0 <= number < classes]
    if beyond:
        raise UserError(
            f"category {beyond[0]} ({categories[beyond[0]]}) has no output: the weights have {classes}",
            "torchvision's labels are the category ids, and 0 is the background",
        )
    if eps is None:
        frozen = not any(name.endswith("num_batches_tracked") for name in body)
        eps = FROZEN_EPS if frozen and classes == TORCHVISION_CLASSES else EPS

    weights: Weights = {f"backbone.{name}": value for name, value in with_eps(body, eps).items()}
    for name, value in state.items():
        if not name.startswith("backbone.body."):
            weights[_renamed(_torchvision_name, name)] = value
    for part in ("weight", "bias"):
        key = f"cls_head.output.{part}"
        weights[key] = _select_classes(weights[key], classes, tuple(categories))
    network = Network(
        backbone,
        width,
        pyramid,
        depth,
        norm="group" if normed else "none",
        p6_from="p5" if p6_inputs == pyramid else "c5",  # torchvision's own rule
        pyramid_norm=not normed,
    )
    spec = DetectorSpec(
        tuple(categories.values()),
        tuple(categories),
        size,
        anchor_rows(table),
        network,
        max_detections=TORCHVISION_DETECTIONS,
    )
    notes = (
        f"torchvision RetinaNet with {backbone}, {'v2: group norms in the heads' if normed else 'v1'}, "
        f"P6 from {network.p6_from.upper()}, epsilon of the norms {eps:g}",
        f"{len(categories)} of {classes} outputs kept: the others are the background and ids without a category",
    )
    return _checked(spec, weights, notes)


def import_odtk(
    content: object, *, size: tuple[int, int], convention: str = "current", categories: Categories | None = None
) -> Imported:
    """Return a .pth of NVIDIA's retinanet-examples (ODTK).

    convention: of the anchors, which the file doesn't say: "legacy" for weights trained before March 2020 (the
    published ones of 19.04), "current" for later ones. categories: in the order of the annotation file they were
    trained on; COCO's for 80 classes where not given. Raises UserError for other files and for rotated boxes.
    """
    needed = {"backbone", "classes", "state_dict"}
    if not isinstance(content, Mapping) or not needed <= content.keys():
        raise _not("a checkpoint of the predecessor (odtk)", content)
    if "angles" in content:
        raise UserError("the weights are for rotated boxes", "only upright boxes are supported")
    names = [content["backbone"]] if isinstance(content["backbone"], str) else list(content["backbone"])
    if len(names) != 1 or names[0] not in ODTK_BACKBONES:
        raise UserError(f"backbone {', '.join(names)} is not supported", f"one of: {', '.join(ODTK_BACKBONES)}")
    count = int(content["classes"])
    categories = categories or (COCO_NAMES if count == ODTK_CLASSES else _numbered(count))
    if len(categories) != count:
        raise UserError(
            f"the weights have {count} classes, the annotation file {len(categories)}",
            "the file that they were trained on is expected: classes follow the order of its categories",
        )
    table = odtk_anchors(
        convention,
        ratios=content.get("ratios", (1.0, 2.0, 0.5)),
        scales=content.get("scales", tuple(4 * 2 ** (third / 3) for third in range(3))),
    )
    weights: Weights = {}
    for name, value in _without_prefix(content["state_dict"], "module.").items():
        inner = name.removeprefix(f"backbones.{names[0]}.")
        if not inner.startswith(tuple(f"features.{part}" for part in UNUSED)):
            weights[_renamed(_odtk_name, inner)] = value
    backbone = {name.removeprefix("backbone."): value for name, value in weights.items() if "backbone." in name}
    _, width = recognise_backbone(backbone)
    spec = DetectorSpec(
        tuple(categories.values()),
        tuple(categories),
        size,
        anchor_rows(table),
        Network(ODTK_BACKBONES[names[0]], width, _pyramid_width(weights), norm="none"),
    )
    note = f"predecessor's {names[0]}, {count} classes, {convention} anchors"
    return _checked(spec, _with_counters(weights), (note,))


def import_backbone(content: object) -> Backbone:
    """Return a state dict of a torchvision ResNet, ResNeXt or MobileNetV2, less its classifier."""
    state = {name: value for name, value in _state_dict(content).items() if not name.startswith(UNUSED)}
    name, width = recognise_backbone(state)
    return Backbone(name, width, with_eps(state, EPS))


def recognise_backbone(state: Mapping[str, Tensor]) -> tuple[str, int]:
    """Return the name and the width of a backbone by its parameters. Raises UserError for another's."""
    if "features.0.0.weight" in state and "features.17.conv.3.weight" in state:
        return "mobilenet_v2", 2 * state["features.0.0.weight"].shape[0]
    depths = tuple(
        len({name.split(".")[1] for name in state if name.startswith(f"layer{stage}.")}) for stage in (1, 2, 3, 4)
    )
    if not all(depths) or not {"conv1.weight", "layer1.0.conv2.weight"} <= state.keys():
        raise _not("a ResNet, ResNeXt or MobileNetV2 of torchvision", state)
    width, inner = state["conv1.weight"].shape[0], state["layer1.0.conv2.weight"]
    groups = inner.shape[0] // inner.shape[1]
    bottleneck = "layer1.0.conv3.weight" in state
    for name, layout in BACKBONES.items():
        if isinstance(layout, ResNetLayout):
            channels = layout.groups * max(1, width * layout.group_width // 64)
            found = (depths, bottleneck, groups, inner.shape[0])
            if found == (layout.blocks, layout.bottleneck, layout.groups, channels):
                return name, width
    raise UserError(
        f"a ResNet with stages of {depths} blocks, {groups} groups and {inner.shape[0]} channels is not supported",
        f"one of: {', '.join(BACKBONES)}",
    )


def torchvision_anchors(sizes: Sequence[int] = TORCHVISION_SIZES) -> FloatArray:
    """Return torchvision's anchors (levels, 9, 4): centred on the cell's corner, rounded, ratio-major."""
    levels = []
    for side in sizes:
        sides = torch.tensor([side, int(side * 2 ** (1 / 3)), int(side * 2 ** (2 / 3))], dtype=torch.float32)
        heights = torch.tensor([0.5, 1.0, 2.0]).sqrt()
        w = ((1 / heights)[:, None] * sides[None, :]).flatten()
        h = (heights[:, None] * sides[None, :]).flatten()
        levels.append((torch.stack((-w, -h, w, h), dim=1) / 2).round())
    table: FloatArray = torch.stack(levels).numpy()
    return table


def odtk_anchors(convention: str, *, ratios: Sequence[float], scales: Sequence[float]) -> FloatArray:
    """Return the predecessor's anchors (levels, A, 4), scale-major, as half-open boxes.

    It counts a box's last pixel as inside: its x2 is one less, its widths are x2 - x1 + 1. So the
    current anchors measure a pixel more than their nominal size, and the legacy ones, rounded, exactly it.
    """
    if convention not in ODTK_CONVENTIONS:
        raise UserError(f"anchors {convention!r} are not known", f"one of: {', '.join(ODTK_CONVENTIONS)}")
    legacy = convention == "legacy"
    scale = torch.tensor(list(scales)).repeat_interleave(len(ratios))
    ratio = torch.tensor(list(ratios)).repeat(len(scales))
    levels = []
    for stride in STRIDES:
        w = (stride * stride / ratio).sqrt()
        w = w.round() if legacy else w
        h = (w * ratio).round() if legacy else w * ratio
        size = torch.stack((w, h), dim=1) * scale[:, None]
        last = (stride + size) / 2 - (1 if legacy else 0)  # the last pixel
        levels.append(torch.cat(((stride - size) / 2, last + 1), dim=1))
    table: FloatArray = torch.stack(levels).numpy()
    return table


def with_eps(state: Mapping[str, Tensor], eps: float) -> Weights:
    """Return a backbone's weights so that its norms answer with our epsilon what they did with `eps`."""
    weights = dict(state)
    if eps != EPS:
        for name, variance in state.items():
            if name.endswith(".running_var"):
                scale = name.replace("running_var", "weight")
                ratio = ((variance.double() + EPS) / (variance.double() + eps)).sqrt()
                weights[scale] = (state[scale].double() * ratio).float()
    return _with_counters(weights)


def _with_counters(weights: Weights) -> Weights:
    """Add the batch counters that frozen norms have not."""
    counters = {
        name.replace("running_var", "num_batches_tracked"): torch.tensor(0)
        for name in weights
        if name.endswith(".running_var")
    }
    return {**counters, **weights}


def _state_dict(content: object) -> Weights:
    """Return the tensors of a file, which may have them beside other things."""
    if isinstance(content, Mapping):
        for key in ("model", "state_dict"):  # torchvision's training script, and custom
            if isinstance(content.get(key), Mapping):
                content = content[key]
                break
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise _not("a state dict of torchvision", content)
    return _without_prefix(content, "module.")


def _without_prefix(state: Mapping[str, Tensor], prefix: str) -> Weights:
    return {str(name).removeprefix(prefix): value for name, value in state.items()}


def _torchvision_names(state: Weights) -> Weights:
    """Rename as torchvision itself does when it loads weights from before its version 0.13."""
    renamed = {}
    plain = "head.classification_head.conv.0.weight" in state
    for name, value in state.items():
        parts = name.split(".")
        if plain and parts[0] == "head" and parts[2] == "conv":
            parts[3:4] = [str(int(parts[3]) // 2), "0"]  # a ReLU stood behind every convolution
        if parts[:2] == ["backbone", "fpn"] and parts[2] != "extra_blocks" and len(parts) == 5:
            parts.insert(4, "0")
        renamed[".".join(parts)] = value
    return renamed


def _torchvision_name(name: str) -> str:
    """Return our name of one of torchvision's parameters outside its backbone."""
    parts = name.split(".")
    if parts[0] == "backbone":
        if parts[2] == "extra_blocks":
            return f"fpn.{parts[3]}.{parts[4]}"
        block = {"inner_blocks": "laterals", "layer_blocks": "smooth"}[parts[2]]
        return f"fpn.{block}.{parts[3]}.{parts[5]}"
    head = {"classification_head": "cls_head", "regression_head": "box_head"}[parts[1]]
    if parts[2] != "conv":
        return f"{head}.output.{parts[3]}"
    place = {"0": f"convs.{parts[3]}", "1": f"norms.0.{parts[3]}"}[parts[4]]
    return f"{head}.{place}.{parts[5]}"


def _odtk_name(name: str) -> str:
    """Return our name of one of the predecessor's parameters, given without the name of its backbone."""
    first, _, rest = name.partition(".")
    if first in ("cls_head", "box_head"):
        layer, part = rest.split(".")
        return f"{first}.output.{part}" if layer == "8" else f"{first}.convs.{int(layer) // 2}.{part}"
    if first == "features":
        return f"backbone.{rest}"
    return f"{ODTK_PYRAMID[first]}.{rest}"


def _renamed(rule: Callable[[str], str], name: str) -> str:
    try:
        return rule(name)
    except (KeyError, IndexError, ValueError):
        raise UserError(
            f"the weights have an unexpected {name!r}", "those of a plain RetinaNet are expected"
        ) from None


def _numbered(count: int) -> Categories:
    return {number: f"class {number}" for number in range(1, count + 1)}


def _select_classes(value: Tensor, classes: int, kept: Sequence[int]) -> Tensor:
    # (A*C, ...) -> (A, C, ...) -> (A*kept, ...)
    return value.reshape(-1, classes, *value.shape[1:])[:, list(kept)].flatten(0, 1)


def _pyramid_width(weights: Weights) -> int:
    if "fpn.p7.weight" not in weights:
        raise UserError("the weights have no pyramid", "a plain detector of the predecessor is expected")
    return weights["fpn.p7.weight"].shape[0]


def _checked(spec: DetectorSpec, weights: Weights, notes: tuple[str, ...]) -> Imported:
    """Return the detector if its weights are those of its network, to the last."""
    with torch.device("meta"):
        expected = build_model(spec).state_dict()
    for name in (*expected, *weights):
        if name not in weights or name not in expected:
            problem = "lack" if name in expected else "have an unexpected"
            raise UserError(
                f"the weights {problem} {name!r}", f"{spec.network.backbone} of torchvision is expected"
            )
        if weights[name].shape != expected[name].shape:
            raise UserError(
                f"{name!r} measures {tuple(weights[name].shape)}", f"{tuple(expected[name].shape)} is expected"
            )
    plain = {name: value.detach().to(expected[name].dtype).clone() for name, value in weights.items()}
    return Imported(spec, {name: plain[name] for name in expected}, notes)


def _not(what: str, content: object) -> UserError:
    found = "nothing with names"
    if isinstance(content, Mapping):
        found = ", ".join(str(name) for name in list(content)[:3]) + (", ..." if len(content) > 3 else "")
    return UserError(f"not {what}: it holds {found}", "see `retinaserve import --help` for what can be read")
