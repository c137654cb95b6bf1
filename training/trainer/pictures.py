"""What people look at to trust a run: the batch as the network sees it, and what it finds in validation pictures.

    draw_batch(batch, spec.classes).save("train_batch.jpg")
    draw_predictions(dataset, spec, found).save("val_predictions.jpg")

Boxes of the annotations are thin and white; what was found is thick and coloured by class. Pictures for reports
are training/draw.py's.
"""

import itertools
import math
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image, ImageDraw

from retinaserve.training.data.dataset import CocoDataset
from retinaserve.training.data.loaders import Batch
from retinaserve.training.spec import DetectorSpec
from retinaserve.training.trainer.validate import Found

TILE, COLUMNS, MOST, GAP = 360, 4, 16, 4
SHOWN_SCORE = 0.3
COLOURS = ("#2563eb", "#f97316", "#16a34a", "#d92777", "#eab308", "#7c3aed", "#dc2626", "#06a0be")
PAPER = (250, 250, 250)


def draw_batch(batch: Batch, classes: Sequence[str]) -> Image.Image:
    """Draw the first pictures of a training batch with their boxes; crowd regions are grey."""
    tiles = []
    for pixels, target in zip(batch.images[:MOST].cpu(), batch.targets[:MOST], strict=True):
        picture = Image.fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0).numpy()))  # (3, H, W) -> (H, W, 3)
        tile, ink, scale = _tile(picture)
        rows = zip(target.boxes.tolist(), target.classes.tolist(), target.crowd.tolist(), strict=True)
        for box, index, crowd in rows:
            colour = "#71717a" if crowd else COLOURS[index % len(COLOURS)]
            _box(ink, box, scale, colour, 2, "crowd" if crowd else classes[index])
        tiles.append(tile)
    return _sheet(tiles)


def draw_predictions(dataset: CocoDataset, spec: DetectorSpec, found: Iterable[Found]) -> Image.Image:
    """Draw annotations and what was found, above a score, on the first pictures."""
    tiles = []
    for each in list(found)[:MOST]:
        tile, ink, scale = _tile(dataset.load(each.index))
        for box in dataset.labels[each.index].boxes.tolist():
            _box(ink, box, scale, "white", 1, "")
        for box, score, index in reversed(
            list(zip(each.boxes.tolist(), each.scores.tolist(), each.classes.tolist(), strict=True))
        ):
            if score >= SHOWN_SCORE:
                _box(ink, box, scale, COLOURS[index % len(COLOURS)], 2, f"{spec.classes[index]} {score:.2f}")
        tiles.append(tile)
    return _sheet(tiles)


def _tile(picture: Image.Image) -> tuple[Image.Image, ImageDraw.ImageDraw, float]:
    scale = TILE / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    tile = picture.resize(size, Image.Resampling.BILINEAR)
    return tile, ImageDraw.Draw(tile), scale


def _box(ink: ImageDraw.ImageDraw, box: Sequence[float], scale: float, colour: str, width: int, text: str) -> None:
    x1, y1, x2, y2 = (round(value * scale) for value in box)
    ink.rectangle((x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), outline=colour, width=width)
    if text:
        left, top, right, bottom = ink.textbbox((x1, max(0, y1 - 11)), text)
        ink.rectangle((left, top, right + 1, bottom), fill=colour)
        ink.text((x1, max(0, y1 - 11)), text, fill="white")


def _sheet(tiles: Sequence[Image.Image]) -> Image.Image:
    columns = min(COLUMNS, len(tiles))
    rows = math.ceil(len(tiles) / max(1, columns))
    heights = [max(tile.height for tile in tiles[row * columns :][:columns]) for row in range(rows)]
    tops = list(itertools.accumulate((height + GAP for height in heights), initial=GAP))
    sheet = Image.new("RGB", (max(1, columns) * (TILE + GAP) + GAP, max(tops[-1], TILE)), PAPER)
    for number, tile in enumerate(tiles):
        sheet.paste(tile, (GAP + number % columns * (TILE + GAP), tops[number // columns]))
    return sheet
