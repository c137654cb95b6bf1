"""An endless, seeded stream of batches that can be entered at any iteration; the loaders of both kinds follow it.

    for keys in Stream(len(dataset), settings, first=iteration): ...     # [(epoch, index), ...] a batch

It is one shuffled epoch after the other, cut into batches without regard to where an epoch ends, so a batch may be
larger than the set. Everything random is a function of (seed, epoch, image): a resumed run, one with other
workers, another loader or more processes sees what an uninterrupted one would have seen.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from torch import Tensor

from retinaserve.training.data.augment import ZOOM, Frame, View, random_view
from retinaserve.training.data.dataset import Labels
from retinaserve.training.model.losses import Target
from retinaserve.training.pixels import Decoding
from retinaserve.training.spec import DetectorSpec

Loader = Literal["torch", "dali"]


class Batch(NamedTuple):
    """Images and what is in them."""

    images: Tensor  # (B, 3, H, W) of the spec's `pixels`, channels last in memory
    targets: list[Target]
    image_ids: list[int]


@dataclass(frozen=True)
class StreamSettings:
    """What the stream depends on. `batch` is all processes' together; each takes its own part of every batch."""

    batch: int
    seed: int = 0
    augment: str = "basic"
    workers: int = 0
    loader: Loader = "torch"
    shorter: int | None = None  # see augment.Frame
    longest: int = 1333
    jitter: tuple[int, int] | None = None  # the range of the shorter side, in pixels
    full_decode: bool = False  # all pixels of a JPEG
    rank: int = 0
    world: int = 1

    def decoding(self, spec: DetectorSpec) -> Decoding:
        """Return how images are decoded."""
        return Decoding(full=self.full_decode, value_range=spec.value_range)

    def frame(self, spec: DetectorSpec) -> Frame:
        """Return how large images are trained on."""
        return Frame(spec.size, self.shorter, self.longest, spec.resizing)

    def view(self, key: tuple[int, int], labels: Labels, original: tuple[int, int], spec: DetectorSpec) -> View:
        """Draw how the image at (epoch, index) is looked at."""
        rng = np.random.default_rng((self.seed, *key))
        base = self.frame(spec).base
        zoom = ZOOM if self.jitter is None else (self.jitter[0] / base, self.jitter[1] / base)
        height, width = original
        return random_view(self.augment, rng, boxes=labels.boxes / ((width, height) * 2), zoom=zoom)


class Stream:
    """The endless sampler: lists of (epoch, index), a process's part of a batch each, from batch `first` on."""

    def __init__(self, count: int, settings: StreamSettings, first: int = 0) -> None:
        self.count, self.settings, self.first = count, settings, first

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        share = self.settings.batch // self.settings.world
        own = slice(self.settings.rank * share, (self.settings.rank + 1) * share)
        position = self.first * self.settings.batch
        batch: list[tuple[int, int]] = []
        while True:
            epoch, start = divmod(position, self.count)
            order = np.random.default_rng((self.settings.seed, epoch)).permutation(self.count)
            for index in order[start:]:
                batch.append((epoch, int(index)))
                if len(batch) == self.settings.batch:
                    yield batch[own]
                    batch = []
            position = (epoch + 1) * self.count
