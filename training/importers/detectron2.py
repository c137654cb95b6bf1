"""Detectron2's RetinaNets: model-zoo `.pkl`, trained `.pth`, and the config.yaml that training leaves beside them.

    detector = import_detectron2(found, Choices())

Without the config: R50-FPN as in the model zoo, which strides in the first 1x1 convolution and reads BGR.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from retinaserve.training.errors import UserError
from retinaserve.training.importers.parts import (
    RATIOS,
    SIZES,
    Choices,
    Found,
    Imported,
    anchors_of,
    as_bgr,
    assemble,
    renamed,
    scale_boxes,
    shape_of,
    spec_of,
)

NEEDS = ("head.cls_score.weight", "head.bbox_pred.weight")
PIXEL_MEAN, PIXEL_STD = (103.53, 116.28, 123.675), (1.0, 1.0, 1.0)  # in BGR, of 0..255
DEFAULTS: Mapping[str, Any] = {
    "MODEL.ANCHOR_GENERATOR.SIZES": SIZES,
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": (RATIOS,),
    "MODEL.ANCHOR_GENERATOR.OFFSET": 0.0,
    "MODEL.ANCHOR_GENERATOR.NAME": "DefaultAnchorGenerator",
    "MODEL.RETINANET.BBOX_REG_WEIGHTS": (1.0, 1.0, 1.0, 1.0),
    "MODEL.RETINANET.SCORE_THRESH_TEST": 0.05,
    "MODEL.RETINANET.NMS_THRESH_TEST": 0.5,
    "MODEL.RETINANET.TOPK_CANDIDATES_TEST": 1000,
    "MODEL.RESNETS.STRIDE_IN_1X1": True,
    "MODEL.FPN.FUSE_TYPE": "sum",
    "MODEL.PIXEL_MEAN": PIXEL_MEAN,
    "MODEL.PIXEL_STD": PIXEL_STD,
    "TEST.DETECTIONS_PER_IMAGE": 100,
    "INPUT.FORMAT": "BGR",
}
SAID = {
    "MODEL.RETINANET.SCORE_THRESH_TEST": "score_threshold",
    "MODEL.RETINANET.NMS_THRESH_TEST": "nms_iou",
    "MODEL.RETINANET.TOPK_CANDIDATES_TEST": "topk_candidates",
    "TEST.DETECTIONS_PER_IMAGE": "max_detections",
    "MODEL.PIXEL_MEAN": "mean",
    "MODEL.PIXEL_STD": "std",
}
UNCLIPPED = 1024.0  # pixels: its NMS comes before the clip; more would cost the plugin bits of a box
ONLY = {"MODEL.ANCHOR_GENERATOR.NAME": "DefaultAnchorGenerator", "MODEL.FPN.FUSE_TYPE": "sum"}


def import_detectron2(found: Found, choices: Choices) -> Imported:
    """Return the detector. Raises UserError for other heads and generators than RetinaNet's own."""
    config = _config(found.beside)
    values = {**DEFAULTS, **{name: config[name] for name in DEFAULTS if name in config}}
    for name, wanted in ONLY.items():
        if values[name] != wanted:
            raise UserError(f"{name} is {values[name]!r}", f"{wanted!r} is expected")
    style = "1x1" if values["MODEL.RESNETS.STRIDE_IN_1X1"] else "3x3"
    if choices.style:
        style = "1x1" if choices.style == "caffe" else "3x3"
    normed = "head.cls_subnet.1.weight" in found.state
    weights = renamed(lambda name: _our_name(name, 3 if normed else 2), found.state)
    network = replace(shape_of(weights, style=style), p6_from="c5" if _from_c5(weights) else "p5")
    scale_boxes(weights, [1 / value for value in values["MODEL.RETINANET.BBOX_REG_WEIGHTS"]])
    mean, std = (_pixels(found, values, name) for name in ("pixel_mean", "pixel_std"))
    if values["INPUT.FORMAT"] == "BGR":
        as_bgr(weights)
        mean, std = mean[::-1], std[::-1]
    config_told = "config.yaml beside the weights would tell; --anchor-sizes, --anchor-ratios"
    table, anchors = anchors_of(
        choices,
        _levels(values["MODEL.ANCHOR_GENERATOR.SIZES"]),
        _levels(values["MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS"])[0],
        "from config.yaml"
        if "MODEL.ANCHOR_GENERATOR.SIZES" in config
        else f"assumed, the model zoo's; {config_told}",
        order="scale",
        centre=values["MODEL.ANCHOR_GENERATOR.OFFSET"],
    )
    spec, line = spec_of(
        choices,
        weights,
        table,
        network,
        sort=True,
        mean=tuple(value / 255 for value in mean),
        std=tuple(value / 255 for value in std),
        clip_margin=-UNCLIPPED,
        **{ours: values[name] for name, ours in SAID.items() if ours not in ("mean", "std")},
    )
    notes = [
        f"Detectron2 RetinaNet with {network.backbone}, stride in {style}"
        + (
            " (config.yaml)"
            if "MODEL.RESNETS.STRIDE_IN_1X1" in config and not choices.style
            else " (as you said)"
            if choices.style
            else " (assumed, as in the model zoo; torchvision's ResNets: --style pytorch)"
        ),
        f"channels: {values['INPUT.FORMAT']}, folded into the first convolution",
        line,
        anchors,
    ]
    said = [ours for name, ours in SAID.items() if name in config]
    sides = [config[name] for name in ("INPUT.MIN_SIZE_TEST", "INPUT.MAX_SIZE_TEST") if config.get(name)]
    size = (int(sides[0]), int(sides[1])) if len(sides) == 2 else None
    return replace(assemble(spec, weights, choices, notes, said=said), size=size)


def _our_name(name: str, layers: int) -> str | None:
    """Return our name of a parameter; layers: how many the head has a convolution, its ReLU counted."""
    parts = name.split(".")
    if parts[0] in ("pixel_mean", "pixel_std", "anchor_generator"):
        return None
    if parts[0] == "head":
        head = {"cls": "cls_head", "bbox": "box_head"}[parts[1].split("_")[0]]
        if parts[1] in ("cls_score", "bbox_pred"):
            return f"{head}.output.{parts[2]}"
        index, place = divmod(int(parts[2]), layers)
        return f"{head}.{('convs.', 'norms.0.')[place]}{index}.{parts[3]}"
    if parts[1] == "top_block":
        return f"fpn.{parts[2]}.{parts[3]}"
    if parts[1].startswith("fpn_"):
        kind = {"lateral": "laterals", "output": "smooth"}[parts[1][4:-1]]
        return f"fpn.{kind}.{int(parts[1][-1]) - 3}.{parts[2]}"
    if parts[2] == "stem":
        return f"backbone.{'bn1' if parts[4] == 'norm' else 'conv1'}.{parts[-1]}"
    stage, normed = int(parts[2].removeprefix("res")) - 1, parts[5] == "norm"
    if parts[4] == "shortcut":
        return f"backbone.layer{stage}.{parts[3]}.downsample.{int(normed)}.{parts[-1]}"
    kind = "bn" if normed else "conv"
    return f"backbone.layer{stage}.{parts[3]}.{kind}{parts[4][-1]}.{parts[-1]}"


def _from_c5(weights: Mapping[str, Any]) -> bool:
    inputs = weights["fpn.p6.weight"].shape[1]
    return bool(inputs == weights["fpn.laterals.2.weight"].shape[1])


def _pixels(found: Found, values: Mapping[str, Any], name: str) -> Sequence[float]:
    """Return the mean or the deviation, of a file that holds it as a buffer, as those of before 2021 do."""
    if name in found.state:
        return [float(value) for value in found.state[name].flatten()]
    return [float(value) for value in values[f"MODEL.{name.upper()}"]]


def _levels(value: Any) -> Any:
    rows = tuple(
        tuple(float(each) for each in row) if isinstance(row, Sequence) else (float(row),) for row in value
    )
    if not isinstance(value[0], Sequence):
        rows = (tuple(float(each) for each in value),)
    return rows if len(rows) > 1 else rows * 5


def _config(beside: Mapping[str, Any]) -> dict[str, Any]:
    """Return config.yaml's values by their dotted names; a config that is built on another says only its part."""
    found: dict[str, Any] = {}

    def walk(value: Any, prefix: str) -> None:
        for name, each in value.items() if isinstance(value, Mapping) else ():
            if each is not None:
                found[f"{prefix}{name}"] = each
            walk(each, f"{prefix}{name}.")

    config = beside.get("config.yaml")
    if isinstance(config, Mapping) and isinstance(config.get("MODEL"), Mapping):
        walk(config, "")
    return found
