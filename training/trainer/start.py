"""What a run starts from: a checkpoint that goes on, weights that are fine-tuned, or nothing.

    spec = detector_to_train(path, dataset, {"backbone": "resnet18"}, fine_tune=None)
    print(initialise(model, Path("coco.pth")))      # a checkpoint, or a backbone of `retinaserve import`

A class head that fits by its shape alone is not kept: outputs are matched by the names of their classes. What is
not kept stays as the fresh model has it.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from retinaserve.training.checkpoint import Backbone, Checkpoint, load, read
from retinaserve.training.data.dataset import CocoDataset
from retinaserve.training.errors import UserError
from retinaserve.training.model.retinanet import RetinaNet
from retinaserve.training.spec import Design, DetectorSpec, Network
from retinaserve.training.trainer.config import TrainConfig

STARTS = Path(__file__).parents[1] / "recipes"  # has checkpoints to fine-tune, by their names
CLASS_OUTPUT = ("cls_head.output.weight", "cls_head.output.bias")
AFRESH = "name another file, or start afresh with --override"
MULTIPLE = 32  # pixels of an input's sides, where --resize decides them


def find_start(path: Path) -> Path:
    """Return the file, or the checkpoint of that name that comes along."""
    own = STARTS / f"{path}.pth"
    return own if not path.exists() and own.is_file() else path


def detector_to_train(
    path: Path, dataset: CocoDataset, settings: Mapping[str, Any], fine_tune: Path | None
) -> DetectorSpec:
    """Return the spec of the checkpoint at `path`, if there is one, else that of a new detector.

    settings: flags that somebody chose. Raises UserError if the data or a flag asks for another detector than the
    checkpoint's.
    """
    network = {each.name: settings[each.name] for each in fields(Network) if each.name in settings}
    design = {each.name: settings[each.name] for each in fields(Design) if each.name in settings}
    if path.exists():
        spec = _resumed(path, dataset, {**network, **design})
        if settings.get("value_range") and tuple(settings["value_range"]) != spec.value_range:
            shown = " ".join(map(str, spec.value_range)) if spec.value_range else "of the format"
            raise UserError(f"{path} was trained with --value-range {shown}", AFRESH)
        return spec
    if settings.get("resize") and "size" not in design:
        longest = max(settings.get("max_size", TrainConfig.longest), settings["resize"])
        # Whatever was trained on fits into what is served.
        design["size"] = (-(-longest // MULTIPLE) * MULTIPLE,) * 2
    start = read(fine_tune) if fine_tune else None
    if fine_tune and not isinstance(start, Backbone):
        start = load(fine_tune)  # with its error for what is no checkpoint
    if isinstance(start, Backbone):
        network = {"backbone": start.name, "width": start.width, **network}
    spec = DetectorSpec.create(
        dataset.classes,
        category_ids=dataset.category_ids,
        tile=settings.get("tile"),
        value_range=tuple(settings["value_range"]) if settings.get("value_range") else None,
        **network,
        **design,
    )
    if not isinstance(start, Checkpoint):
        return spec
    keeps_rule = "resize_rule" not in design and start.spec.resize != Design.resize_rule
    regrown = network.get("p6_from", start.spec.network.p6_from) != start.spec.network.p6_from
    # The network's sizes that were asked for stand, even if little is left to start from.
    return replace(
        start.spec,
        classes=spec.classes,
        category_ids=spec.category_ids,
        # An author's rule stays with his weights; letterboxes have the size that is asked for, or the default.
        size=start.spec.size if keeps_rule and "size" not in design else spec.size,
        resize=start.spec.resize if keeps_rule else spec.resize,
        pixels=start.spec.pixels if keeps_rule else spec.pixels,
        tile=spec.tile,
        value_range=spec.value_range or start.spec.value_range,
        network=replace(start.spec.network, **network),
        strides=spec.strides if regrown else start.spec.strides,
        anchors=spec.anchors if regrown or {"anchor_size", "one_anchor"} & design.keys() else start.spec.anchors,
    )


def _resumed(path: Path, dataset: CocoDataset, chosen: Mapping[str, Any]) -> DetectorSpec:
    spec = load(path).spec
    if dataset.classes != spec.classes:  # ids may differ: the checkpoint keeps its own
        raise UserError(f"{path} was trained on other classes: {_difference(spec, dataset)}", AFRESH)
    for name, value in chosen.items():
        flag = f"--{name.replace('_', '-')}"
        one = spec.anchors_per_cell == 1
        if name == "one_anchor" and value != one:
            raise UserError(f"{path} has {spec.anchors_per_cell} anchors a cell", AFRESH)
        if name == "anchor_size":
            table = DetectorSpec.create(
                spec.classes, size=spec.size, strides=spec.strides, anchor_size=value, one_anchor=one
            ).anchors
            if table != spec.anchors:
                raise UserError(f"{path} has other anchors than {flag} {value:g}", AFRESH)
        if name in ("anchor_size", "one_anchor"):
            continue
        own = {"size": spec.size, "resize_rule": spec.resize}
        trained = own[name] if name in own else getattr(spec.network, name)
        if trained != (tuple(value) if name == "size" else value):
            shown = " ".join(str(part) for part in trained) if name == "size" else trained
            raise UserError(f"{path} was trained with {flag} {shown}", AFRESH)
    return spec


def _difference(spec: DetectorSpec, dataset: CocoDataset) -> str:
    gone = [name for name in spec.classes if name not in dataset.classes]
    new = [name for name in dataset.classes if name not in spec.classes]
    if gone or new:
        parts = (("without", gone), ("with", new))
        return "; ".join(f"{what} {', '.join(names)}" for what, names in parts if names)
    pairs = enumerate(zip(spec.classes, dataset.classes, dataset.category_ids, strict=True))
    place, (was, now, number) = next((place, pair) for place, pair in pairs if pair[0] != pair[1])
    return f"the ids put them in another order: class {place} was {was}, and id {number} makes it {now}"


@dataclass(frozen=True)
class Transfer:
    """What became of each tensor, by the model's names, those of `dropped` by the source's."""

    source: str
    kept: tuple[str, ...]
    replaced: tuple[str, ...]
    dropped: tuple[str, ...]
    classes: tuple[str, ...] = ()  # whose outputs were kept where the class head was replaced

    def __str__(self) -> str:
        lines = [f"{self.source}: {len(self.kept)} tensors kept, {len(self.replaced)} replaced"]
        if self.replaced:
            lines.append(f"  start afresh: {_grouped(self.replaced)}")
        if self.classes:
            more = ", ..." if len(self.classes) > 12 else ""
            lines.append(f"  outputs kept of: {', '.join(self.classes[:12])}{more}")
        if self.dropped:
            lines.append(f"  without a use: {_grouped(self.dropped)}")
        return "\n".join(lines)


def initialise(model: RetinaNet, path: Path) -> Transfer:
    """Put a checkpoint's or a backbone's weights into a model. Raises UserError where nothing fits."""
    content = read(path)
    if isinstance(content, Backbone):
        weights: Mapping[str, Tensor] = {f"backbone.{name}": value for name, value in content.weights.items()}
        classes: tuple[str, ...] = ()
    else:
        checkpoint = load(path)
        weights, classes = checkpoint.weights, checkpoint.spec.classes
    transfer = _transfer(model, weights, classes, path.name)
    if not transfer.kept:
        raise UserError(
            f"{path}: none of its weights fit this network",
            "leave out --backbone, --width, --fpn-channels and --norm: they come with what is fine-tuned",
        )
    return transfer


@torch.no_grad()
def _transfer(model: RetinaNet, weights: Mapping[str, Tensor], classes: tuple[str, ...], source: str) -> Transfer:
    own = model.state_dict()
    same_classes = classes == model.spec.classes
    fitting = {
        name: value
        for name, value in weights.items()
        if name in own and value.shape == own[name].shape and (same_classes or name not in CLASS_OUTPUT)
    }
    shared = []
    if not same_classes:
        shared = [name for name in model.spec.classes if name in classes]
        for name in CLASS_OUTPUT:
            if name in weights and not _copy_classes(own[name], weights[name], model.spec.classes, classes):
                shared = []
    model.load_state_dict(fitting, strict=False)
    return Transfer(
        source,
        tuple(fitting),
        tuple(name for name in own if name not in fitting and not name.endswith("num_batches_tracked")),
        tuple(name for name in weights if name not in own),
        tuple(shared),
    )


def _copy_classes(target: Tensor, source: Tensor, classes: tuple[str, ...], known: tuple[str, ...]) -> bool:
    """Copy the outputs of the classes that the source knows; return whether the rest of the shapes allows it."""
    if target.shape[0] * len(known) != source.shape[0] * len(classes) or target.shape[1:] != source.shape[1:]:
        return False
    # (A*C, ...) -> (A, C, ...): views, so the model's own tensors are written
    outputs = target.view(-1, len(classes), *target.shape[1:])
    source_outputs = source.view(-1, len(known), *source.shape[1:])
    for index, name in enumerate(classes):
        if name in known:
            outputs[:, index] = source_outputs[:, known.index(name)]
    return True


def _grouped(names: Iterable[str]) -> str:
    """Return names as few: those of a part of the network by that part and their number."""
    groups = Counter(".".join(name.split(".")[:2]) for name in names)
    return ", ".join(f"{part} ({count})" for part, count in groups.items())
