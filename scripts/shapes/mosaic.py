"""A synthetic survey: one large GeoTIFF with many small shapes, whose boxes are known.

    draw_mosaic(Path("mosaic"), side=20_000, seed=0)        # mosaic.tif and annotations.json

It is drawn and written a block at a time, so its size is the disk's matter. A shape lies within one block of BLOCK
pixels; blocks are independent of how anybody cuts the image later.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from retinaserve.scripts.shapes.draw import CATEGORIES, DataSet, Kind, coco_rows, draw_scene
from retinaserve.training.files import make_place, write_json

BLOCK = 1000  # px
SHAPES = 30  # in a block
KIND = Kind(categories=("ellipse", "rectangle", "star"), extent=(24, 40), pixels=True, cut=0)
METRES = 0.1  # a pixel
EAST, NORTH, SYSTEM = 400_000.0, 5_000_000.0, "EPSG:32633"


def draw_mosaic(
    directory: Path, *, side: int, seed: int, on_block: Callable[[], object] = lambda: None
) -> DataSet:
    """Write a square survey of `side` pixels, rounded down to blocks, and its COCO annotations."""
    import rasterio

    path, blocks = directory / "mosaic.tif", max(1, side // BLOCK)
    make_place(path)
    profile: dict[str, Any] = {
        "driver": "GTiff",
        "count": 3,
        "dtype": "uint8",
        "photometric": "RGB",
        "crs": SYSTEM,
    }
    profile |= {"height": blocks * BLOCK, "width": blocks * BLOCK, "tiled": True, "BIGTIFF": "IF_SAFER"}
    profile["transform"] = rasterio.Affine(METRES, 0, EAST, 0, -METRES, NORTH)
    boxes: list[dict[str, Any]] = []
    with rasterio.Env(GDAL_CACHEMAX=256), rasterio.open(path, "w", **profile) as file:
        for row in range(blocks):
            for column in range(blocks):
                rng = np.random.default_rng((seed, row, column))
                image, shapes = draw_scene((BLOCK, BLOCK), rng, count=SHAPES, kind=KIND)
                window = rasterio.windows.Window(column * BLOCK, row * BLOCK, BLOCK, BLOCK)
                file.write(np.moveaxis(np.asarray(image), -1, 0), window=window)
                boxes += coco_rows(shapes, 1, after=len(boxes), place=(column * BLOCK, row * BLOCK))
                on_block()
    annotations = directory / "annotations.json"
    images = [{"id": 1, "file_name": path.name, "width": blocks * BLOCK, "height": blocks * BLOCK}]
    categories = [{"id": CATEGORIES[name], "name": name} for name in KIND.categories]
    write_json(annotations, {"images": images, "annotations": boxes, "categories": categories}, indent=None)
    return DataSet(directory, annotations, 1, len(boxes))
