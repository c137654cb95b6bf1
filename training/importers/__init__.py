"""Public weights become checkpoints: whose file it is is found out, read as data, and told.

    result = import_weights(Path("model.pth"), Choices())      # Imported, or a Backbone
    save(path, Checkpoint(result.spec, result.weights))

Weights are renamed, never changed, but for what makes them agree with this project's conventions: outputs of
categories that don't exist go, norms with another epsilon take it up in their scale, deviations of boxes and the
order of channels are folded in. Nothing is downloaded, and no family's own package is needed.
"""

import csv
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from retinaserve.training.checkpoint import Backbone
from retinaserve.training.errors import Exit, UserError
from retinaserve.training.images.resize import RESIZES
from retinaserve.training.importers import detectron2, fizyr, mmdetection, odtk, torchvision, yhenon
from retinaserve.training.importers.parts import (
    EPS,
    MOBILENET_EPS,
    UNKNOWN,
    Choices,
    Found,
    Imported,
    recognise_backbone,
    unknown,
    with_eps,
)
from retinaserve.training.importers.reader import read_weights
from retinaserve.training.importers.states import Candidate, check_layers, choose, find, nearest
from retinaserve.training.model.backbones import build_backbone
from retinaserve.training.spec import Design, Network

__all__ = ["SOURCES", "Choices", "Imported", "import_weights"]


class Family(NamedTuple):
    """What a family is called, the tensors by which it is known, and its importer."""

    what: str
    marks: tuple[str, ...]  # the first is a name that no other family has
    load: Callable[[Found, Choices], Imported] | None = None


BACKBONE = "torchvision-backbone"
FAMILIES: Mapping[str, Family] = {
    "torchvision": Family("a RetinaNet of torchvision", torchvision.NEEDS, torchvision.import_torchvision),
    "detectron2": Family("a RetinaNet of Detectron2", detectron2.NEEDS, detectron2.import_detectron2),
    "mmdetection": Family("a RetinaNet of mmdetection", mmdetection.NEEDS, mmdetection.import_mmdetection),
    "yhenon": Family("yhenon's RetinaNet", yhenon.NEEDS, yhenon.import_yhenon),
    "fizyr": Family("fizyr's RetinaNet", fizyr.NEEDS, fizyr.import_fizyr),
    "odtk": Family("a checkpoint of the predecessor (odtk)", odtk.NEEDS, odtk.import_odtk),
    BACKBONE: Family(
        "a ResNet, ResNeXt, MobileNet or EfficientNet-B0 of torchvision", ("layer1.0.conv1.weight", "conv1.weight")
    ),
}
NUMBERED = ("features.1.conv.0.0.weight", "features.1.block.0.0.weight", "features.1.0.block.0.0.weight")
SOURCES = tuple(FAMILIES)
UNUSED = ("fc.", "classifier.")  # what a backbone has behind its last stage
ONLY_FOR: Mapping[str, tuple[str, ...]] = {  # settings that some families have no use for
    "first_class": ("torchvision",),
    "norm_eps": ("torchvision",),
    "style": ("detectron2", "mmdetection"),
    "clip": ("yhenon", "odtk"),
    "convention": ("odtk",),
    "anchor_sizes": ("torchvision", "detectron2", "mmdetection", "yhenon", "fizyr"),
    "anchor_ratios": ("torchvision", "detectron2", "mmdetection", "yhenon", "fizyr"),
}
MOST_CSV = 1 << 20
DAMAGE = (KeyError, IndexError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError)
CHECK = "to check it: retinaserve verify OUT.pth --answers RESULTS.json ..., COCO results that your own code wrote"


def import_weights(path: Path, choices: Choices, *, source: str | None = None, key: str | None = None) -> Any:
    """Return the detector in a file or folder as `Imported`, or the backbone in it as `Backbone`, with its notes.

    source: one of SOURCES, where the file leaves a doubt; key: which of several sets of weights is meant.
    Raises UserError for files that are nobody's.
    """
    content = read_weights(path)
    if isinstance(content, Mapping) and {"format", "weights", "spec"} <= content.keys():
        raise UserError(f"{path}: a checkpoint of retinaserve already", f"use it: retinaserve serve {path}")
    try:
        return import_content(content, choices, source=source, key=key, name=path.name, beside=_beside(path))
    except UserError as error:
        shard = re.search(r"-\d+-of-\d+", path.name)
        hint = "one part of several: name their folder" if shard else error.hint
        raise UserError(f"{path}: {error.message}", hint, code=error.code) from None


def import_content(
    content: object,
    choices: Choices,
    *,
    source: str | None = None,
    key: str | None = None,
    name: str = "",
    beside: Mapping[str, Any] | None = None,
) -> Any:
    """Do what `import_weights` does with what a file holds."""
    marks = {name: family.marks for name, family in FAMILIES.items()}
    candidates = find(content, marks) or [
        replace(each, family=BACKBONE)
        for mark in NUMBERED
        for each in find(content, {BACKBONE: (mark, "features.0.0.weight")})
    ]
    families = {each.family for each in candidates}
    detectors = [each for each in candidates if each.family != BACKBONE]
    if source:
        candidates = [each for each in candidates if each.family == source]
        if not candidates:
            error = unknown(FAMILIES[source].what, content)
            seen = " and ".join(FAMILIES[each].what for each in sorted(families))
            seen = f"; it looks like {seen}" if seen else ""
            raise UserError(error.message + seen, "leave out --from" if families else error.hint)
    elif detectors:
        candidates = detectors
    elif not any(each.alone for each in candidates):
        near, lacking = nearest(content, {each: own for each, own in marks.items() if each != BACKBONE})
        error = unknown(FAMILIES[near].what if near else "a RetinaNet that is known", content, lacking)
        if candidates and error.hint == UNKNOWN and not near:
            error = UserError(error.message, f"--from {BACKBONE} takes its backbone, to train a detector from")
        raise error
    chosen, notes = choose(candidates, key)
    for setting, users in ONLY_FOR.items():
        if getattr(choices, setting) != getattr(Choices, setting) and chosen.family not in users:
            flag = "anchors" if setting == "convention" else setting.replace("_", "-")
            raise UserError(
                f"--{flag} is nothing for {FAMILIES[chosen.family].what}",
                f"leave it out; it is for {', '.join(users)}",
                code=Exit.USAGE,
            )
    load = FAMILIES[chosen.family].load
    if load is None:
        return _backbone(chosen, notes)
    found = Found(chosen.state, content, chosen.module, beside or {}, name)
    check_layers(chosen.module)
    try:
        result = load(found, replace(choices, size=choices.size or Design.size))
    except DAMAGE as error:  # of a state that is not whole: each importer would have to ask for all it reads
        problem = (
            f"the weights lack {error}" if isinstance(error, KeyError) else f"the weights do not fit: {error}"
        )
        raise UserError(
            problem, f"{FAMILIES[chosen.family].what} as its author's code saves it is expected"
        ) from None
    result = _with_rule(result, chosen.family, choices)
    return replace(result, notes=(*notes, *result.notes))


def _with_rule(result: Imported, family: str, choices: Choices) -> Imported:
    """Return a detector with the resize rule of its family, or with the one that was chosen, and a note of it."""
    own = family if result.spec.resize == Design.resize_rule else result.spec.resize
    rule = choices.resize_rule or own
    pixels = choices.pixels or RESIZES[rule].pixels
    told = result.size if rule == own else None
    spec = replace(result.spec, resize=rule, pixels=pixels, size=choices.size or told or RESIZES[rule].usual)
    source = "from the file" if told else "assumed, the family's own"
    source = "as you said" if choices.resize_rule or choices.size else f"{source}; --resize-rule, --size"
    notes = [*result.notes, f"images: {spec.size_text} ({source}); pixels: {pixels}"]
    if any("assumed" in note or "guessed" in note for note in notes):
        notes.append(CHECK)
    return replace(result, spec=spec, notes=tuple(notes))


def _backbone(chosen: Candidate, notes: list[str]) -> Backbone:
    """Return a backbone, less what is behind its last stage. Raises UserError unless all of it fits."""
    state = {name: value for name, value in chosen.state.items() if not name.startswith(UNUSED)}
    name, width = recognise_backbone(state)
    with torch.device("meta"):
        expected = build_backbone(Network(name, width)).state_dict()
    layers = {each.split(".")[1] for each in expected if each.startswith("features.")}
    state = {each: value for each, value in state.items() if not layers or each.split(".")[1] in layers}
    state = {
        **{each: torch.tensor(0) for each in expected if each.endswith("num_batches_tracked")},
        **with_eps(state, MOBILENET_EPS if name == "mobilenet_v3_large" else EPS),
    }
    shapes, wanted = ({each: value.shape for each, value in some.items()} for some in (state, expected))
    for each in (*wanted, *shapes):
        if shapes.get(each) != wanted.get(each):
            other = "have another" if each in wanted else "have an unexpected"
            problem = f"the weights {other if each in shapes else 'lack'} {each!r}"
            raise UserError(problem, f"those of a plain {name} and nothing else are expected")
    kept = {each: state[each].float() if "num" not in each else state[each] for each in expected}
    return Backbone(name, width, kept)


def _beside(path: Path) -> dict[str, Any]:
    """Return what lies beside the weights: config.json, config.yaml, and small CSVs as rows, under "csv"."""
    folder = path if path.is_dir() else path.parent
    found: dict[str, Any] = {"csv": []}
    for name in ("config.json", "config.yaml"):
        if (folder / name).is_file():
            try:
                text = (folder / name).read_text()
                found[name] = json.loads(text) if name.endswith("json") else _yaml(text)
            except (OSError, ValueError):
                continue
    for each in sorted(folder.glob("*.csv")):
        if each.stat().st_size < MOST_CSV:
            with each.open(newline="", errors="replace") as file:
                found["csv"].append(list(csv.reader(file)))
    return found


def _yaml(text: str) -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        """What a config would compute, as Detectron2's base does its anchors, is None."""

    Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda *_: None)
    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError:
        return None
