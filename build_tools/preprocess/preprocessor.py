"""Runs the DALI pipeline over encoded images so that a bad one fails alone.

    results = Preprocessor((512, 512), (124, 116, 104)).run(encoded)    # one Prepared or BadImage per image

DALI loses a whole batch to one corrupt image. Admission catches most of them first; when the decoder still
refuses a batch, it is halved until the bad ones stand alone. Not safe to call from two threads at once.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .pipeline import preprocess_pipeline
from .pixels import MAX_BYTES, MAX_PIXELS, BadImage, admit, undecodable


@dataclass(frozen=True, eq=False)
class Prepared:
    """An image as the network takes it: `image` uint8 (3, H, W) RGB, `letterbox` float32 (4,)."""

    image: npt.NDArray[np.uint8]
    letterbox: npt.NDArray[np.float32]


class Preprocessor:
    """The pipeline on the CPU, built once for batches of up to `max_batch` images."""

    def __init__(
        self,
        size: tuple[int, int],
        fill: tuple[int, int, int],
        *,
        threads: int = 0,
        max_batch: int = 16,
        max_bytes: int = MAX_BYTES,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        """`threads` 0 takes as many as this process may use cores."""
        self.max_batch = max_batch
        self._limits = {"max_bytes": max_bytes, "max_pixels": max_pixels}
        self._pipeline = preprocess_pipeline(
            size=size,
            fill=fill,
            batch_size=max_batch,
            num_threads=threads or len(os.sched_getaffinity(0)),
            device_id=None,
            prefetch_queue_depth=1,  # one batch in, the same batch out
            exec_dynamic=True,  # the executor that survives a failed run
        )
        self._pipeline.build()

    def run(self, images: Sequence[bytes]) -> list[Prepared | BadImage]:
        """Prepare encoded images, any number, in order; a bad one gives its BadImage, alone."""
        results: list[Prepared | BadImage | None] = [admit(bytes(data), **self._limits) for data in images]
        good = [index for index, result in enumerate(results) if result is None]
        for start in range(0, len(good), self.max_batch):
            chunk = good[start : start + self.max_batch]
            for index, result in zip(chunk, self._decode([images[index] for index in chunk]), strict=True):
                results[index] = result
        return [result for result in results if result is not None]

    def _decode(self, images: Sequence[bytes]) -> list[Prepared | BadImage]:
        """Run one batch; halve it when the decoder refuses it."""
        try:
            self._pipeline.feed_input("image_bytes", [np.frombuffer(data, np.uint8) for data in images])
            tensors, letterboxes = self._pipeline.run()
        except RuntimeError:
            if len(images) == 1:
                return [undecodable(bytes(images[0]))]
            half = len(images) // 2
            return self._decode(images[:half]) + self._decode(images[half:])
        rows = zip(tensors.as_array(), letterboxes.as_array(), strict=True)
        return [Prepared(image, letterbox) for image, letterbox in rows]
