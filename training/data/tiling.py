"""A labelled set cut into tiles, as `predict --tile` will cut what it looks at.

    tile = suitable_tile(CocoDataset(images, annotations), size=(512, 512), anchor=32)
    tile_dataset(CocoDataset(images, annotations), Path("tiles"), Cut(tile))    # images/, annotations.json

A box stays in each tile that shows at least `visible` of its area, clipped to it. Of the tiles without boxes some
are kept, so that the ground is learnt too. A set that is there already, cut in the same way, is left as it is.
"""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from retinaserve.plugins.tiles import OVERLAP, tile_windows
from retinaserve.training.data.dataset import CocoDataset, Labels
from retinaserve.training.errors import UserError
from retinaserve.training.files import write_json
from retinaserve.training.images.raster import Windows, open_raster

SMALL, LARGE = 10, 90  # percentiles of the objects' sides
MULTIPLE = 8  # px


@dataclass(frozen=True)
class Cut:
    """How a set is cut: tile (h, w); the share of a box that a tile must show; empty tiles to each with boxes."""

    tile: tuple[int, int]
    overlap: float = OVERLAP
    visible: float = 0.5
    empty: float = 0.1
    seed: int = 0


def suitable_tile(dataset: CocoDataset, *, size: tuple[int, int], anchor: float) -> tuple[int, int]:
    """Return the tile (h, w) at which the network of input `size` sees the set's objects at a good size.

    A tenth of the objects is smaller than the smallest `anchor` (px of the input); but a tile is at least twice as
    large as all objects but the largest tenth. Raises UserError for a set without boxes.
    """
    boxes = np.concatenate([labels.boxes[~labels.crowd] for labels in dataset.labels])
    if not len(boxes):
        raise UserError(f"{dataset.truth.path} has no boxes to take a tile's size from", "name one: --tile H,W")
    sides = np.sqrt((boxes[:, 2:] - boxes[:, :2]).prod(axis=1))
    small, large = np.percentile(sides, (SMALL, LARGE))
    scale = max(small / anchor, 2 * large / min(size))
    height, width = (math.ceil(side * scale / MULTIPLE) * MULTIPLE for side in size)
    return height, width


def tile_dataset(
    dataset: CocoDataset, output: Path, cut: Cut, *, on_image: Callable[[], object] = lambda: None
) -> Path:
    """Write the tiles as PNG and their annotations, which are returned; nothing where they are there already."""
    annotations = output / "annotations.json"
    record = {"source": dataset.truth.sha256, **json.loads(json.dumps(asdict(cut)))}
    if annotations.is_file() and json.loads(annotations.read_text()).get("info") == record:
        return annotations
    (output / "images").mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(cut.seed)
    images: list[dict[str, Any]] = []
    boxes: list[dict[str, Any]] = []
    for labels in dataset.labels:
        with open_raster(labels.path) as raster:
            windows = tile_windows(raster.size, cut.tile, cut.overlap)
            parts = [cut_labels(labels, window, cut.visible) for window in windows]
            chosen = _chosen(parts, cut.empty, rng)
            for number, pixels in zip(chosen, raster.windows(windows[chosen]), strict=True):
                if pixels is None:
                    continue
                x, y = windows[number, :2]
                name, (height, width) = f"{labels.image_id}_{labels.path.stem}_{x}_{y}.png", pixels.shape[:2]
                images.append({"id": len(images) + 1, "file_name": name, "width": width, "height": height})
                Image.fromarray(pixels).save(output / "images" / name, compress_level=1)
                boxes += _rows(parts[number], labels, dataset.category_ids, len(images), len(boxes))
        on_image()
    categories = [{"id": number, "name": name} for number, name in dataset.truth.categories.items()]
    content = {"info": record, "images": images, "annotations": boxes, "categories": categories}
    write_json(annotations, content, indent=None)
    return annotations


Part = tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]  # which boxes, and what is seen of them


def cut_labels(labels: Labels, window: Windows, visible: float) -> Part:
    """Return which boxes a window x1 y1 x2 y2 shows enough of, and them clipped, in its own pixels."""
    offset = np.tile(window[:2], 2).astype(np.float32)
    clipped = np.clip(labels.boxes, offset, np.tile(window[2:], 2).astype(np.float32))
    seen, area = ((each[:, 2:] - each[:, :2]).prod(axis=1) for each in (clipped, labels.boxes))
    # A crowd is ground that is not to be learnt, however little of it is there.
    kept = np.flatnonzero((seen > 0) & ((seen >= visible * area) | labels.crowd))
    return kept, clipped[kept] - offset


def _chosen(parts: list[Part], empty: float, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    filled = np.array([len(kept) > 0 for kept, _ in parts])
    spare = np.flatnonzero(~filled)
    count = min(len(spare), round(empty * max(1, int(filled.sum()))))
    return np.sort(np.append(np.flatnonzero(filled), rng.permutation(spare)[:count]))


def _rows(
    part: Part, labels: Labels, category_ids: tuple[int, ...], image_id: int, count: int
) -> Iterator[dict[str, Any]]:
    for number, (index, box) in enumerate(zip(*part, strict=True), count + 1):
        x1, y1, x2, y2 = (round(float(side), 2) for side in box)
        yield {
            "id": number,
            "image_id": image_id,
            "category_id": category_ids[labels.classes[index]],
            "bbox": [x1, y1, round(x2 - x1, 2), round(y2 - y1, 2)],
            "area": round((x2 - x1) * (y2 - y1), 2),
            "iscrowd": int(labels.crowd[index]),
        }
