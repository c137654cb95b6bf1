"""A data set that a toy network learns in seconds: dark and light squares of 20 to 40 pixels on grey."""

from pathlib import Path

import numpy as np
from PIL import Image

from retinaserve.training.data.dataset import CocoDataset
from retinaserve.training.trainer.config import TrainConfig
from tests.coco import write_coco
from tests.toys import small_spec

SPEC = small_spec(["dark", "light"], size=(64, 64), norm="batch", category_ids=[2, 5])
QUICK = TrainConfig(6, batch=4, lr=0.002, warmup=2, report_every=2, save_every=100)


def draw(folder: Path, count: int, *, boxes: bool = True) -> CocoDataset:
    """Draw the pictures and their annotation file into a new folder."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    rows = []
    for number in range(count):
        pixels = np.full((64, 64, 3), 128, np.uint8)
        side = int(rng.integers(20, 41))
        x, y = (int(value) for value in rng.integers(0, 64 - side, 2))
        light = bool(number % 2)
        pixels[y : y + side, x : x + side] = 255 if light else 0
        Image.fromarray(pixels).save(folder / f"{number}.png")
        rows += [(number, 5 if light else 2, [x, y, side, side])] * boxes
    names = {number: f"{number}.png" for number in range(count)}
    return CocoDataset(folder, write_coco(folder / "annotations.json", names, rows, {2: "dark", 5: "light"}))
