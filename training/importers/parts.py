"""What the importers of all families share: what the user said, what is decided, and the check that all fits.

    table, line = anchors_of(choices, SIZES, RATIOS, "assumed", order="scale", centre=0.0)
    return assemble(spec, weights, choices, notes)

Nothing is guessed here in silence: whatever neither the file nor the user says becomes a note. Anchor tables are
(levels, A, 4) offsets from a cell's top left corner, in pixels; ratios are height / width everywhere.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from retinaserve.training.anchors import FloatArray
from retinaserve.training.coco import COCO_NAMES
from retinaserve.training.errors import Exit, UserError
from retinaserve.training.images.resize import PixelType
from retinaserve.training.layouts import BACKBONES, PUBLISHED_WIDTH, EfficientLayout, ResNetLayout
from retinaserve.training.model import build_model
from retinaserve.training.spec import STRIDES, Clip, DetectorSpec, Network, anchor_rows

Weights = dict[str, Tensor]
Categories = Mapping[int, str]  # id: name, in the order of the annotation file
Sizes = Sequence[Sequence[float]]

FIRST = "backbone.conv1.weight"
EPS = 1e-5  # of every norm in torch and here
MOBILENET_EPS = 1e-3  # of MobileNetV3's where torchvision makes them
SMALL_CHANGE = 1e-3  # of a norm's scale, below which its epsilon decides nothing
LARGE_PIXELS = 64.0  # what pixels of -128 to 127 are divided by: a power of two, which rounds nothing
UNLIMITED = 20.0  # a delta clamp that no box inside an image reaches: e^20 anchors
RATIOS = (0.5, 1.0, 2.0)
OCTAVES = tuple(2 ** (third / 3) for third in range(3))
SIZES = tuple(tuple(4 * stride * scale for scale in OCTAVES) for stride in STRIDES)  # 32 to 512, three an octave


WHOLE = (
    "parts of tensors, of a sharded model: save what torch's get_model_state_dict gives with full_state_dict=True"
)
PLAIN = "make the weights plain first: torch.nn.utils.prune.remove, or parametrize.remove_parametrizations"
UNKNOWN = "see `retinaserve import --help` for what can be read"
REMEDIES = {  # words in names and classes of tensors that are none by themselves
    "_rebuild_wrapper_subclass": WHOLE,
    "ShardedTensor": WHOLE,
    "_rebuild_meta_tensor": "tensors without values, on the device meta: save the model once it has its weights",
    "_rebuild_qtensor": "quantised tensors: import the float weights that they were made from",
    "weight_orig": PLAIN,
    "parametrizations.": PLAIN,
    "weight_g": PLAIN,
}


def plain_anchors(sizes: Sizes, ratios: Sequence[float], *, order: str, centre: float) -> FloatArray:
    """Return anchors that are not rounded.

    sizes: the square roots of the areas, a level each; order: what changes slower, "scale" or "ratio"; centre: of
    the anchors in the cell, in strides.
    """
    levels = []
    for stride, level in zip(STRIDES, sizes, strict=True):
        side, ratio = np.meshgrid(np.array(level, np.float64), ratios, indexing="ij" if order == "scale" else "xy")
        side, ratio = side.ravel(), ratio.ravel()
        half = np.stack((side / np.sqrt(ratio), side * np.sqrt(ratio)), axis=1) / 2
        levels.append(np.concatenate((centre * stride - half, centre * stride + half), axis=1))
    table: FloatArray = np.stack(levels).astype(np.float32)
    return table


def described(sizes: Sizes, ratios: Sequence[float], source: str) -> str:
    """Return the line that tells of a table."""
    shown = " ".join(",".join(f"{size:.4g}" for size in level) for level in sizes)
    return f"anchors: sizes {shown}, ratios {','.join(f'{ratio:g}' for ratio in ratios)} ({source})"


@dataclass(frozen=True)
class Choices:
    """What the user said; None where the file, what lies beside it, or the family's default is to decide."""

    size: Any = None  # (h, w) as the resize rule takes them
    resize_rule: str | None = None  # the family's own if None
    pixels: PixelType | None = None  # the rule's own if None
    categories: Categories | None = None
    first_class: int | None = None
    norm_eps: float | None = None
    style: str | None = None
    convention: str = "current"
    clip: Clip | None = None
    anchor_sizes: tuple[tuple[float, ...], ...] | None = None
    anchor_ratios: tuple[float, ...] | None = None
    score_threshold: float | None = None
    nms_iou: float | None = None
    max_detections: int | None = None
    topk_candidates: int | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None

    def __post_init__(self) -> None:
        """Raise UserError for anchors that cannot be."""
        sizes, ratios = self.anchor_sizes or (), self.anchor_ratios or ()
        for number in (*ratios, *(size for level in sizes for size in level)):
            if not 0 < number < float("inf"):
                raise UserError(
                    f"an anchor of {number:g}", "positive sizes and ratios are expected", code=Exit.USAGE
                )
        if len({len(level) for level in sizes}) > 1:
            raise UserError(
                "--anchor-sizes has more on some levels", "as many on each are expected", code=Exit.USAGE
            )


def clip_of(choices: Choices, rule: str) -> tuple[Clip, str]:
    """Return what boxes of an author with this resize rule end at, who ends them at the canvas; and its line."""
    clip: Clip = choices.clip or ("canvas" if choices.resize_rule in (None, rule) else "image")
    told = ", some in its padding, as its own do; --clip image: a better AP" if clip == "canvas" else ""
    return clip, f"boxes end at the {clip} (--clip){told}"


@dataclass(frozen=True, eq=False)
class Found:
    """One set of weights out of a file: tensors by the family's own names, and whatever else is known of them."""

    state: Weights
    content: object = None  # the whole file
    module: Any = None  # the inert module that the weights were in, if a whole model was saved
    beside: Mapping[str, Any] = field(default_factory=dict)  # what lay beside the file: configs by their names
    name: str = ""  # of the file
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Imported:
    """A detector of this project, and what was decided on the way, in sentences."""

    spec: DetectorSpec
    weights: Weights
    notes: tuple[str, ...]
    size: tuple[int, int] | None = None  # as the resize rule takes it, where the file says


def assemble(
    spec: DetectorSpec, weights: Weights, choices: Choices, notes: Sequence[str], *, said: Sequence[str] = ()
) -> Imported:
    """Return the detector if its weights are those of its network, to the last; what the user said goes first.

    said: settings of the spec that the file itself says.
    """
    names = ("score_threshold", "nms_iou", "max_detections", "topk_candidates", "mean", "std")
    chosen = {name: getattr(choices, name) for name in names if getattr(choices, name) is not None}
    spec = replace(spec, **chosen)
    sources = {name: "--" for name in chosen} | {name: "file" for name in said if name not in chosen}
    lines = [*notes, *_described(spec, sources)]
    if max(spec.std) * 255 < 2 and FIRST in weights:
        red, green, blue = (LARGE_PIXELS * value for value in spec.std)
        spec = replace(spec, std=(red, green, blue))
        weights = {**weights, FIRST: LARGE_PIXELS * weights[FIRST].float()}
        lines.append(
            f"the first convolution's weights: times {LARGE_PIXELS:g}, of pixels divided by it: no answer "
            "changes, and an optimizer's steps fit them"
        )
    with torch.device("meta"):
        expected = build_model(spec).state_dict()
    weights = _with_counters(weights, expected)
    for name in (*expected, *weights):
        if name not in weights or name not in expected:
            problem = "lack" if name in expected else "have an unexpected"
            raise UserError(
                f"the weights {problem} {name!r}", f"a RetinaNet with a plain {spec.network.backbone} is expected"
            )
        if weights[name].shape != expected[name].shape:
            raise UserError(
                f"{name!r} measures {tuple(weights[name].shape)}", f"{tuple(expected[name].shape)} is expected"
            )
        if expected[name].is_floating_point() and not weights[name].is_floating_point():
            raise UserError(f"the weights have {weights[name].dtype} in {name!r}", "floats are expected")
    halves = {str(value.dtype).removeprefix("torch.") for value in weights.values() if value.dtype.itemsize < 4}
    plain = {name: weights[name].detach().to(value.dtype).clone() for name, value in expected.items()}
    faulty = next((name for name, value in plain.items() if not torch.isfinite(value).all()), None)
    if faulty:
        raise UserError(f"{faulty!r} holds values that are no numbers", "the weights are damaged, or diverged")
    if halves:
        lines.append(f"weights: {' and '.join(sorted(halves))}, kept as float32")
    return Imported(spec, plain, tuple(lines))


def _described(spec: DetectorSpec, sources: Mapping[str, str]) -> list[str]:
    """Return what holds where nothing else was said, in lines, each with its source."""

    def source(*names: str) -> str:
        found = {sources.get(name, "default") for name in names}
        words = {"default": "assumed, the family's own", "file": "from the file", "--": "as you said"}
        return ", the others ".join(words[each] for each in ("--", "file", "default") if each in found)

    pixels = ", ".join(f"{255 * value:.4g}" for value in spec.mean)
    scales = ", ".join(f"{255 * value:.4g}" for value in spec.std)
    return [
        f"thresholds: score {spec.score_threshold:g}, NMS {spec.nms_iou:g}, {spec.topk_candidates} a level, "
        f"{spec.max_detections} an image "
        f"({source('score_threshold', 'nms_iou', 'max_detections', 'topk_candidates')}; "
        "--score, --nms, --max, --candidates)",
        f"pixels: RGB, mean {pixels}, std {scales} of 255 ({source('mean', 'std')}; --mean, --std)",
    ]


def named(
    choices: Choices, count: int, *, known: Categories | None = None, first: int = 0
) -> tuple[Categories, str]:
    """Return the categories of `count` outputs in their order, and where the names came from.

    known: those in the file or beside it, whose ids are --annotations' where that has all the names; first: the
    number of the first, where nobody names them.
    """
    ids = {name: number for number, name in (choices.categories or {}).items()}
    if known and len(found := {ids[name]: name for name in known.values() if name in ids}) == len(known) == count:
        return found, f"classes: {count}, named by the file, with the ids of --annotations"
    for categories, source in ((choices.categories, "--annotations"), (known, "the file")):
        if categories is not None:
            if len(categories) != count:
                raise UserError(
                    f"the weights have {count} classes, {source} {len(categories)}",
                    "name the file that they were trained on: --annotations train.json",
                )
            other = f", in its order; the file has {', '.join(known.values())}" if ids and known else ""
            return categories, f"classes: {count}, named by {source}{other}"
    if count == len(COCO_NAMES):
        return COCO_NAMES, f"classes: {count}, guessed to be COCO's in their order; --annotations names others"
    return numbered(count, first), f"classes: {count} without names; --annotations FILE.json names them"


def numbered(count: int, first: int) -> Categories:
    """Return categories that are named by their numbers."""
    return {number: f"class {number}" for number in range(first, first + count)}


def spec_of(
    choices: Choices,
    weights: Mapping[str, Tensor],
    table: FloatArray,
    network: Network,
    *,
    known: Categories | None = None,
    sort: bool = False,
    **settings: Any,
) -> tuple[DetectorSpec, str]:
    """Return the spec of renamed weights, and where its classes' names came from.

    known: the names that the file holds; sort: whether the family has categories in the order of their ids.
    """
    if sort and choices.categories is not None:
        choices = replace(
            choices, categories={each: choices.categories[each] for each in sorted(choices.categories)}
        )
    count = weights["cls_head.output.weight"].shape[0] // table.shape[1]
    categories, line = named(choices, count, known=known)
    ids, anchors = tuple(categories), anchor_rows(table)
    return DetectorSpec(tuple(categories.values()), ids, choices.size, anchors, network, **settings), line


def anchors_of(
    choices: Choices, sizes: Sizes, ratios: Sequence[float], source: str, *, order: str, centre: float
) -> tuple[FloatArray, str]:
    """Return the anchor table, of `sizes` and `ratios` where the user says nothing else, and what tells of it."""
    if choices.anchor_sizes or choices.anchor_ratios:
        source = "as you said"
    sizes, ratios = choices.anchor_sizes or sizes, choices.anchor_ratios or ratios
    if len(sizes) != len(STRIDES):
        raise UserError(f"anchors of {len(sizes)} levels, the weights have {len(STRIDES)}")
    return plain_anchors(sizes, ratios, order=order, centre=centre), described(sizes, ratios, source)


def recognise_backbone(state: Mapping[str, Tensor]) -> tuple[str, int]:
    """Return the name and the width of a backbone by its parameters. Raises UserError for another's."""
    if "features.0.0.weight" in state and "features.17.conv.3.weight" in state:
        return "mobilenet_v2", 2 * state["features.0.0.weight"].shape[0]
    for name, layout in BACKBONES.items():
        first = f"features.1{'' if isinstance(layout, EfficientLayout) and layout.hard else '.0'}.block.0.0.weight"
        if isinstance(layout, EfficientLayout) and {"features.0.0.weight", first} <= state.keys():
            return name, PUBLISHED_WIDTH * state["features.0.0.weight"].shape[0] // layout.stem
    depths = tuple(
        len({name.split(".")[1] for name in state if name.startswith(f"layer{stage}.")}) for stage in (1, 2, 3, 4)
    )
    if not all(depths) or not {"conv1.weight", "layer1.0.conv2.weight"} <= state.keys():
        raise unknown("a ResNet, ResNeXt, MobileNet or EfficientNet-B0 of torchvision", state)
    (stem, _, kernel, _), inner = state["conv1.weight"].shape, state["layer1.0.conv2.weight"]
    groups = inner.shape[0] // inner.shape[1]
    bottleneck = "layer1.0.conv3.weight" in state
    for name, layout in BACKBONES.items():
        if isinstance(layout, ResNetLayout):
            width = stem if layout.pool else 2 * stem
            channels = layout.groups * max(1, width * layout.group_width // 64)
            found = (depths, bottleneck, groups, inner.shape[0], kernel)
            if found == (layout.blocks, layout.bottleneck, layout.groups, channels, layout.stem):
                return name, width
    raise UserError(
        f"a ResNet with stages of {depths} blocks, {groups} groups and {inner.shape[0]} channels is not supported",
        f"one of: {', '.join(BACKBONES)}",
    )


def with_eps(state: Mapping[str, Tensor], eps: float) -> Weights:
    """Return a backbone's weights so that its norms answer with our epsilon what they did with `eps`."""
    weights = dict(state)
    if eps != EPS:
        for name, variance in state.items():
            if name.endswith(".running_var"):
                scale = name.replace("running_var", "weight")
                ratio = ((variance.double() + EPS) / (variance.double() + eps)).sqrt()
                weights[scale] = (state[scale].double() * ratio).float()
    return weights


def eps_matters(state: Mapping[str, Tensor]) -> float:
    """Return by how much, as a ratio, an epsilon of 0 instead of 1e-5 changes the scale of a norm at most."""
    variances = [value for name, value in state.items() if name.endswith(".running_var")]
    smallest = min((float(value.min()) for value in variances), default=1.0)
    return float(((smallest + EPS) / max(smallest, 1e-30)) ** 0.5 - 1)


def renamed(rule: Callable[[str], str | None], state: Mapping[str, Tensor]) -> Weights:
    """Return the tensors by the names that `rule` gives them; those without a name are dropped."""
    weights: Weights = {}
    for name, value in state.items():
        try:
            ours = rule(name)
        except (KeyError, IndexError, ValueError):
            raise UserError(
                f"the weights have an unexpected {name!r}", "those of a plain RetinaNet are expected"
            ) from None
        if ours:
            weights[ours] = value
    return weights


def scale_boxes(weights: Weights, deviation: Sequence[float]) -> None:
    """Fold the deviation that a family divides its deltas by into the box output."""
    for part in ("weight", "bias"):
        output = weights[f"box_head.output.{part}"].float()
        factor = torch.tensor(list(deviation)).repeat(len(output) // 4)
        weights[f"box_head.output.{part}"] = output * factor.view(-1, *[1] * (output.dim() - 1))


def as_bgr(weights: Weights) -> None:
    """Fold the order of channels into the first convolution: it was trained on BGR and is served RGB."""
    weights[FIRST] = weights[FIRST].flip(1)


def shape_of(weights: Weights, *, style: str = "3x3") -> Network:
    """Return what the names and shapes of renamed weights say of the network, the backbone's included."""
    for name in ("fpn.p7.weight", "box_head.output.weight"):
        if name not in weights:
            raise UserError(f"the weights lack {name!r}", "a RetinaNet with the levels P3 to P7 is expected")
    body = {
        name.removeprefix("backbone."): value for name, value in weights.items() if name.startswith("backbone.")
    }
    backbone, width = recognise_backbone(body)
    channels, inputs = weights["fpn.p6.weight"].shape[:2]
    depth = sum(name.startswith("box_head.convs.") and name.endswith(".weight") for name in weights)
    top = weights["fpn.laterals.2.weight"].shape[1]
    return Network(
        backbone,
        width,
        channels,
        depth,
        norm="group" if "cls_head.norms.0.0.weight" in weights else "none",
        pyramid_norm=False,
        p6_from="c5" if inputs == top and inputs != channels else "p5",
        stride_in=style,
    )


def unknown(what: str, content: object, lacking: str = "") -> UserError:
    """Return the error for a file that is not `what`; lacking: the tensors it is not for."""
    found = getattr(content, "kind", "") or "nothing with names"
    remedy = UNKNOWN
    if isinstance(content, Mapping):
        inner = max((each for each in content.values() if isinstance(each, Mapping)), key=len, default={})
        if len(inner) > len(content):
            return unknown(what, inner, lacking)
        kinds = {name: getattr(value, "kind", "") for name, value in content.items()}  # classes of inert objects
        names = [f"{name} (class {kind})" if kind else str(name) for name, kind in kinds.items()]
        found = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        words = " ".join((*kinds.values(), *(str(name) for name in content)))
        remedy = next((told for word, told in REMEDIES.items() if word in words), remedy)
    found = f"it lacks {lacking}" if lacking else f"it holds {found}"
    return UserError(f"not {what}: {found}", remedy)


def _with_counters(weights: Weights, expected: Mapping[str, Tensor]) -> Weights:
    """Add the batch counters that frozen norms have not."""
    missing = (name for name in expected if name.endswith(".num_batches_tracked") and name not in weights)
    return {**{name: torch.tensor(0) for name in missing}, **weights}
