"""The predecessor's detectors: a .pth of NVIDIA's retinanet-examples (ODTK).

detector = import_odtk(found, Choices(convention="legacy"))
"""

from collections.abc import Mapping, Sequence

import torch

from retinaserve.training.anchors import FloatArray
from retinaserve.training.errors import UserError
from retinaserve.training.importers.parts import (
    UNLIMITED,
    Choices,
    Found,
    Imported,
    assemble,
    clip_of,
    named,
    recognise_backbone,
    renamed,
)
from retinaserve.training.spec import STRIDES, DetectorSpec, Network, anchor_rows

BACKBONES: Mapping[str, str] = {
    "ResNet18FPN": "resnet18",
    "ResNet34FPN": "resnet34",
    "ResNet50FPN": "resnet50",
    "ResNet101FPN": "resnet101",
    "ResNet152FPN": "resnet152",
    "ResNeXt50_32x4dFPN": "resnext50_32x4d",
    "ResNeXt101_32x8dFPN": "resnext101_32x8d",
    "MobileNetV2FPN": "mobilenet_v2",
}
PYRAMID: Mapping[str, str] = {
    **{f"lateral{level}": f"fpn.laterals.{level - 3}" for level in (3, 4, 5)},
    **{f"smooth{level}": f"fpn.smooth.{level - 3}" for level in (3, 4, 5)},
    "pyramid6": "fpn.p6",
    "pyramid7": "fpn.p7",
}
NEEDS = ("cls_head.8.weight", "box_head.8.weight")
CONVENTIONS = ("current", "legacy")
# what a backbone has behind its last stage
UNUSED = ("features.fc.", "features.classifier.", "features.features.18.")


def import_odtk(found: Found, choices: Choices) -> Imported:
    """Return the detector of a file of Model.save.

    Which anchors it was trained with the file doesn't say: "legacy" before March 2020 (the published ones of
    19.04), "current" later. Raises UserError for other files and for rotated boxes.
    """
    content = found.content
    if not isinstance(content, Mapping) or not {"backbone", "classes"} <= content.keys():
        raise UserError("weights of the predecessor (odtk) alone", "what its Model.save writes is expected")
    if "angles" in content:
        raise UserError(
            "the weights are for rotated boxes", "decode, NMS, scores and answers here are of upright boxes"
        )
    names = [content["backbone"]] if isinstance(content["backbone"], str) else list(content["backbone"])
    if len(names) != 1 or names[0] not in BACKBONES:
        raise UserError(f"backbone {', '.join(names)} is not supported", f"one of: {', '.join(BACKBONES)}")
    count = int(content["classes"])
    categories, line = named(choices, count, first=1)
    table = odtk_anchors(
        choices.convention,
        ratios=content.get("ratios", (1.0, 2.0, 0.5)),
        scales=content.get("scales", tuple(4 * 2 ** (third / 3) for third in range(3))),
    )
    weights = renamed(lambda name: _our_name(name.removeprefix(f"backbones.{names[0]}.")), found.state)
    if "fpn.p7.weight" not in weights:
        raise UserError("the weights have no pyramid", "a plain detector of the predecessor is expected")
    body = {name.removeprefix("backbone."): value for name, value in weights.items() if "backbone." in name}
    _, width = recognise_backbone(body)
    clip, ends = clip_of(choices, "odtk")
    spec = DetectorSpec(
        tuple(categories.values()),
        tuple(categories),
        choices.size,
        anchor_rows(table),
        Network(BACKBONES[names[0]], width, weights["fpn.p7.weight"].shape[0], norm="none"),
        delta_clamp=UNLIMITED,
        clip=clip,
    )
    notes = (
        f"predecessor's {names[0]}, {count} classes, {choices.convention} anchors (the file does not say which: "
        "--anchors legacy for weights from before March 2020)",
        line,
        ends,
    )
    return assemble(spec, weights, choices, notes)


def _our_name(name: str) -> str | None:
    """Return our name of one of the predecessor's parameters, given without the name of its backbone."""
    first, _, rest = name.partition(".")
    if name.startswith(UNUSED):
        return None
    if first in ("cls_head", "box_head"):
        layer, part = rest.split(".")
        return f"{first}.output.{part}" if layer == "8" else f"{first}.convs.{int(layer) // 2}.{part}"
    if first == "features":
        return f"backbone.{rest}"
    return f"{PYRAMID[first]}.{rest}"


def odtk_anchors(convention: str, *, ratios: Sequence[float], scales: Sequence[float]) -> FloatArray:
    """Return the predecessor's anchors, scale-major, as half-open boxes.

    It counts a box's last pixel as inside: its x2 is one less, its widths are x2 - x1 + 1. So the
    current anchors measure a pixel more than their nominal size, and the legacy ones, rounded, exactly it.
    """
    if convention not in CONVENTIONS:
        raise UserError(f"anchors {convention!r} are not known", f"one of: {', '.join(CONVENTIONS)}")
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
