"""From a data set to batches, by torch's loader or by DALI.

    for batch in training_batches(dataset, spec, settings, first=iteration): ...

Images travel as the spec's `pixels`, mostly bytes: the network's own mean and deviation are applied on its device.
"""

import signal
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.utils.data import DataLoader, Dataset

from retinaserve.training.data.augment import (
    WHOLE,
    Batch,
    Placement,
    Stream,
    StreamSettings,
    View,
    place,
    place_labels,
)
from retinaserve.training.data.dataset import CocoDataset
from retinaserve.training.errors import UserError
from retinaserve.training.images.letterbox import Canvas, Source
from retinaserve.training.model.losses import Target
from retinaserve.training.spec import DetectorSpec

CACHE_BYTES = 512 * 2**20  # a set that fits, shrunk to the input size, is decoded once (by each worker)


Sample = tuple[Canvas, Target, int]


class Views(Dataset["Sample | UserError"]):
    """Samples by (epoch, index): an image of the set under that epoch's view of it."""

    def __init__(self, dataset: CocoDataset, spec: DetectorSpec, settings: StreamSettings) -> None:
        self.dataset, self.spec, self.settings = dataset, spec, settings
        height, width = spec.size
        self._cache: dict[int, Source] | None = None
        # What looks closer than the letterbox does needs the image itself; "basic" trades that for time.
        shrinks = settings.shorter is None and settings.augment in ("none", "flip", "basic")
        if shrinks and spec.pixels == "uint8" and len(dataset) * height * width * 3 <= CACHE_BYTES:
            self._cache = {}

    def __getitem__(self, key: tuple[int, int]) -> Sample | UserError:
        """Return (H, W, 3) pixels, their boxes, and the image id; or what is wrong with the file.

        Returned, because what is raised in a worker arrives as the text of its traceback.
        """
        _, index = key
        try:
            source = self._source(index)
            original, labels = source.size, self.dataset.labels[index]
            view = self.settings.view(key, labels, original, self.spec)
            placement = place(view, original, self.settings.frame(self.spec))
            pixels = paint(source, placement, view, self.spec)
        except UserError as error:
            return error
        return pixels, place_labels(labels, placement), labels.image_id

    def _source(self, index: int) -> Source:
        """Return an image; a cached one is shrunk, and keeps its original size."""
        if self._cache is None:
            return self.dataset.open(index, self.settings.decoding(self.spec))
        if index not in self._cache:
            source = self.dataset.open(index, self.settings.decoding(self.spec))
            rule, size = replace(self.spec.resizing, pixels="uint8"), self.spec.size
            extent = rule.extent(source.size, size)
            shrunk = Image.fromarray(source.resized(rule.resized(source.size, size), rule, extent=extent))
            self._cache[index] = Source.of(shrunk, original=source.size)
        return self._cache[index]


def paint(source: Source, placement: Placement, view: View, spec: DetectorSpec) -> Canvas:
    """Return the (H, W, 3) canvas of a placement, with the view's colours."""
    window = placement.window if view.window != WHOLE else None
    pixels = source.resized(placement.size, spec.resizing, window, extent=placement.extent)
    if spec.pixels == "float32":
        return _paint_floats(pixels, placement, view, spec)
    image = Image.fromarray(pixels)
    if placement.flip:
        image = ImageOps.mirror(image)
    if view.recolours:
        matrix, offset = view.colours()
        image = image.convert("RGB", tuple(np.column_stack((matrix, offset)).ravel().tolist()))
    elif view.gain != 1 or view.offset:
        levels = np.arange(256) * view.gain + 255 * view.offset
        image = image.point(np.clip(levels, 0, 255).astype(int).tolist() * 3)
    (top, left), (canvas_h, canvas_w) = placement.corner, placement.canvas
    canvas = Image.new("RGB", (canvas_w, canvas_h), spec.pad_value)
    canvas.paste(image, (left, top))
    return np.array(canvas)


def _paint_floats(pixels: Canvas, placement: Placement, view: View, spec: DetectorSpec) -> Canvas:
    if placement.flip:
        pixels = pixels[:, ::-1]
    if view.recolours or view.gain != 1 or view.offset:
        matrix, offset = view.colours()
        pixels = np.clip(pixels @ matrix.T + offset, 0, 255)
    canvas = np.full((*placement.canvas, 3), spec.pad_value, np.float32)
    top, left = placement.corner
    seen = pixels[max(0, -top) :, max(0, -left) :]
    room = canvas[max(0, top) :, max(0, left) :][: seen.shape[0], : seen.shape[1]]
    room[:] = seen[: room.shape[0], : room.shape[1]]
    return canvas


def training_batches(
    dataset: CocoDataset, spec: DetectorSpec, settings: StreamSettings, *, first: int = 0
) -> Iterator[Batch]:
    """Give the batches of iteration `first` and after, for ever. Raises UserError for an unreadable image."""
    if settings.loader == "dali":
        from retinaserve.training.data.dali_loader import dali_batches

        yield from dali_batches(dataset, spec, settings, Stream(len(dataset), settings, first))
        return
    loader: DataLoader[Sample | UserError] = DataLoader(
        Views(dataset, spec, settings),
        batch_sampler=Stream(len(dataset), settings, first),
        collate_fn=partial(collate, spec.pad_value),
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


def collate(fill: tuple[float, float, float], samples: Sequence[Sample | UserError]) -> Batch | UserError:
    """Stack samples into a batch as large as its largest image, or pass on the first error among them."""
    good: list[Sample] = []
    for sample in samples:
        if isinstance(sample, UserError):
            return sample
        good.append(sample)
    height, width = (max(pixels.shape[axis] for pixels, _, _ in good) for axis in (0, 1))
    canvas = np.empty((len(good), height, width, 3), good[0][0].dtype)
    for row, (pixels, _, _) in zip(canvas, good, strict=True):
        if pixels.shape != row.shape:
            row[:] = fill
        row[: pixels.shape[0], : pixels.shape[1]] = pixels
    # (B, H, W, 3) -> (B, 3, H, W) without moving a byte
    images = torch.from_numpy(canvas).permute(0, 3, 1, 2)
    return Batch(images, [target for _, target, _ in good], [number for _, _, number in good])


def _leave_interrupts_to_the_parent(_: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
