"""Start from weights that exist: what fits is kept, what does not is replaced, and both are told.

    print(initialise(model, Path("coco.pth")))      # a checkpoint, or a backbone of `retinaserve import`

A class head that fits by its shape alone is not kept: outputs are matched by the names of their classes. What is
not kept stays as the fresh model has it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from retinaserve.training.checkpoint import Backbone, load, read
from retinaserve.training.errors import UserError
from retinaserve.training.model.retinanet import RetinaNet

CLASS_OUTPUT = ("cls_head.output.weight", "cls_head.output.bias")


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
            lines.append(
                f"  outputs kept of: {', '.join(self.classes[:12])}{', ...' if len(self.classes) > 12 else ''}"
            )
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


def _copy_classes(target: Tensor, source: Tensor, ours: tuple[str, ...], theirs: tuple[str, ...]) -> bool:
    """Copy the outputs of the classes that both know; return whether the rest of the shapes allows it."""
    if target.shape[0] * len(theirs) != source.shape[0] * len(ours) or target.shape[1:] != source.shape[1:]:
        return False
    # (A*C, ...) -> (A, C, ...): views, so the model's own tensors are written
    into, of = target.view(-1, len(ours), *target.shape[1:]), source.view(-1, len(theirs), *source.shape[1:])
    for index, name in enumerate(ours):
        if name in theirs:
            into[:, index] = of[:, theirs.index(name)]
    return True


def _grouped(names: Iterable[str]) -> str:
    """Return names as few: those of a part of the network by that part and their number."""
    groups: dict[str, int] = {}
    for name in names:
        part = ".".join(name.split(".")[:2])
        groups[part] = groups.get(part, 0) + 1
    return ", ".join(f"{part} ({count})" for part, count in groups.items())
