"""A COCO data set: images on disk and the boxes an annotation file has for them.

    data = CocoDataset(Path("train/images"), Path("train/annotations.json"))
    data.classes, data.category_ids, len(data)
    image, labels = data.load(0), data.labels[0]
    describe_labels(data, spec).covered         # share of boxes that an anchor overlaps by half

Classes count from 0 in the order of the file's category ids. Boxes stay in the pixels of the upright image.
"""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from retinaserve.plugins.reference import iou_matrix
from retinaserve.training.coco import Annotations
from retinaserve.training.errors import UserError
from retinaserve.training.images.letterbox import Source, load_image, upright_size
from retinaserve.training.pixels import Decoding
from retinaserve.training.spec import DetectorSpec

FloatArray = npt.NDArray[np.float32]

SAMPLE = 2000  # images whose headers are read for the statistics


@dataclass(frozen=True, eq=False)
class Labels:
    """An image's file and boxes: (M, 4) xyxy in its upright pixels, class indices, and which are crowds."""

    image_id: int
    path: Path
    boxes: FloatArray
    classes: npt.NDArray[np.int64]
    crowd: npt.NDArray[np.bool_]


class CocoDataset:
    """The images of an annotation file, with those that have no boxes."""

    def __init__(self, images: Path, annotations: Path, *, split: str = "train") -> None:
        """Read the labels and find their images. Raises UserError for what is missing or can't be used."""
        self.truth = Annotations.load(annotations, images, split=split)
        self.category_ids = tuple(sorted(self.truth.categories))
        self.classes = tuple(self.truth.categories[number] for number in self.category_ids)
        self.labels = _labels(images, self.truth, self.category_ids)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def box_count(self) -> int:
        """The number of boxes that can be learnt: all but crowds."""
        return sum(int((~labels.crowd).sum()) for labels in self.labels)

    def load(self, index: int, value_range: tuple[int, int] | None = None) -> Image.Image:
        """Return a image as upright RGB. Raises UserError for a file that can't be read."""
        return load_image(self.labels[index].path, value_range)

    def open(self, index: int, decoding: Decoding | None = None) -> Source:
        """Return an image to be seen at any size. Raises UserError for a file that can't be read."""
        return Source.open(self.labels[index].path, decoding)


def _labels(folder: Path, truth: Annotations, category_ids: tuple[int, ...]) -> tuple[Labels, ...]:
    files = {image_id: folder / name for image_id, name in truth.images.items()}
    lost = [file for file in files.values() if not file.is_file()]
    if lost:
        raise UserError(
            f"{lost[0]}: no such image ({len(lost)} of {len(files)} are missing) [image-missing]",
            f"--images should be the folder that {truth.path} counts its file names from",
        )
    index_of = {number: index for index, number in enumerate(category_ids)}
    rows: dict[int, list[tuple[tuple[float, ...], int, bool]]] = {image_id: [] for image_id in files}
    for box in truth.boxes:
        x, y, w, h = box["bbox"]
        rows[box["image_id"]].append(((x, y, x + w, y + h), index_of[box["category_id"]], bool(box["iscrowd"])))
    return tuple(
        Labels(
            image_id,
            file,
            np.array([box for box, _, _ in rows[image_id]], np.float32).reshape(-1, 4),
            np.array([index for _, index, _ in rows[image_id]], np.int64),
            np.array([crowd for _, _, crowd in rows[image_id]], np.bool_),
        )
        for image_id, file in files.items()
    )


@dataclass(frozen=True, eq=False)
class LabelStatistics:
    """Counts and sizes of a set's labels, all but crowds: do a detector's anchors fit them?

    In the network's pixels, resized, as sizes in the files say little about what the network sees.
    """

    per_class: Mapping[str, int]
    empty_images: int
    crowds: int
    sizes: npt.NDArray[np.float32]  # (M, 2) width and height in the network's pixels, of a sample of images
    covered: float  # share of the sampled boxes that an anchor of the same centre overlaps by half


def describe_labels(dataset: CocoDataset, spec: DetectorSpec) -> LabelStatistics:
    """Count a set's labels and compare their sizes with the anchors. Unreadable images are left out."""
    counts = np.zeros(len(dataset.classes), np.int64)
    for labels in dataset.labels:
        np.add.at(counts, labels.classes[~labels.crowd], 1)
    seen = [np.empty((0, 2), np.float32)]  # sizes in the network's pixels
    for original, boxes in sample_sizes(dataset):
        height, width = spec.resizing.resized(original, spec.size)
        seen.append(boxes * np.array((width / original[1], height / original[0]), np.float32))
    sizes = np.concatenate(seen)
    return LabelStatistics(
        dict(zip(dataset.classes, counts.tolist(), strict=True)),
        sum(not len(labels.boxes) for labels in dataset.labels),
        sum(int(labels.crowd.sum()) for labels in dataset.labels),
        sizes,
        float((best_overlaps(sizes, spec.anchor_table) >= 0.5).mean()) if len(sizes) else 0.0,
    )


def sample_sizes(dataset: CocoDataset) -> Iterator[tuple[tuple[int, int], FloatArray]]:
    """Yield (h, w) of some images, upright, and the (M, 2) width and height of their boxes, without crowds.

    Only headers are read; unreadable images are left out.
    """
    for labels in dataset.labels[:: -(-len(dataset) // SAMPLE)]:
        with contextlib.suppress(UserError):
            yield upright_size(labels.path), (labels.boxes[:, 2:] - labels.boxes[:, :2])[~labels.crowd]


def best_overlaps(sizes: FloatArray, table: FloatArray) -> FloatArray:
    """Return the IoU (M,) of sizes (M, 2) with that anchor of a table (..., 4) that fits best, centred on it."""
    table = table.reshape(-1, 4)
    anchors = table[:, 2:] - table[:, :2]
    boxes, others = (np.concatenate((np.zeros_like(each), each), axis=1) for each in (sizes, anchors))
    best: npt.NDArray[np.float32] = iou_matrix(boxes, others).max(axis=1)
    return best
