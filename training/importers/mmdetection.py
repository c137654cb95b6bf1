"""mmdetection's RetinaNets, 2.x and 3.x, of pytorch and caffe style.

    detector = import_mmdetection(found, Choices(style="caffe"))

The config stands in the file's `meta` as a text of Python; it is parsed, and only its literals are read.
"""

import ast
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from retinaserve.training.errors import UserError
from retinaserve.training.importers.parts import (
    RATIOS,
    Categories,
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
from retinaserve.training.importers.pickles import mapping_of as _mapping
from retinaserve.training.spec import IMAGENET_MEAN, IMAGENET_STD, STRIDES

NEEDS = ("bbox_head.retina_cls.weight", "bbox_head.retina_reg.weight")
CAFFE_MEAN, CAFFE_STD = (123.675 / 255, 116.28 / 255, 103.53 / 255), (1 / 255, 1 / 255, 1 / 255)
GENERATOR, CODER = "AnchorGenerator", "DeltaXYWHBBoxCoder"
SECTION = re.compile(r"""^[^\s=#'"][^=#'"\n]*\.py[ \t\r]*$""", re.MULTILINE)  # a config's path, before its text


def import_mmdetection(found: Found, choices: Choices) -> Imported:
    """Return the detector. Raises UserError for another generator of anchors or coder than RetinaNet's."""
    meta = found.content.get("meta") if isinstance(found.content, Mapping) else None
    meta = _mapping(meta)
    config = _config(meta)
    model = _mapping(config.get("model"))
    backbone, head, test = (_mapping(model.get(name)) for name in ("backbone", "bbox_head", "test_cfg"))
    test = test or _mapping(config.get("test_cfg"))  # where 2.x had it at first
    generator, coder = _mapping(head.get("anchor_generator")), _mapping(head.get("bbox_coder"))
    for part, wanted in ((generator, GENERATOR), (coder, CODER)):
        if part.get("type", wanted) != wanted:
            raise UserError(f"the config asks for {part['type']}", f"{wanted} is expected")
    nms = _mapping(test.get("nms"))
    _check_numbers(generator, "ratios", "octave_base_scale", "scales_per_octave", "center_offset")
    _check_numbers(coder, "target_stds")
    _check_numbers(test, "score_thr", "nms_pre", "max_per_img")
    _check_numbers(nms, "iou_threshold", "iou_thr")
    if "anchor_strides" in head:
        raise UserError(
            "the config is of mmdetection 1.x, which rounds anchors and boxes otherwise",
            "a detector of 2.x or 3.x is expected",
        )
    caffe, told = _style(found, choices, backbone)
    weights = renamed(_our_name, found.state)
    neck = _mapping(model.get("neck"))
    network = replace(
        shape_of(weights, style="1x1" if caffe else "3x3"),
        p7_relu=bool(neck.get("relu_before_extra_convs", False)),
    )
    if neck.get("add_extra_convs") == "on_lateral":
        raise UserError("P6 is made from a lateral", "add_extra_convs on_input or on_output is expected")
    scale_boxes(weights, coder.get("target_stds", (1.0, 1.0, 1.0, 1.0)))
    mean, std, bgr, pixels = _pixels(config, caffe)
    if bgr:
        as_bgr(weights)
    octaves = tuple(
        2 ** (i / generator.get("scales_per_octave", 3)) for i in range(generator.get("scales_per_octave", 3))
    )
    scales = generator.get("scales") or [generator.get("octave_base_scale", 4) * octave for octave in octaves]
    unsaid = "assumed, RetinaNet's own; the file has no config: --anchor-sizes, --anchor-ratios"
    table, anchors = anchors_of(
        choices,
        tuple(tuple(stride * scale for scale in scales) for stride in STRIDES),
        tuple(generator.get("ratios", RATIOS)),
        "from the config in the file" if generator else unsaid,
        order="ratio" if generator.get("scale_major", True) else "scale",
        centre=generator.get("center_offset", 0.0),
    )
    spec, line = spec_of(
        choices,
        weights,
        table,
        network,
        known=_names(meta),
        mean=mean,
        std=std,
        score_threshold=test.get("score_thr", 0.05),
        nms_iou=nms.get("iou_threshold", nms.get("iou_thr", 0.5)),
        topk_candidates=test.get("nms_pre", 1000),
        max_detections=test.get("max_per_img", 100),
    )
    notes = [
        f"mmdetection RetinaNet with {network.backbone}, {'caffe' if caffe else 'pytorch'} style ({told})",
        f"channels: {'BGR, folded into the first convolution' if bgr else 'RGB'} ({pixels})",
        line,
        anchors,
    ]
    said = ["score_threshold", "nms_iou", "topk_candidates", "max_detections"] if test else []
    said += ["mean", "std"] if pixels.startswith("from") else []
    return replace(assemble(spec, weights, choices, notes, said=said), size=_size(config))


def _our_name(name: str) -> str | None:
    parts = name.split(".")
    if parts[0] == "data_preprocessor":
        return None
    if parts[0] == "neck":
        index = int(parts[2])
        if parts[1] == "lateral_convs":
            return f"fpn.laterals.{index}.{parts[4]}"
        place = {3: "p6", 4: "p7"}.get(index, f"smooth.{index}")
        return f"fpn.{place}.{parts[4]}"
    if parts[0] == "bbox_head":
        head = "cls_head" if "cls" in parts[1] else "box_head"
        if parts[1].startswith("retina_"):
            return f"{head}.output.{parts[2]}"
        kind = {"conv": "convs", "gn": "norms.0"}[parts[3]]
        return f"{head}.{kind}.{parts[2]}.{parts[4]}"
    if parts[0] != "backbone":
        raise KeyError(name)
    return name


def _style(found: Found, choices: Choices, backbone: Mapping[str, Any]) -> tuple[bool, str]:
    if choices.style:
        return choices.style == "caffe", "as you said"
    if "style" in backbone:
        return backbone["style"] == "caffe", "from the config in the file"
    if "caffe" in found.name:
        return True, "guessed from the file's name; --style pytorch"
    return False, "guessed, the file has no config; if its name or config says caffe: --style caffe"


def _pixels(config: Mapping[str, Any], caffe: bool) -> tuple[Any, Any, bool, str]:
    """Return mean and deviation in RGB of pixels in 0..1, whether the weights read BGR, and how that is known."""
    told = _mapping(_mapping(config.get("model")).get("data_preprocessor"))
    bgr = not told.get("bgr_to_rgb", False)
    if not told.get("mean"):
        told = _step(config, "Normalize", "mean")
        bgr = not told.get("to_rgb", True)
    if not told.get("mean"):
        usual = (CAFFE_MEAN, CAFFE_STD) if caffe else (IMAGENET_MEAN, IMAGENET_STD)
        return *usual, caffe, "assumed, the style's own"
    mean, std = (tuple(float(value) / 255 for value in told[name]) for name in ("mean", "std"))
    return (mean[::-1], std[::-1], True, "from the config") if bgr else (mean, std, False, "from the config")


def _step(value: Any, kind: str, setting: str) -> Mapping[str, Any]:
    """Return the first step of a kind that has a setting, wherever it stands in pipelines of 2.x or 3.x."""
    if isinstance(value, Mapping):
        if value.get("type") == kind and setting in value:
            return value
        value = list(value.values())
    for each in value if isinstance(value, list | tuple) else ():
        found = _step(each, kind, setting)
        if found:
            return found
    return {}


def _size(config: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return the shorter and the longest side that tests resize to, if the config has them as two numbers."""
    data = _mapping(config.get("data"))
    for part in (config.get("test_dataloader"), config.get("test_pipeline"), data.get("test")):
        flipped, resize = _step(part, "MultiScaleFlipAug", "img_scale"), _step(part, "Resize", "scale")
        scale = flipped.get("img_scale") or (resize.get("keep_ratio") and resize.get("scale"))
        if isinstance(scale, list | tuple) and [type(side) for side in scale] == [int, int]:
            return min(scale), max(scale)
    return None


def _names(meta: Mapping[str, Any]) -> Categories | None:
    """Return the class names of 3.x's dataset_meta or 2.x's CLASSES; their order is that of the outputs."""
    names = _mapping(meta.get("dataset_meta")).get("classes") or meta.get("CLASSES")
    if isinstance(names, str):
        names = (names,)
    return {number: str(name) for number, name in enumerate(names)} if names else None


def _config(meta: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the literals of the config's text: names that are assigned dicts, lists, numbers and texts.

    2.x wrote the text of a config behind those that it is based on, each below a line of its path.
    """
    text = meta.get("cfg") or meta.get("config")
    if not isinstance(text, str):
        return _mapping(text)
    found: dict[str, Any] = {}
    for part in SECTION.split(text):
        own: dict[str, Any] = {}
        try:
            lines = ast.parse(part).body
        except (SyntaxError, ValueError, RecursionError):
            return {}
        for line in lines:
            if isinstance(line, ast.Assign) and isinstance(line.targets[0], ast.Name):
                own[line.targets[0].id] = _literal(line.value, own)
        found = _merged(found, own)
    return found


def _merged(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config that is based on another: dicts are merged but where one says `_delete_`."""
    merged = dict(base)
    for name, value in own.items():
        both = isinstance(value, dict) and isinstance(merged.get(name), dict) and not value.get("_delete_")
        merged[name] = _merged(merged[name], value) if both else value
    return merged


def _literal(node: ast.AST, known: Mapping[str, Any]) -> Any:
    """Return what a literal is, `dict(...)` among them, a name known by then, or None."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict":
        found: dict[str, Any] = {}
        for word in node.keywords:
            value = _literal(word.value, known)
            found |= {word.arg: value} if word.arg else _mapping(value)
        return found
    if isinstance(node, ast.Dict):
        keys = (key.value if isinstance(key, ast.Constant) else None for key in node.keys)
        return {key: _literal(value, known) for key, value in zip(keys, node.values, strict=True)}
    if isinstance(node, ast.List | ast.Tuple):
        return [_literal(item, known) for item in node.elts]
    if isinstance(node, ast.Name):
        return known.get(node.id)
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError):
        return None


def _check_numbers(part: Mapping[str, Any], *names: str) -> None:
    """Raise UserError where one of a part's settings is neither a number nor some."""
    for name in part.keys() & set(names):
        values = part[name] if isinstance(part[name], list | tuple) else [part[name]]
        if not all(isinstance(value, int | float) for value in values):
            raise UserError(f"the config has no plain numbers in {name}", "what it computes is not run")
