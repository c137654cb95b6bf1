"""What `train --preset` chooses by itself: an input size, anchors and a schedule that fit a labelled set.

    for choice in fit(dataset, options, given=("iters",)):
        options.update(choice.settings)
        print(choice)          # --anchor-size 3: 97% of the boxes fit an anchor

The network and everything that does not depend on the set is in the preset's recipe, training/recipes/fast-n.yaml.
"""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from retinaserve.training.anchors import base_anchors
from retinaserve.training.data.dataset import CocoDataset, best_overlaps, sample_sizes
from retinaserve.training.machine import BF16_FLAGS, flags
from retinaserve.training.spec import STRIDES, Design

PIXELS, MOST_PIXELS = 320 * 320, 640 * 640  # of an input
SMALL = 20.0  # pixels of a side that a tenth of the boxes may fall below, if the images have more
MULTIPLE = 32  # of the input's sides
ANCHOR_SIZES = (1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0)  # in strides
PASSES = 100  # of 200 images
FEWEST, MOST = 500, 20000  # iterations
LEVELS = 3  # of the pyramids of all presets
CHECKS = 12  # validations and checkpoints
AVERAGED = 10.0  # one part in so many of the iterations is what the average remembers
FloatArray = npt.NDArray[np.float32]


class Choice(NamedTuple):
    """Flags by their names with underscores, and why."""

    settings: dict[str, Any]
    why: str

    def __str__(self) -> str:
        flags = ", ".join(f"--{name.replace('_', '-')} {_shown(value)}" for name, value in self.settings.items())
        return f"{flags}: {self.why}"


def fit(dataset: CocoDataset, options: Mapping[str, Any], given: Collection[str]) -> Iterator[Choice]:
    """Yield choices for a set, whose images' headers are read for it; none that is `given` is among them.

    options: the recipe's and those that were given, by the names of flags.
    """
    sample = list(sample_sizes(dataset))
    size = options["size"]
    if "size" not in given:
        size, why = fit_size(sample)
        yield Choice({"size": size}, why)
    if "anchor_size" not in given:
        boxes = [sizes * min(size[0] / height, size[1] / width) for (height, width), sizes in sample]
        anchor_size, covered = fit_anchor(np.concatenate(boxes or [np.zeros((0, 2), np.float32)]))
        yield Choice({"anchor_size": anchor_size}, f"{covered:.0%} of the boxes fit an anchor")
    iterations = options["iters"]
    if "iters" not in given:
        iterations = fit_iterations(len(dataset), options["batch"])
        epochs = iterations * options["batch"] / len(dataset)
        yield Choice({"iters": iterations}, f"{epochs:.0f} epochs of {len(dataset)} images")
    every = max(1, iterations // CHECKS)
    schedule = {
        "warmup": iterations // 20,
        "ema": round(max(0.0, 1 - AVERAGED / iterations), 4),
        "val_iters": every,
        "save_every": every,
    }
    if rest := {name: value for name, value in schedule.items() if name not in given}:
        yield Choice(rest, f"of {iterations} iterations")
    if "precision" not in given:
        yield Choice({"precision": "bf16" if has_bf16() else "fp32"}, "what this processor is fastest in")


def fit_size(sample: Sequence[tuple[tuple[int, int], FloatArray]]) -> tuple[tuple[int, int], str]:
    """Return (h, w) of an input for (h, w) of images with the (M, 2) sizes of their boxes, and the reason.

    It has the images' usual shape and PIXELS, or more where a tenth of the boxes would be smaller than SMALL.
    """
    if not sample:
        return Design.size, "no image could be read"
    heights, widths = np.array([size for size, _ in sample], np.float64).T
    height, width = float(np.median(heights)), float(np.median(widths))
    share = min(1.0, math.sqrt(PIXELS / (height * width)))
    sides = np.concatenate([boxes.prod(axis=1) ** 0.5 for _, boxes in sample])
    small = float(np.quantile(sides, 0.1)) if len(sides) else SMALL
    wanted = min(1.0, math.sqrt(MOST_PIXELS / (height * width)), max(share, SMALL / small))
    size = tuple(max(MULTIPLE, round(side * wanted / MULTIPLE) * MULTIPLE) for side in (height, width))
    why = f"images are {height:.0f} x {width:.0f} pixels, and a tenth of the boxes below {small:.0f}"
    return (size[0], size[1]), why


def fit_anchor(sizes: FloatArray) -> tuple[float, float]:
    """Return the anchor size at which boxes (M, 2), in the network's pixels, overlap their square anchors most.

    The second number is the share of boxes that overlap one by half, their centres being the same.
    """
    if not len(sizes):
        return Design.anchor_size, 0.0
    found = {}
    for candidate in ANCHOR_SIZES:
        table = base_anchors(STRIDES[:LEVELS], base_size=candidate, scales=(1.0,), ratios=(1.0,))
        found[candidate] = best_overlaps(sizes, table)
    best = max(found, key=lambda candidate: float(found[candidate].mean()))
    return best, float((found[best] >= 0.5).mean())


def fit_iterations(images: int, batch: int) -> int:
    """Return how long to train, in hundreds: the more images, the fewer times each is seen."""
    passes = PASSES * math.sqrt(200 / max(images, 1))
    return max(FEWEST, min(MOST, 100 * round(passes * images / batch / 100)))


def has_bf16() -> bool:
    """Return whether this machine multiplies in bf16: a GPU of today, or a CPU with AVX512-BF16 or AMX."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return not flags().isdisjoint(BF16_FLAGS)


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
