"""Runs the DALI pipeline over encoded images so that a bad one fails alone.

    results = Preprocessor((512, 512), (124, 116, 104)).run(encoded)    # one Prepared or BadImage per image

JPEGs are decoded here, at the scale that the network sees, and BMPs, as tiles and frames of videos come; DALI
resizes them, but for rules of Pillow's, and decodes all other formats. It
loses a whole batch to one corrupt image. Admission catches most of them first; when the decoder still refuses a
batch, it is halved until the bad ones stand alone. Not safe to call from two threads at once.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from .pipeline import INPUT, declared, pixels_pipeline, preprocess_pipeline
from .pixels import BadImage, Bmp, Buffer, Decoding, Jpeg, Scaled, undecodable
from .resize import RESIZES, PixelType

Given = TypeVar("Given")
Made = TypeVar("Made")


@dataclass(frozen=True, eq=False)
class Prepared:
    """An image as the network takes it: `image` (3, H, W) RGB, 0..255, `letterbox` float32 (4,)."""

    image: npt.NDArray[np.uint8] | npt.NDArray[np.float32]
    letterbox: npt.NDArray[np.float32]


class Preprocessor:
    """The pipelines on the CPU, built once for batches of up to `max_batch` images."""

    def __init__(
        self,
        size: tuple[int, int],
        fill: tuple[float, float, float],
        *,
        resize: str = "letterbox",
        pixels: PixelType = "uint8",
        threads: int = 0,
        max_batch: int = 16,
        decoding: Decoding | None = None,
        value_range: tuple[int, int] | None = None,
    ) -> None:
        """`resize` names a rule of RESIZES, `pixels` the type of the image.

        `threads` 0 takes as many as this process may use cores; a `value_range` takes the place of `decoding`'s.
        """
        self.max_batch = max_batch
        self._size, self._fill, self._rule, self._type = size, fill, RESIZES[resize], pixels
        self._decoding = decoding or Decoding()
        if value_range:
            self._decoding = replace(self._decoding, value_range=value_range)
        threads = threads or len(os.sched_getaffinity(0))
        self._threads = ThreadPoolExecutor(threads)
        self._encoded, self._pixels = (
            each(
                size=size,
                fill=fill,
                resize=resize,
                pixels=pixels,
                **declared(pixels),
                batch_size=max_batch,
                num_threads=threads,
                device_id=None,
                prefetch_queue_depth=1,  # one batch in, the same batch out
                exec_dynamic=True,  # the executor that survives a failed run
            )
            for each in (preprocess_pipeline, pixels_pipeline)
        )
        self._encoded.build()
        self._pixels.build()

    def run(self, images: Sequence[Buffer]) -> list[Prepared | BadImage]:
        """Prepare encoded images, any number, in order; a bad one gives its BadImage, alone."""
        found = self._each(self._decoding.gate, images)  # some are decoded on the way
        bad = {index: each for index, each in enumerate(found) if isinstance(each, BadImage)}
        good = {index: each for index, each in enumerate(found) if not isinstance(each, BadImage)}
        known = {index: each for index, data in good.items() if (each := Jpeg.read(data) or Bmp.read(data))}
        others = {index: data for index, data in good.items() if index not in known}
        results = {**bad, **self._batches(self._decode, known), **self._batches(self._let_decode, others)}
        return [results[index] for index in range(len(images))]

    def _batches(
        self, work: Callable[[list[Given]], list[Prepared | BadImage]], items: dict[int, Given]
    ) -> dict[int, Prepared | BadImage]:
        results: dict[int, Prepared | BadImage] = {}
        for start in range(0, len(items), self.max_batch):
            chunk = dict(islice(items.items(), start, start + self.max_batch))
            results.update(zip(chunk, work(list(chunk.values())), strict=True))
        return results

    def _each(self, work: Callable[[Given], Made], items: Sequence[Given]) -> list[Made]:
        return list(map(work, items) if len(items) == 1 else self._threads.map(work, items))

    def _decode(self, images: Sequence[Jpeg | Bmp]) -> list[Prepared | BadImage]:
        """Decode one batch, JPEGs each at its scale."""
        results: list[Prepared | Scaled | BadImage] = [
            self._as_it_is(found) or found if isinstance(found, Scaled) else found
            for found in self._each(self._scaled, images)
        ]
        rest = [(image, found) for image, found in zip(images, results, strict=True) if isinstance(found, Scaled)]
        inputs: dict[str, list[Any]] = {
            "pixels": [np.ascontiguousarray(found.pixels) for _, found in rest],
            "original": [np.array(image.size, np.float32) for image, _ in rest],
            "area": [np.array(found.area, np.float32) for _, found in rest],
        }
        prepared = iter(_run(self._pixels, inputs) if rest else [])
        return [next(prepared) if isinstance(found, Scaled) else found for found in results]

    def _as_it_is(self, found: Scaled) -> Prepared | None:
        """Return what has the network's own size already, such as a tile: DALI would change no pixel."""
        size = found.pixels.shape[:2]
        whole = found.area == (0.0, 0.0, *size)
        if not (whole and size == self._size and self._rule.fixed and self._rule.resized(size, size) == size):
            return None
        image = np.ascontiguousarray(found.pixels.transpose(2, 0, 1), self._type)
        return Prepared(image, np.array((*size, *size), np.float32))

    def _by_pillow(self, found: Scaled) -> Prepared:
        """Resize by Pillow itself, where an author does: DALI rounds halves and mixes borders otherwise."""
        from PIL import Image

        height, width, _ = found.pixels.shape
        rows, columns = self._rule.resized((height, width), self._size)
        image = np.empty((3, *self._rule.canvas((rows, columns), self._size)), self._type)
        image[:] = np.array(self._fill).reshape(3, 1, 1)
        resized = Image.fromarray(found.pixels).resize((columns, rows), Image.Resampling.BILINEAR)
        image[:, :rows, :columns] = np.asarray(resized).transpose(2, 0, 1)
        return Prepared(image, np.array((height, width, rows, columns), np.float32))

    def _scaled(self, jpeg: Jpeg | Bmp) -> Scaled | Prepared | BadImage:
        sides = zip(self._rule.resized(jpeg.size, self._size), jpeg.size, strict=True)
        ratio = 1.0 if self._rule.whole else max(new / old for new, old in sides)
        try:
            found = jpeg.decode(self._decoding.scale(ratio))
            return self._by_pillow(found) if self._rule.passes else found
        except ValueError:
            return undecodable(jpeg.data if isinstance(jpeg, Jpeg) else b"")

    def _let_decode(self, images: Sequence[Buffer]) -> list[Prepared | BadImage]:
        """Let DALI decode one batch; halve it when it is refused."""
        try:
            return list(_run(self._encoded, {INPUT: [np.frombuffer(data, np.uint8) for data in images]}))
        except RuntimeError:
            if len(images) == 1:
                return [undecodable(images[0])]
            half = len(images) // 2
            return self._let_decode(images[:half]) + self._let_decode(images[half:])


def _run(pipeline: Any, inputs: dict[str, list[Any]]) -> list[Prepared]:
    for name, values in inputs.items():
        pipeline.feed_input(name, values)
    tensors, letterboxes = pipeline.run()
    # One by one: the images' canvases may differ. The memory is the next batch's.
    rows = zip(tensors, letterboxes.as_array(), strict=True)
    return [Prepared(np.array(image), letterbox.copy()) for image, letterbox in rows]
