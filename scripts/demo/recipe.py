"""What the demo draws and trains: a detector of 1 M parameters that learns from nothing in minutes on two cores.

    ["data", "shapes", "runs/demo/data", *DEMO.data_flags()]
    ["train", "runs/demo/checkpoint.pth", *DEMO.train_flags()]

The numbers were found by experiment on the set that `data shapes` draws, and are no advice for other data: for
pictures of the world, start from the defaults of `train`.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """A data set, a network, and a way to train it, as options of `data shapes` and `train`."""

    data: Mapping[str, object]
    network: Mapping[str, object]
    training: Mapping[str, object]

    def data_flags(self) -> list[str]:
        """Return the options of `data shapes`."""
        return _flags(self.data)

    def train_flags(self) -> list[str]:
        """Return the options of `train`, but for the data."""
        return _flags({**self.network, **self.training})


def _flags(options: Mapping[str, object]) -> list[str]:
    flags = []
    for name, value in options.items():
        values = value if isinstance(value, tuple) else (value,)
        flags += [f"--{name.replace('_', '-')}", *(str(each) for each in values)]
    return flags


DEMO = Recipe(
    data={"train": 1500, "val": 150, "seed": 0},
    network={
        "backbone": "resnet18",
        "width": 16,
        "fpn_channels": 48,
        "head_depth": 2,
        "norm": "batch",
        # Shapes measure 12 to 50 % of a picture: anchors from 24 pixels cover them on P3 to P5.
        "anchor_size": 3.0,
        "size": (192, 192),
    },
    training={
        "iters": 1800,
        "batch": 8,
        "lr": 0.008,
        "warmup": 50,
        # What shapes are is harder to learn from nothing than where they are.
        "box_weight": 0.25,
        "augment": "flip",
        "seed": 0,
    },
)
