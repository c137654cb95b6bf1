"""From a data set to batches: an endless, seeded stream that can be entered at any iteration.

    for batch in training_batches(dataset, spec, settings, first=iteration): ...

The stream is one shuffled epoch after the other, cut into batches without regard to where an epoch ends, so a
batch may be larger than the set. Everything random is a function of (seed, epoch, picture): a resumed run, one
with other workers, another loader or more processes sees what an uninterrupted one would have seen. It does no
normalisation: pictures travel as bytes, and the network's own mean and deviation are applied on its device.
"""

import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from retinaserve.training.data.augment import WHOLE, ZOOM, View, random_view
from retinaserve.training.data.dataset import CocoDataset, Labels, Pixels, resized_size
from retinaserve.training.data.placement import Frame, Placement, place, place_labels
from retinaserve.training.errors import UserError
from retinaserve.training.model.losses import Target
from retinaserve.training.spec import DetectorSpec

CACHE_BYTES = 512 * 2**20  # a set that fits, shrunk to the input size, is decoded once (by each worker)

Loader = Literal["torch", "dali"]


class Batch(NamedTuple):
    """Pictures and what is in them."""

    images: Tensor  # (B, 3, H, W) uint8, channels last in memory
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
    shorter: int | None = None  # see placement.Frame
    longest: int = 1333
    jitter: tuple[int, int] | None = None  # the range of the shorter side, in pixels
    rank: int = 0
    world: int = 1

    def frame(self, spec: DetectorSpec) -> Frame:
        """Return how large pictures are trained on."""
        return Frame(spec.size, self.shorter, self.longest)

    def view(self, key: tuple[int, int], labels: Labels, original: tuple[int, int], spec: DetectorSpec) -> View:
        """Draw how the picture at (epoch, index) is looked at."""
        rng = np.random.default_rng((self.seed, *key))
        base = self.frame(spec).base
        zoom = ZOOM if self.jitter is None else (self.jitter[0] / base, self.jitter[1] / base)
        height, width = original
        return random_view(self.augment, rng, boxes=labels.boxes / ((width, height) * 2), zoom=zoom)


Sample = tuple[Pixels, Target, int]


class Views(Dataset["Sample | UserError"]):
    """Samples by (epoch, index): a picture of the set under that epoch's view of it."""

    def __init__(self, dataset: CocoDataset, spec: DetectorSpec, settings: StreamSettings) -> None:
        self.dataset, self.spec, self.settings = dataset, spec, settings
        height, width = spec.size
        self._cache: dict[int, tuple[Image.Image, tuple[int, int]]] | None = None
        # What looks closer than the letterbox does needs the picture itself; "basic" trades that for time.
        shrinks = settings.shorter is None and settings.augment in ("none", "flip", "basic")
        if shrinks and len(dataset) * height * width * 3 <= CACHE_BYTES:
            self._cache = {}

    def __getitem__(self, key: tuple[int, int]) -> Sample | UserError:
        """Return (H, W, 3) pixels, their boxes, and the image id; or what is wrong with the file.

        Returned, because what is raised in a worker arrives as the text of its traceback.
        """
        _, index = key
        try:
            picture, original = self._picture(index)
        except UserError as error:
            return error
        labels = self.dataset.labels[index]
        view = self.settings.view(key, labels, original, self.spec)
        placement = place(view, original, self.settings.frame(self.spec))
        return (
            paint(picture, placement, view, self.spec.pad_value),
            place_labels(labels, placement),
            labels.image_id,
        )

    def _picture(self, index: int) -> tuple[Image.Image, tuple[int, int]]:
        """Return a picture, shrunk if it is cached, and its original (h, w)."""
        if self._cache is None:
            picture = self.dataset.load(index)
            return picture, (picture.height, picture.width)
        if index not in self._cache:
            picture = self.dataset.load(index)
            original = (picture.height, picture.width)
            height, width = resized_size(original, self.spec.size)
            self._cache[index] = picture.resize((width, height), Image.Resampling.BILINEAR), original
        return self._cache[index]


def render(
    picture: Image.Image, original: tuple[int, int], labels: Labels, view: View, spec: DetectorSpec
) -> tuple[Pixels, Target]:
    """Letterbox a picture under a view, with its boxes; without a view it is exactly `dataset.letterbox`.

    `picture` may have been shrunk already; `original` is the (h, w) that the labels' boxes are in.
    """
    placement = place(view, original, Frame(spec.size))
    return paint(picture, placement, view, spec.pad_value), place_labels(labels, placement)


def paint(picture: Image.Image, placement: Placement, view: View, fill: tuple[int, int, int]) -> Pixels:
    """Return the (H, W, 3) canvas of a placement, with the view's colours."""
    if view.window != WHOLE:  # never of a shrunk picture, whose pixels are not the placement's
        picture = picture.crop(placement.window)
    height, width = placement.size
    if (width, height) != picture.size:
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    if placement.flip:
        picture = ImageOps.mirror(picture)
    if view.recolours:
        matrix, offset = view.colours()
        picture = picture.convert("RGB", tuple(np.column_stack((matrix, offset)).ravel().tolist()))
    elif view.gain != 1 or view.offset:
        levels = np.arange(256) * view.gain + 255 * view.offset
        picture = picture.point(np.clip(levels, 0, 255).astype(int).tolist() * 3)
    (top, left), (canvas_h, canvas_w) = placement.corner, placement.canvas
    canvas = Image.new("RGB", (canvas_w, canvas_h), fill)
    canvas.paste(picture, (left, top))
    return np.array(canvas)


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


def training_batches(
    dataset: CocoDataset, spec: DetectorSpec, settings: StreamSettings, *, first: int = 0
) -> Iterator[Batch]:
    """Give the batches of iteration `first` and after, for ever. Raises UserError for an unreadable picture."""
    if settings.loader == "dali":
        from retinaserve.training.data.dali_loader import dali_batches

        yield from dali_batches(dataset, spec, settings, Stream(len(dataset), settings, first))
        return
    loader: DataLoader[Sample | UserError] = DataLoader(
        Views(dataset, spec, settings),
        batch_sampler=Stream(len(dataset), settings, first),
        collate_fn=Collate(spec.pad_value),
        num_workers=settings.workers,
        worker_init_fn=_leave_interrupts_to_the_parent,
        pin_memory=torch.cuda.is_available(),
        prefetch_factor=4 if settings.workers else None,
        # Of its own, or each start of a run would take a number from the one that the network draws from.
        generator=torch.Generator(),
    )
    for batch in loader:
        if isinstance(batch, UserError):
            raise batch
        yield batch


@dataclass(frozen=True)
class Collate:
    """Stacks samples into a batch as large as its largest picture, or passes on the first error among them."""

    fill: tuple[int, int, int]

    def __call__(self, samples: Sequence[Sample | UserError]) -> Batch | UserError:
        """Return the batch."""
        good: list[Sample] = []
        for sample in samples:
            if isinstance(sample, UserError):
                return sample
            good.append(sample)
        height, width = (max(pixels.shape[axis] for pixels, _, _ in good) for axis in (0, 1))
        canvas = np.empty((len(good), height, width, 3), np.uint8)
        for row, (pixels, _, _) in zip(canvas, good, strict=True):
            if pixels.shape != row.shape:
                row[:] = self.fill
            row[: pixels.shape[0], : pixels.shape[1]] = pixels
        # (B, H, W, 3) -> (B, 3, H, W) without moving a byte
        images = torch.from_numpy(canvas).permute(0, 3, 1, 2)
        return Batch(images, [target for _, target, _ in good], [number for _, _, number in good])


def _leave_interrupts_to_the_parent(_: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
