"""torchvision's RetinaNets, and what is built on them: DeepForest, MLPerf's reference.

    detector = import_torchvision(found, Choices(size=(800, 800)))

A state dict says nothing of anchors, thresholds, mean and deviation, of the norms' epsilon, or of what output 0
is: a whole module does, and so does what DeepForest keeps beside its weights. All else is torchvision's own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from retinaserve.training.anchors import FloatArray
from retinaserve.training.coco import COCO_NAMES
from retinaserve.training.errors import UserError
from retinaserve.training.importers.parts import (
    EPS,
    MOBILENET_EPS,
    OCTAVES,
    RATIOS,
    SMALL_CHANGE,
    Categories,
    Choices,
    Found,
    Imported,
    Sizes,
    Weights,
    assemble,
    described,
    eps_matters,
    named,
    numbered,
    recognise_backbone,
    renamed,
    scale_boxes,
    unknown,
    with_eps,
)
from retinaserve.training.importers.pickles import Inert, mapping_of
from retinaserve.training.importers.states import children, leaves
from retinaserve.training.layouts import BACKBONES, EfficientLayout, ResNetLayout
from retinaserve.training.model.backbones import EfficientNet
from retinaserve.training.spec import STRIDES, Design, DetectorSpec, Network, anchor_rows

# torchvision's COCO_V1 was trained with norms without an epsilon (torchvision sets it to 0 when it loads them).
FROZEN_EPS = 0.0
COCO_OUTPUTS = 91  # COCO's ids up to 90 as they are: outputs for the background and for unused ids
MLPERF_OUTPUTS = 264  # of OpenImages, counted from 0
DETECTIONS = 300
NEEDS = ("head.classification_head.cls_logits.weight", "head.regression_head.bbox_reg.weight")
DEEPFOREST_SCORE, DEEPFOREST_NMS = 0.1, 0.05  # deepforest 2.1.0, conf/config.yaml
ACROSS = "NMS is of each class, as in DeepForest's predict_file; its predict_image then drops boxes across classes"
SIZES = tuple((side, int(side * OCTAVES[1]), int(side * OCTAVES[2])) for side in (32, 64, 128, 256, 512))
ATTRIBUTES = {
    "score_thresh": "score_threshold",
    "nms_thresh": "nms_iou",
    "detections_per_img": "max_detections",
    "topk_candidates": "topk_candidates",
}


def import_torchvision(found: Found, choices: Choices) -> Imported:
    """Return retinanet_resnet50_fpn, _v2, or one of their parts: any ResNet, anchors, number of classes."""
    state = _todays_names(found.state)
    body = {
        name.removeprefix("backbone.body."): value for name, value in state.items() if "backbone.body." in name
    }
    if "0.0.weight" in body:  # the features of a classifier, by their numbers
        body = {f"features.{name}": value for name, value in body.items()}
    network, notes = _network(state, body)
    said, facts = _of_module(found.module)
    forest = _of_deepforest(found)
    if forest is not None:
        said, facts = said | forest[1], facts | forest[2]
    laterals = network.finest == "c2"
    levels = (4 if laterals else 3) + (1 if network.p6_from == "pool" else 2)
    strides = tuple(stride // 2 for stride in STRIDES) if laterals else STRIDES
    strides = (*strides, 2 * strides[-1])[:levels]

    weights = renamed(_our_name, {n: v for n, v in state.items() if not n.startswith("backbone.body.")})
    sizes, ratios, source = _anchors(choices, facts, levels)
    table = torchvision_anchors(sizes, ratios)
    outputs, per_cell = state[NEEDS[0]].shape[0], table.shape[1]
    if state[NEEDS[1]].shape[0] != 4 * per_cell or outputs % per_cell:
        raise UserError(
            f"the weights have other anchors than torchvision's own: {state[NEEDS[1]].shape[0] // 4} a cell, "
            f"not {per_cell}",
            "say which, as in: --anchor-sizes 32/64/128/256/512 --anchor-ratios 0.5,1,2 (a slash between levels)",
        )
    count = outputs // per_cell
    mlperf = count == MLPERF_OUTPUTS and network.backbone == "resnext50_32x4d"
    labels = forest[0] if forest else None
    categories, names = (
        named(choices, len(labels), known=labels) if labels else _categories(choices, count, mlperf)
    )
    eps, told = _epsilon(choices, facts, body, count, forest is not None)

    weights |= {f"backbone.{name}": value for name, value in with_eps(body, eps).items()}
    if set(facts.get("coder", (1.0,))) != {1.0}:
        scale_boxes(weights, [1 / weight for weight in facts["coder"]])
        notes.append(
            f"boxes: deltas divided by {','.join(f'{weight:g}' for weight in facts['coder'])} (from the file)"
        )
    for part in ("weight", "bias"):
        key = f"cls_head.output.{part}"
        weights[key] = _select_classes(weights[key], count, tuple(labels or categories))
    spec = DetectorSpec(
        tuple(categories.values()),
        tuple(categories),
        choices.size,
        anchor_rows(table),
        network,
        strides=strides,
        max_detections=DETECTIONS,
        # import_content knows the other families'
        resize="mlperf" if mlperf or "stretch" in facts else Design.resize_rule,
    )
    spec = replace(spec, **said)
    family = "DeepForest" if forest else "MLPerf's RetinaNet" if mlperf else "torchvision RetinaNet"
    assumed = "" if facts else " (32 groups assumed)"
    version = f"v2: group norms in the heads{assumed}" if network.norm == "group" else "v1"
    lines = [
        f"{family} with {network.backbone}, {version}, P6 from {network.p6_from}, "
        f"epsilon of the norms {eps:g} ({told})",
        *notes,
        names,
        described(sizes, ratios, source),
    ]
    if forest is not None and len(categories) > 1:
        lines.append(ACROSS)
    return replace(assemble(spec, weights, choices, lines, said=tuple(said)), size=facts.get("size"))


def _network(state: Mapping[str, Tensor], body: Weights) -> tuple[Network, list[str]]:
    backbone, width = recognise_backbone(body)
    laterals = sum(n.startswith("backbone.fpn.inner_blocks.") and n.endswith(".weight") for n in state)
    if laterals not in (3, 4):
        raise UserError(f"a pyramid of {laterals} features", "3 (from C3) or 4 (from C2) are expected")
    last = state[f"backbone.fpn.layer_blocks.{laterals - 1}.0.weight"]
    p6 = state.get("backbone.fpn.extra_blocks.p6.weight")
    # torchvision's own rule: from P5 if the inputs are as many as the outputs
    source = "pool" if p6 is None else "p5" if p6.shape[0] == p6.shape[1] else "c5"
    normed = "head.classification_head.conv.0.1.weight" in state
    grouped = "bn1.weight" in body and "bn1.running_mean" not in body
    taps = _taps(backbone, width, state, body)
    network = Network(
        backbone,
        width,
        last.shape[0],
        sum(n.startswith("head.regression_head.conv.") and n.endswith(".0.weight") for n in state),
        norm="group" if normed else "none",
        pyramid_norm=not normed,
        p6_from=source,
        finest="c2" if laterals == 4 else "c3",
        backbone_norm="group" if grouped else "batch",
        grid="size",
        taps=taps,
    )
    notes = []
    layout = BACKBONES[backbone]
    if not isinstance(layout, ResNetLayout):
        layers = ", ".join(map(str, taps or layout.taps))
        notes.append(f"pyramid: of the layers {layers}, guessed from their numbers of channels")
    if source == "pool":
        notes.append("pyramid: the coarsest level is pooled from P5, guessed as there is no convolution for it")
    if grouped:
        notes.append("norms of the backbone: groups of 32, guessed as the weights do not say how many")
    return network, notes


def _taps(backbone: str, width: int, state: Mapping[str, Tensor], body: Mapping[str, Tensor]) -> tuple[int, ...]:
    """Return the layers of strides 8, 16 and 32 that have the channels of the pyramid's inputs.

    Of several the last, but where torchvision's own extractor made it: that takes the first of each stride.
    """
    layout = BACKBONES[backbone]
    if not isinstance(layout, EfficientLayout):
        return ()
    present = {int(name.split(".")[1]) for name in body}
    with torch.device("meta"):
        model = EfficientNet(layout, Network(backbone, width, taps=(max(present),)))
    taps = []
    for number, stride in enumerate(STRIDES[:3]):
        channels = state[f"backbone.fpn.inner_blocks.{number}.0.weight"].shape[1]
        layers = [
            each for each in sorted(present) if (model.widths[each], model.strides[each]) == (channels, stride)
        ]
        if not layers:
            raise UserError(
                f"no layer of stride {stride} has the {channels} channels of the pyramid's input {number}",
                f"a {backbone} and a pyramid of three of its layers, of strides 8, 16 and 32, are expected",
            )
        taps.append(layers)
    extracted = layout.hard and model.strides.index(STRIDES[1]) in taps[1]
    found = tuple(layers[0 if extracted else -1] for layers in taps)
    return () if found == layout.taps else found


def _anchors(choices: Choices, facts: Mapping[str, Any], levels: int) -> tuple[Sizes, Sequence[float], str]:
    sizes: Sizes = SIZES[:levels]
    if "sizes" in facts:
        sizes, ratios = facts["sizes"], facts["ratios"]
        return sizes, ratios, "from the file"
    source = "assumed, torchvision's own; the file does not say: --anchor-sizes, --anchor-ratios"
    if choices.anchor_sizes or choices.anchor_ratios:
        source = "as you said"
    sizes = choices.anchor_sizes or sizes
    if len(sizes) != levels:
        raise UserError(f"--anchor-sizes names {len(sizes)} levels, the weights have {levels}")
    return sizes, choices.anchor_ratios or RATIOS, source


def _categories(choices: Choices, count: int, mlperf: bool) -> tuple[Categories, str]:
    """Return the categories by the number of their output, and what is to be said of output 0."""
    categories = choices.categories
    if categories:
        beyond = [number for number in categories if not 0 <= number < count]
        if beyond:
            raise UserError(
                f"category {beyond[0]} ({categories[beyond[0]]}) has no output: the weights have {count}",
                "torchvision's labels are the category ids, and 0 is the background",
            )
        line = f"classes: {len(categories)} of {count} outputs, those whose numbers are ids of --annotations"
        return categories, line
    first = choices.first_class
    if first is None and count == COCO_OUTPUTS:
        return COCO_NAMES, f"classes: 80 of {count} outputs, guessed to be COCO's ids; --annotations names others"
    if first is None and mlperf:
        return numbered(count, 0), f"classes: {count}, guessed to be OpenImages' as MLPerf counts them, from 0"
    if first is None and count == 1:
        return numbered(1, 0), "classes: 1, of the only output; --annotations FILE.json names it"
    if first is None:
        return (
            numbered(count - 1, 1),
            f"classes: {count - 1} of {count} outputs: output 0 is dropped, guessed to be the background as in "
            "torchvision; if your labels count from 0: --first-class 0 (--annotations FILE.json names them)",
        )
    line = f"classes: {count - first} of {count} outputs, counted from {first} as you said"
    return numbered(count - first, first), line


def _epsilon(
    choices: Choices, facts: Mapping[str, Any], body: Mapping[str, Tensor], count: int, forest: bool
) -> tuple[float, str]:
    """Return the epsilon of the backbone's norms, and how it is known."""
    if choices.norm_eps is not None:
        return choices.norm_eps, "as you said"
    if "eps" in facts:
        return facts["eps"], "from the file"
    frozen = not any(name.endswith("num_batches_tracked") for name in body)
    eps = FROZEN_EPS if frozen and count == COCO_OUTPUTS and not forest else EPS
    if not frozen and "features.1.block.0.0.weight" in body:
        return MOBILENET_EPS, "MobileNetV3's own"
    change = eps_matters(body)
    if change < SMALL_CHANGE or not frozen:
        return eps, "another would change no scale by a thousandth" if change < SMALL_CHANGE else "torch's"
    other = EPS if eps == FROZEN_EPS else FROZEN_EPS
    why = "torchvision's COCO_V1 has 0" if eps == FROZEN_EPS else "but COCO_V1 with another head keeps 0"
    return eps, f"guessed, {why}; scales differ by up to {100 * change:.2g} %: --norm-eps {other:g} is the other"


def _of_module(module: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what a whole module says: settings of the spec; and anchors, epsilon, coder and size."""
    said: dict[str, Any] = {}
    facts: dict[str, Any] = {}
    if not isinstance(module, Inert):
        return said, facts
    attributes, parts = module.attributes(), children(module)
    said = {ours: attributes[theirs] for theirs, ours in ATTRIBUTES.items() if theirs in attributes}
    transform, generator = parts.get("transform"), parts.get("anchor_generator")
    if isinstance(transform, Inert):
        held = transform.attributes()
        said |= {ours: tuple(held[theirs]) for theirs, ours in (("image_mean", "mean"), ("image_std", "std"))}
        facts["size"] = (int(held["min_size"][-1]), int(held["max_size"]))
        if held.get("fixed_size"):
            facts["size"], facts["stretch"] = tuple(held["fixed_size"])[::-1], True  # it has (w, h)
        if held.get("size_divisible", 32) != 32:
            raise UserError(f"images are padded to multiples of {held['size_divisible']}", "32 is expected")
    if isinstance(generator, Inert):
        held = generator.attributes()
        ratios = {tuple(each) for each in held["aspect_ratios"]}
        if len(ratios) > 1:
            raise UserError(
                "the anchors have other ratios on other levels", "the same on every level are expected"
            )
        facts |= {"sizes": tuple(map(tuple, held["sizes"])), "ratios": ratios.pop()}
    coder = attributes.get("box_coder")
    if isinstance(coder, Inert):
        facts["coder"] = tuple(map(float, coder.attributes()["weights"]))
        said["delta_clamp"] = float(coder.attributes()["bbox_xform_clip"])
    norms = (each.attributes() for _, each in leaves(children(parts.get("backbone")).get("body")))
    facts |= next(({"eps": float(each["eps"])} for each in norms if "eps" in each), {})
    return said, facts


def _of_deepforest(found: Found) -> tuple[Categories | None, dict[str, Any], dict[str, Any]] | None:
    """Return the names, thresholds and size that DeepForest keeps with its weights, or None for other files."""
    content = found.content if isinstance(found.content, Mapping) else {}
    config = dict(found.beside.get("config.json", {})) if found.beside else {}
    labels = content.get("label_dict") or config.get("label_dict")
    held = mapping_of(content.get("hyper_parameters") or content.get("hparams"))
    config = {**mapping_of(held.get("config", held)), **config}
    if not isinstance(labels, Mapping):
        labels = None
    if labels is None and "deepforest" not in str(config.get("architectures", "")).lower():
        return None
    names = {int(number): str(name) for name, number in labels.items()} if labels else None
    names = {number: names[number] for number in sorted(names)} if names else None
    score, nms = config.get("score_thresh", DEEPFOREST_SCORE), config.get("nms_thresh", DEEPFOREST_NMS)
    sides = [config[name] for name in ("min_size", "max_size") if isinstance(config.get(name), int)]
    size = {"size": (sides[0], sides[1])} if len(sides) == 2 else {}
    return names, {"score_threshold": float(score), "nms_iou": float(nms)}, size


def _todays_names(state: Mapping[str, Tensor]) -> Weights:
    """Rename as torchvision itself does when it loads weights from before its version 0.13."""
    after = {}
    plain = "head.classification_head.conv.0.weight" in state
    for name, value in state.items():
        parts = name.split(".")
        if plain and parts[0] == "head" and parts[2] == "conv":
            parts[3:4] = [str(int(parts[3]) // 2), "0"]  # a ReLU stood behind every convolution
        if parts[:2] == ["backbone", "fpn"] and parts[2] != "extra_blocks" and len(parts) == 5:
            parts.insert(4, "0")
        after[".".join(parts)] = value
    if not any(name.startswith("backbone.fpn.inner_blocks.") for name in after):
        raise unknown("a RetinaNet of torchvision with a pyramid", state)
    return after


def _our_name(name: str) -> str:
    """Return our name of one of torchvision's parameters outside its backbone."""
    parts = name.split(".")
    if parts[0] == "backbone":
        if parts[2] == "extra_blocks":
            return f"fpn.{parts[3]}.{parts[4]}"
        block = {"inner_blocks": "laterals", "layer_blocks": "smooth"}[parts[2]]
        return f"fpn.{block}.{parts[3]}.{parts[5]}"
    head = {"classification_head": "cls_head", "regression_head": "box_head"}[parts[1]]
    if parts[2] in ("cls_logits", "bbox_reg"):
        return f"{head}.output.{parts[3]}"
    if parts[2] != "conv":
        raise KeyError(name)  # FCOS has a third output
    place = {"0": f"convs.{parts[3]}", "1": f"norms.0.{parts[3]}"}[parts[4]]
    return f"{head}.{place}.{parts[5]}"


def _select_classes(value: Tensor, classes: int, kept: Sequence[int]) -> Tensor:
    # (A*C, ...) -> (A, C, ...) -> (A*kept, ...)
    return value.reshape(-1, classes, *value.shape[1:])[:, list(kept)].flatten(0, 1)


def torchvision_anchors(sizes: Sizes = SIZES, ratios: Sequence[float] = RATIOS) -> FloatArray:
    """Return torchvision's anchors: centred on the cell's corner, rounded, ratio-major."""
    levels = []
    for level in sizes:
        sides = torch.tensor(level, dtype=torch.float32)
        heights = torch.tensor(ratios, dtype=torch.float32).sqrt()
        w = ((1 / heights)[:, None] * sides[None, :]).flatten()
        h = (heights[:, None] * sides[None, :]).flatten()
        levels.append((torch.stack((-w, -h, w, h), dim=1) / 2).round())
    table: FloatArray = torch.stack(levels).numpy()
    return table
