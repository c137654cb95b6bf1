"""The stream of batches by DALI: the same views of the same images as torch's loader, on CPU or GPU.

    for batch in dali_batches(dataset, spec, settings, Stream(len(dataset), settings)): ...

Python decides what is looked at and where it goes (augment.py). Without a GPU, threads decode that part of an
image as the torch loader does, no finer than it is seen; on one, DALI decodes it, in full. DALI resizes, mirrors,
recolours, cuts and pads it. It reads files from a callback and not with its COCO reader: that one can't be entered
at any iteration, shuffles by its own rules in every process, and numbers classes itself.
On a GPU formats that DALI can't decode are refused by name; the torch loader reads them.
"""

import os
import sys
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from retinaserve.training.data.augment import Batch, Placement, Stream, StreamSettings, View, place, place_labels
from retinaserve.training.data.dataset import CocoDataset
from retinaserve.training.errors import UserError
from retinaserve.training.images.letterbox import upright_size
from retinaserve.training.model.losses import Target
from retinaserve.training.pixels import BadImage, gate
from retinaserve.training.spec import DetectorSpec

PREFETCH = 2  # batches


@dataclass(eq=False)
class Feed:
    """What DALI asks for: a batch's images and the numbers that draw them; remembers their labels."""

    dataset: CocoDataset
    spec: DetectorSpec
    settings: StreamSettings
    stream: Iterator[list[tuple[int, int]]]
    colours: bool  # whether the pipeline changes them
    threads: ThreadPoolExecutor | None  # that decode; without them encoded files are given
    asked: deque[tuple[list[Target], list[int], list[int]]] = field(default_factory=deque)
    sizes: dict[int, tuple[int, int]] = field(default_factory=dict)
    ahead: deque[tuple[list[tuple[int, int]], list[Any], list[Any]]] = field(default_factory=deque)

    def __call__(self) -> tuple[list[Any], ...]:
        """Return the next batch, a list an input of the pipeline."""
        while len(self.ahead) <= (PREFETCH if self.threads else 0):
            keys = next(self.stream)
            drawn = [self._draw(key) for key in keys]
            begun = [self._read(index, placement) for (_, index), (_, placement) in zip(keys, drawn, strict=True)]
            self.ahead.append((keys, drawn, begun))
        keys, drawn, begun = self.ahead.popleft()
        canvas = tuple(max(placement.canvas[axis] for _, placement in drawn) for axis in (0, 1))
        labels = [self.dataset.labels[index] for _, index in keys]
        targets = [place_labels(each, placement) for each, (_, placement) in zip(labels, drawn, strict=True)]
        self.asked.append((targets, [each.image_id for each in labels], [index for _, index in keys]))
        # The image, and the corners of what is resized: y1, x1 and, of pixels, y2, x2; of a file, the extent.
        images = [each.result() if self.threads else each for each in begun]
        rows = [_numbers(view, placement, self.colours) for view, placement in drawn]
        return (
            *(list(column) for column in zip(*images, strict=True)),
            *(list(column) for column in zip(*rows, strict=True)),
            [np.array(canvas, np.int32)] * len(keys),
        )

    def _read(self, index: int, placement: Placement) -> Any:
        if self.threads:
            return self.threads.submit(self._decode, index, placement)
        x1, y1, x2, y2 = placement.window
        content = _read(self.dataset.labels[index].path, self.spec.value_range)
        return content, np.array((y1, x1), np.int32), np.array((y2 - y1, x2 - x1), np.int32)

    def _decode(self, index: int, placement: Placement) -> tuple[Any, ...]:
        source = self.dataset.open(index, self.settings.decoding(self.spec))
        part = source.part(placement.size, self.spec.resizing, placement.window)
        left, top, right, bottom = part.box
        return np.asarray(part.image), np.array((top, left), np.float32), np.array((bottom, right), np.float32)

    def _draw(self, key: tuple[int, int]) -> tuple[View, Placement]:
        _, index = key
        if index not in self.sizes:
            self.sizes[index] = upright_size(self.dataset.labels[index].path)
        original, labels = self.sizes[index], self.dataset.labels[index]
        view = self.settings.view(key, labels, original, self.spec)
        return view, place(view, original, self.settings.frame(self.spec))


def dali_batches(
    dataset: CocoDataset, spec: DetectorSpec, settings: StreamSettings, stream: Stream
) -> Iterator[Batch]:
    """Give a stream's batches for ever. Raises UserError for an image that can't be decoded, or without DALI."""
    try:
        from nvidia.dali import fn, pipeline_def, types
        from nvidia.dali import math as dmath

        from retinaserve.training.images.operators import resized
    except ImportError:
        raise UserError(
            "the DALI loader needs nvidia-dali-cuda120", "pip install nvidia-dali-cuda120, or --loader torch"
        ) from None
    if spec.resizing.blur:
        raise UserError(f"the DALI loader has no {spec.resize} resize", "--loader torch")
    gpu = torch.cuda.is_available()
    kind = types.FLOAT if spec.pixels == "float32" else types.UINT8
    colours = settings.augment in ("photometric", "basic")
    workers = settings.workers or len(os.sched_getaffinity(0))
    feed = Feed(dataset, spec, settings, iter(stream), colours, None if gpu else ThreadPoolExecutor(workers))

    @pipeline_def  # type: ignore[untyped-decorator]
    def pipeline() -> Any:
        given, start, end, size, flip, corner, *colour, canvas = fn.external_source(
            source=feed,
            num_outputs=7 + 2 * colours,
            batch=True,
            layout=["" if gpu else "HWC"] + [""] * (6 + 2 * colours),
        )
        if gpu:
            given = fn.decoders.image_slice(
                given, device="mixed", start=start, shape=end, axis_names="HW", output_type=types.RGB
            )
            shape, area = fn.cast(end, dtype=types.FLOAT), None
        else:
            shape, area = fn.cast(given.shape(), dtype=types.FLOAT), fn.cat(start, end)
        image = fn.cast(resized(given, shape, size, spec.resizing, kind, area), dtype=kind)
        image = fn.flip(image, horizontal=flip)
        if colours:
            image = fn.coord_transform(image, M=colour[0], T=colour[1], dtype=kind)
            image = dmath.clamp(image, 0, 255) if kind == types.FLOAT else image
        return fn.slice(
            image,
            start=corner,
            shape=canvas,
            axes=[0, 1],
            out_of_bounds_policy="pad",
            fill_values=list(spec.pad_value),
        )

    built = pipeline(
        batch_size=settings.batch // settings.world,
        num_threads=workers,
        device_id=torch.cuda.current_device() if gpu else None,
        prefetch_queue_depth=PREFETCH,
        exec_dynamic=True,
    )
    built.build()
    try:
        while True:
            try:
                (drawn,) = built.run()
            except RuntimeError as error:
                raise _culprit(dataset, feed, error) from None
            images = _on_gpu(drawn) if gpu else torch.from_numpy(np.array(drawn.as_array()))
            targets, image_ids, _ = feed.asked.popleft()
            yield Batch(images.permute(0, 3, 1, 2), targets, image_ids)  # (B, H, W, 3) -> (B, 3, H, W)
    finally:
        if feed.threads:
            feed.threads.shutdown(cancel_futures=True)


def _on_gpu(drawn: Any) -> torch.Tensor:
    """Copy DALI's batch, whose memory it will use again, into a tensor on torch's stream."""
    from nvidia.dali.plugin.pytorch import feed_ndarray, to_torch_type

    whole = drawn.as_tensor()
    images = torch.empty(tuple(whole.shape()), dtype=to_torch_type[whole.dtype], device="cuda")
    feed_ndarray(whole, images, cuda_stream=torch.cuda.current_stream())
    return images


def _numbers(view: View, placement: Placement, colours: bool) -> tuple[Any, ...]:
    """Return what draws one image, in the order of the pipeline's inputs."""
    top, left = placement.corner
    where = (
        np.array(placement.size, np.float32),
        np.array(int(placement.flip), np.int32),
        np.array((-top, -left), np.int32),
    )
    return (*where, *(part.astype(np.float32) for part in view.colours())) if colours else where


def _read(path: Path, value_range: tuple[int, int] | None) -> Any:
    try:
        found = gate(path.read_bytes(), max_bytes=sys.maxsize, max_pixels=sys.maxsize, value_range=value_range)
    except OSError as error:
        raise UserError(f"{path}: the image can't be read: {error.strerror}") from None
    if isinstance(found, BadImage):
        raise UserError(f"{path}: the image can't be read: {found.message}")
    return np.frombuffer(found, np.uint8)


def _culprit(dataset: CocoDataset, feed: Feed, error: RuntimeError) -> UserError:
    """Return which of the images that were asked for can't be decoded; DALI only says that one can't."""
    asked = [index for _, _, indices in feed.asked for index in indices]
    for index in asked:
        try:
            dataset.load(index)
        except UserError as bad:
            return bad
    names = ", ".join(dataset.labels[index].path.name for index in asked[:4])
    reason = str(error).strip().splitlines()[0]
    return UserError(f"DALI can't decode one of {names}, ...: {reason}", "--loader torch reads more formats")
