"""Which tensors of a file are whose detector: state dicts are found by what fits, under any wrapper and prefix.

    candidates = find(content, FAMILIES)
    chosen, notes = choose(candidates, key=None)

A whole module, of which the reader keeps only what it held, is walked as its `state_dict()` would have walked it.
"""

import math
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from retinaserve.training.errors import UserError
from retinaserve.training.importers.parts import Weights
from retinaserve.training.importers.pickles import Inert, mapping_of, plain

DEPTH = 6  # dicts in dicts
DEEPEST = 20  # modules in modules
# of torch.nn.modules: those of the networks here
LAYERS = {
    "activation": ("ReLU", "ReLU6", "Sigmoid", "SiLU", "Hardswish", "Hardsigmoid"),
    "normalization": ("GroupNorm",),
    "instancenorm": (),
}
AVERAGE = re.compile(r"(^|[._/])(\w*ema|\w*averaged?|swa|shadow|teacher)(_\w+)?([._/]|$)")


@dataclass(frozen=True, eq=False)
class Candidate:
    """A set of weights that a family's names fit."""

    family: str
    label: str  # where it lies in the file: keys and prefix, with dots
    state: Weights  # without the prefix
    module: Any = None
    alone: bool = True  # whether nothing lies beside it under other prefixes

    @property
    def averaged(self) -> bool:
        """Whether its place in the file calls it an average of weights."""
        return bool(AVERAGE.search(self.label))


def find(content: object, families: Mapping[str, tuple[str, ...]]) -> list[Candidate]:
    """Return all sets of weights in a file; families: names of tensors that all have to be there."""
    found = []
    for path, state, module in states(content):
        for family, marks in families.items():
            prefixes = [
                name.removesuffix(marks[0])
                for name in state
                if name.endswith(marks[0]) and (name == marks[0] or name[-len(marks[0]) - 1] in "./")
            ]
            fitting = [prefix for prefix in prefixes if all(prefix + mark in state for mark in marks)]
            for prefix in fitting:
                others = tuple(other for other in fitting if other.startswith(prefix) and other != prefix)
                own = {
                    name.removeprefix(prefix): value
                    for name, value in state.items()
                    if name.startswith(prefix) and not (others and name.startswith(others))
                }
                label = ".".join(filter(None, (*path, prefix.rstrip("./"))))
                found.append(Candidate(family, label, own, _inner(module, prefix), len(own) == len(state)))
            if fitting:
                break
    return found


def nearest(content: object, families: Mapping[str, tuple[str, ...]]) -> tuple[str, str]:
    """Return the family whose first tensor a file has, and one that it lacks; empty if there is none."""
    for _, state, _ in states(content):
        for family, marks in families.items():
            for name in state:
                if f".{name}".endswith(f".{marks[0]}"):
                    wanted = [name.removesuffix(marks[0]) + mark for mark in marks]
                    return family, next((each for each in wanted if each not in state), "")
    return "", ""


def choose(candidates: list[Candidate], key: str | None) -> tuple[Candidate, list[str]]:
    """Return the weights that `key` names, or the first that are no average, and what is to be said about it."""
    labels = ", ".join(candidate.label or "(top)" for candidate in candidates)
    if key is not None:
        named = [each for each in candidates if each.label == key] or [
            each for each in candidates if each.label.startswith(key)
        ]
        if len(named) != 1:
            raise UserError(f"--key {key}: names {len(named)} sets of weights", f"there are: {labels}")
        return named[0], [f"weights: {key}, as you said"]
    chosen = next((each for each in candidates if not each.averaged), candidates[0])
    others = [each for each in candidates if each is not chosen]
    notes = []
    for each in others:
        kind = "averaged weights (EMA)" if each.averaged else "other weights"
        kind = "those before averaging" if each.label.startswith("current_model_state") else kind  # Lightning's
        place, key = chosen.label or "those at the top", shlex.quote(each.label)
        notes.append(f"weights: {place}; {kind} lie beside them: --key {key}")
    if not others and chosen.label:
        notes.append(f"weights: {chosen.label}")
    return chosen, notes


def states(
    content: object, path: tuple[str, ...] = (), seen: set[int] | None = None
) -> Iterator[tuple[tuple[str, ...], Weights, Any]]:
    """Yield each mapping's tensors by name, with the keys that lead to it and the module that it was."""
    seen = set() if seen is None else seen
    if len(path) > DEPTH or id(content) in seen:
        return
    seen.add(id(content))
    if isinstance(content, Inert):
        if "_modules" in content.attributes():
            yield path, dict(_module_tensors(content, "", 0)), content
            return
        # torch.compile's modules are made of the one inside
        content = mapping_of(content) or dict(zip(("_orig_mod",), content.args, strict=False))
    if isinstance(content, list | tuple):
        content = dict(enumerate(content))
    if not isinstance(content, Mapping):
        return
    tensors = {str(name): plain(value) for name, value in content.items()}
    tensors = {name: value for name, value in tensors.items() if isinstance(value, Tensor)}
    if tensors:
        yield path, tensors, None
    for name, value in content.items():
        if isinstance(value, Mapping | Inert | list | tuple):
            yield from states(value, (*path, str(name)), seen)


def children(module: object) -> dict[str, Any]:
    """Return the modules inside an inert one, by their names."""
    found = mapping_of(module.attributes().get("_modules")) if isinstance(module, Inert) else {}
    return {str(name): value for name, value in found.items()}


def leaves(module: object, path: str = "") -> Iterator[tuple[str, Inert]]:
    """Yield the modules without others in them, with their paths."""
    inner = children(module)
    for name, each in inner.items() if path.count(".") < DEEPEST else ():
        yield from leaves(each, f"{path}.{name}".lstrip("."))
    if not inner and isinstance(module, Inert):
        yield path, module


def check_layers(module: object) -> None:
    """Raise UserError for a whole model with activations or norms whose weights look like those of others."""
    for path, leaf in leaves(module):
        *_, place, kind = leaf.kind.split(".")
        held = leaf.attributes()
        wrong = place in LAYERS and kind not in LAYERS[place]
        if kind == "GroupNorm":
            channels = int(held["num_channels"])
            expected = (max(1, math.gcd(64, channels) // 2), 1e-5)
            wrong = (held["num_groups"], held["eps"]) != expected
            kind = f"GroupNorm of {held['num_groups']} groups and epsilon {held['eps']:g}"
        if wrong:
            raise UserError(f"{path} is a {kind}", "ReLU and what torchvision's own have are expected")


def _module_tensors(module: Inert, prefix: str, depth: int) -> Iterator[tuple[str, Tensor]]:
    attributes = module.attributes()
    unsaved = attributes.get("_non_persistent_buffers_set")
    if isinstance(unsaved, Inert):
        unsaved = (*unsaved.listed, *(unsaved.args[0] if unsaved.args else ()))
    skipped = set(map(str, unsaved or ()))
    for kind in ("_parameters", "_buffers"):
        group = attributes.get(kind)
        group = group.items if isinstance(group, Inert) else group
        for name, value in group.items() if isinstance(group, Mapping) else ():
            if isinstance(value, Tensor) and str(name) not in skipped:
                yield f"{prefix}{name}", value
    for name, value in children(module).items() if depth < DEEPEST else ():
        if isinstance(value, Inert):
            yield from _module_tensors(value, f"{prefix}{name}.", depth + 1)


def _inner(module: Any, prefix: str) -> Any:
    for name in filter(None, prefix.split(".")):
        module = children(module).get(name)
    return module
