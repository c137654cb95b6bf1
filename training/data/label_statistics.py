"""What a data set's labels are like, and whether a detector's anchors fit them.

    statistics = describe_labels(dataset, spec)
    statistics.covered         # share of boxes that an anchor overlaps by half

In the network's pixels, letterboxed, as sizes in the files say little about what the network sees. It finds no
mistakes in labels: that is `retinaserve data check`'s.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from retinaserve.training.data.dataset import CocoDataset
from retinaserve.training.errors import UserError
from retinaserve.training.letterbox import letterbox_size, upright_size
from retinaserve.training.spec import DetectorSpec

SAMPLE = 2000  # pictures whose headers are read


@dataclass(frozen=True, eq=False)
class LabelStatistics:
    """Counts and sizes of all but crowds."""

    per_class: Mapping[str, int]
    empty_images: int
    crowds: int
    sizes: npt.NDArray[np.float32]  # (M, 2) width and height in the network's pixels, of a sample of pictures
    covered: float  # share of the sampled boxes that an anchor of the same centre overlaps by half


def describe_labels(dataset: CocoDataset, spec: DetectorSpec) -> LabelStatistics:
    """Count a set's labels and compare their sizes with the anchors. Unreadable pictures are left out."""
    counts = np.zeros(len(dataset.classes), np.int64)
    for labels in dataset.labels:
        np.add.at(counts, labels.classes[~labels.crowd], 1)
    step = -(-len(dataset) // SAMPLE)
    sizes = np.concatenate([_sizes(dataset, index, spec) for index in range(0, len(dataset), step)])
    return LabelStatistics(
        dict(zip(dataset.classes, counts.tolist(), strict=True)),
        sum(not len(labels.boxes) for labels in dataset.labels),
        sum(int(labels.crowd.sum()) for labels in dataset.labels),
        sizes,
        float((_best_overlaps(sizes, spec) >= 0.5).mean()) if len(sizes) else 0.0,
    )


def _sizes(dataset: CocoDataset, index: int, spec: DetectorSpec) -> npt.NDArray[np.float32]:
    labels = dataset.labels[index]
    try:
        original = upright_size(labels.path)
    except UserError:
        return np.empty((0, 2), np.float32)
    scale = letterbox_size(original, spec.size)[0] / original[0]
    boxes = labels.boxes[~labels.crowd]
    return ((boxes[:, 2:] - boxes[:, :2]) * scale).astype(np.float32)


def _best_overlaps(sizes: npt.NDArray[np.float32], spec: DetectorSpec) -> npt.NDArray[np.float32]:
    """Return the IoU (M,) of sizes with the anchor that fits best, centres together."""
    table = spec.anchor_table.reshape(-1, 4)
    anchors = table[:, 2:] - table[:, :2]
    shared = np.minimum(sizes[:, None], anchors[None]).prod(axis=2)
    union = sizes.prod(axis=1)[:, None] + anchors.prod(axis=1)[None] - shared
    best: npt.NDArray[np.float32] = (shared / union).max(axis=1)
    return best
