"""fizyr's keras-retinanet: the `.h5` of training, of its weights alone, or converted for inference.

    detector = import_fizyr(found, Choices())

Its boxes are coded on corners, x1 + 0.2 d0 w and so on, linearly. That is a shift of the centre by 0.1 (d0 + d2)
and a size of 1 + 0.2 (d2 - d0) anchors, both linear in the outputs, so they are folded into the box output, and
the spec says that growth is linear. Strided convolutions pad as TensorFlow does.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from retinaserve.training.importers.parts import (
    RATIOS,
    SIZES,
    UNLIMITED,
    Categories,
    Choices,
    Found,
    Imported,
    Weights,
    anchors_of,
    as_bgr,
    assemble,
    shape_of,
    spec_of,
)

NEEDS = (
    "classification_submodel/pyramid_classification/kernel:0",
    "regression_submodel/pyramid_regression/kernel:0",
)
DEVIATION = 0.2
MEAN, STD = (123.68 / 255, 116.779 / 255, 103.939 / 255), (1 / 255, 1 / 255, 1 / 255)
DETECTIONS = 300
PARTS = {
    "kernel:0": "weight",
    "bias:0": "bias",
    "gamma:0": "weight",
    "beta:0": "bias",
    "moving_mean:0": "running_mean",
    "moving_variance:0": "running_var",
}
BLOCK = re.compile(r"(res|bn)([2-5])([a-z]\d*)_branch(1|2[abc])")


def import_fizyr(found: Found, choices: Choices) -> Imported:
    """Return the detector; classes are those of a CSV of `name,id` beside the weights, or in the order of ids."""
    weights = _weights(found.state)
    network = replace(shape_of(weights, style="1x1"), p6_from="c5", padding="same", growth="linear", norm="none")
    as_bgr(weights)
    layers = {name: list(_layers(found.content, name)) for name in ("Anchors", "FilterDetections")}
    table, anchors = anchors_of(choices, *_anchors(layers["Anchors"]), order="ratio", centre=0.5)
    for part in ("weight", "bias"):
        key = f"box_head.output.{part}"
        weights[key] = _centred(weights[key], bias=part == "bias")
    spec, line = spec_of(
        choices,
        weights,
        table,
        network,
        known=_names(found.beside, len(weights["cls_head.output.bias"]) // table.shape[1]),
        sort=True,
        mean=MEAN,
        std=STD,
        max_detections=DETECTIONS,
        delta_clamp=UNLIMITED,
        clip="canvas" if choices.resize_rule in (None, "fizyr") else "image",  # whose sides are whole pixels
        clip_margin=1.0,
    )
    said: dict[str, Any] = {}
    if layers["FilterDetections"]:
        held = layers["FilterDetections"][0]
        names = {
            "score_threshold": "score_threshold",
            "nms_threshold": "nms_iou",
            "max_detections": "max_detections",
        }
        said = {ours: held[theirs] for theirs, ours in names.items() if theirs in held}
    notes = [
        f"fizyr's RetinaNet with {network.backbone}, boxes coded on corners, TensorFlow's padding, BGR "
        "(folded into the first convolution)",
        "its NMS gets all boxes above the threshold, this one's the best of each level: --candidates",
        line,
        anchors,
    ]
    return assemble(replace(spec, **said), weights, choices, notes, said=tuple(said))


def _weights(state: Mapping[str, Tensor]) -> Weights:
    weights: Weights = {}
    blocks = _blocks(state)
    for path, value in state.items():
        *_, layer, part = path.split("/")
        name = _our_name(layer, blocks)
        if name is None or part not in PARTS:
            continue
        if part == "kernel:0":
            value = value.permute(3, 2, 0, 1).contiguous()  # (h, w, in, out) -> (out, in, h, w)
        weights[f"{name}.{PARTS[part]}"] = value
    return weights


def _blocks(state: Mapping[str, Tensor]) -> dict[tuple[str, str], int]:
    """Return the numbers of blocks: a, b, c, ... or a, b1, b2, ... of each stage, in their order."""
    found = {
        (m[2], m[3])
        for path in state
        for m in (BLOCK.fullmatch(path.split("/")[-2]) if "/" in path else None,)
        if m
    }
    order = sorted(found, key=lambda each: (each[0], each[1][0], int(each[1][1:] or 0)))
    return {each: [other for other in order if other[0] == each[0]].index(each) for each in order}


def _our_name(layer: str, blocks: Mapping[tuple[str, str], int]) -> str | None:
    if layer in ("conv1", "bn_conv1"):
        return "backbone.conv1" if layer == "conv1" else "backbone.bn1"
    block = BLOCK.fullmatch(layer)
    if block:
        kind, stage, letter, branch = block.groups()
        here = f"backbone.layer{int(stage) - 1}.{blocks[stage, letter]}"
        if branch == "1":
            return f"{here}.downsample.{int(kind == 'bn')}"
        return f"{here}.{'bn' if kind == 'bn' else 'conv'}{'abc'.index(branch[1]) + 1}"
    if re.fullmatch(r"C[345]_reduced", layer):
        return f"fpn.laterals.{int(layer[1]) - 3}"
    if re.fullmatch(r"P[345]", layer):
        return f"fpn.smooth.{int(layer[1]) - 3}"
    if layer in ("P6", "P7"):
        return f"fpn.{layer.lower()}"
    head = re.fullmatch(r"pyramid_(classification|regression)(?:_(\d))?", layer)
    if head:
        ours = "cls_head" if head[1] == "classification" else "box_head"
        return f"{ours}.convs.{head[2]}" if head[2] else f"{ours}.output"
    return None


def _centred(output: Tensor, *, bias: bool) -> Tensor:
    """Return the box output as shifts of the centre and sizes, of one as deltas of corners."""
    x1, y1, x2, y2 = (DEVIATION * output.view(-1, 4, *output.shape[1:])).unbind(1)
    one = 1.0 if bias else 0.0
    parts = ((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1 + one, y2 - y1 + one)
    return torch.stack(parts, dim=1).flatten(0, 1)


def _layers(content: object, kind: str) -> Iterator[Mapping[str, Any]]:
    """Yield the settings of layers of a class, from the model's config that a converted model holds."""
    text = content.get("model_config") if isinstance(content, Mapping) else None
    try:
        layers = json.loads(text)["config"]["layers"] if isinstance(text, str) else []
    except (ValueError, KeyError, TypeError):
        return
    for layer in layers:
        if isinstance(layer, Mapping) and layer.get("class_name") == kind:
            yield layer.get("config", {})


def _anchors(layers: list[Mapping[str, Any]]) -> tuple[Any, Any, str]:
    """Return sizes, ratios and their source, of a converted model's layers if there are any."""
    if not layers:
        return SIZES, RATIOS, "assumed, its own; a training model does not say: --anchor-sizes, --anchor-ratios"
    layers = sorted(layers, key=lambda each: float(each["stride"]))
    sizes = tuple(tuple(each["size"] * scale for scale in each["scales"]) for each in layers)
    return sizes, tuple(layers[0]["ratios"]), "from the file"


def _names(beside: Mapping[str, Any], count: int) -> Categories | None:
    """Return the names of the one CSV beside the weights that is a list of classes: rows of `name,id`."""
    for rows in beside.get("csv", ()):
        names = {int(row[1]): row[0] for row in rows if len(row) == 2 and row[1].strip().isdigit()}
        if len(names) == len(rows) == count and sorted(names) == list(range(count)):
            return {number: names[number] for number in range(count)}
    return None
