"""From a data set to batches: an endless, seeded stream that can be entered at any iteration.

    for batch in training_batches(dataset, spec, settings, first=iteration): ...

The stream is one shuffled epoch after the other, cut into batches without regard to where an epoch ends, so a
batch may be larger than the set. Everything random is a function of (seed, epoch, picture): a resumed run, or one
with other workers, sees what an uninterrupted one would have seen. It does no normalisation.
"""

import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from training.augment import View, random_view
from training.dataset import CocoDataset, FloatArray, Labels, Pixels, resized_size
from training.errors import UserError
from training.losses import Target
from training.spec import DetectorSpec

CACHE_BYTES = 512 * 2**20  # a set that fits, shrunk to the input size, is decoded once (by each worker)
SMALLEST = 1.0  # pixels of a box's side after augmentation


class Batch(NamedTuple):
    """Pictures and what is in them."""

    images: Tensor  # (B, 3, H, W) uint8, channels last in memory
    targets: list[Target]
    image_ids: list[int]


@dataclass(frozen=True)
class StreamSettings:
    """What the stream depends on."""

    batch: int
    seed: int = 0
    augment: str = "basic"
    workers: int = 0


Sample = tuple[Pixels, Target, int]


class Views(Dataset["Sample | UserError"]):
    """Samples by (epoch, index): a picture of the set under that epoch's view of it."""

    def __init__(self, dataset: CocoDataset, spec: DetectorSpec, settings: StreamSettings) -> None:
        self.dataset, self.spec, self.settings = dataset, spec, settings
        height, width = spec.size
        self._cache: dict[int, tuple[Image.Image, tuple[int, int]]] | None = None
        if len(dataset) * height * width * 3 <= CACHE_BYTES:
            self._cache = {}

    def __getitem__(self, key: tuple[int, int]) -> Sample | UserError:
        """Return (H, W, 3) pixels, their boxes, and the image id; or what is wrong with the file.

        Returned, because what is raised in a worker arrives as the text of its traceback.
        """
        epoch, index = key
        rng = np.random.default_rng((self.settings.seed, epoch, index))
        try:
            picture, original = self._picture(index)
        except UserError as error:
            return error
        labels = self.dataset.labels[index]
        view = random_view(self.settings.augment, rng)
        pixels, target = render(picture, original, labels, view, self.spec)
        return pixels, target, labels.image_id

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
    canvas_h, canvas_w = spec.size
    height, width = resized_size(original, spec.size, zoom=view.zoom)
    left, top = round(view.across * (canvas_w - width)), round(view.down * (canvas_h - height))
    if (width, height) != picture.size:
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    if view.flip:
        picture = ImageOps.mirror(picture)
    if view.gain != 1 or view.offset:
        levels = np.arange(256) * view.gain + 255 * view.offset
        picture = picture.point(np.clip(levels, 0, 255).astype(int).tolist() * 3)
    canvas = Image.new("RGB", (canvas_w, canvas_h), spec.fill)
    canvas.paste(picture, (left, top))

    scale = np.array((width / original[1], height / original[0]) * 2, np.float32)
    boxes = np.clip(labels.boxes * scale, 0, (width, height) * 2)
    if view.flip:
        boxes[:, [0, 2]] = width - boxes[:, [2, 0]]
    boxes = np.clip(boxes + (left, top) * 2, 0, (canvas_w, canvas_h) * 2).astype(np.float32)
    kept = _worth_learning(boxes, labels.boxes * scale)
    target = Target(
        torch.from_numpy(boxes[kept]),
        torch.from_numpy(labels.classes[kept]),
        torch.from_numpy(labels.crowd[kept]),
    )
    return np.array(canvas), target


def _worth_learning(boxes: FloatArray, whole: FloatArray) -> "np.ndarray[tuple[int], np.dtype[np.bool_]]":
    """Return which boxes have at least a quarter of their area left in the canvas, and a pixel a side."""
    sizes, before = boxes[:, 2:] - boxes[:, :2], whole[:, 2:] - whole[:, :2]
    kept: np.ndarray[tuple[int], np.dtype[np.bool_]] = (sizes.min(axis=1, initial=np.inf) >= SMALLEST) & (
        sizes.prod(axis=1) >= 0.25 * before.prod(axis=1)
    )
    return kept


class Stream:
    """The endless sampler: lists of (epoch, index), a batch each, from batch `first` on."""

    def __init__(self, count: int, settings: StreamSettings, first: int = 0) -> None:
        self.count, self.settings, self.first = count, settings, first

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        position = self.first * self.settings.batch
        batch: list[tuple[int, int]] = []
        while True:
            epoch, start = divmod(position, self.count)
            order = np.random.default_rng((self.settings.seed, epoch)).permutation(self.count)
            for index in order[start:]:
                batch.append((epoch, int(index)))
                if len(batch) == self.settings.batch:
                    yield batch
                    batch = []
            position = (epoch + 1) * self.count


def training_batches(
    dataset: CocoDataset, spec: DetectorSpec, settings: StreamSettings, *, first: int = 0
) -> Iterator[Batch]:
    """Give the batches of iteration `first` and after, for ever. Raises UserError for an unreadable picture."""
    loader: DataLoader[Sample | UserError] = DataLoader(
        Views(dataset, spec, settings),
        batch_sampler=Stream(len(dataset), settings, first),
        collate_fn=collate,
        num_workers=settings.workers,
        worker_init_fn=_leave_interrupts_to_the_parent,
        pin_memory=torch.cuda.is_available(),
        prefetch_factor=4 if settings.workers else None,
    )
    for batch in loader:
        if isinstance(batch, UserError):
            raise batch
        yield batch


def collate(samples: Sequence[Sample | UserError]) -> Batch | UserError:
    """Stack samples into a batch, or pass on the first error among them."""
    good: list[Sample] = []
    for sample in samples:
        if isinstance(sample, UserError):
            return sample
        good.append(sample)
    pixels = torch.from_numpy(np.stack([pixels for pixels, _, _ in good]))
    # (B, H, W, 3) -> (B, 3, H, W) without moving a byte
    return Batch(pixels.permute(0, 3, 1, 2), [target for _, target, _ in good], [number for _, _, number in good])


def _leave_interrupts_to_the_parent(_: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
