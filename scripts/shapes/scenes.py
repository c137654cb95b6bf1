"""What is larger than an image: a video of shapes with the identity of each box, and a survey as one GeoTIFF.

    draw_film(Path("film"), size=(480, 640), seconds=20, fps=25, seed=0)    # film.mp4 and film.txt
    draw_mosaic(Path("mosaic"), side=20_000, seed=0)        # mosaic.tif and annotations.json

Shapes of a film move, cross and pass behind posts. film.txt is MOTChallenge's: frame from 1, identity, left, top,
width, height, 1, category id, visible share. As in the images, a shape has a box around its whole outline while
VISIBLE of its pixels are seen.

A survey is drawn and written a block at a time, so its size is the disk's matter. A shape lies within one block of
BLOCK pixels; blocks are independent of how anybody cuts the image later.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from retinaserve.eval.video import VideoWriter
from retinaserve.scripts.shapes.draw import (
    CATEGORIES,
    VISIBLE,
    DataSet,
    Kind,
    Rng,
    coco_rows,
    draw_scene,
    draw_shape,
)
from retinaserve.scripts.shapes.textures import contrasting
from retinaserve.training.files import make_place, write_json, write_text

SHAPES = 10
EXTENT = (0.1, 0.2)  # of the longer side
MOST_FRAMES = 1_000_000
SPEED = (0.05, 0.25)  # of the longer side in a second
TURN = 0.8  # radians in the square root of a second
POSTS = ((0.3, 0.36), (0.66, 0.72))  # of the width
POST = 255  # whose pixels are a post's

BLOCK = 1000  # px
BLOCK_SHAPES = 30
KIND = Kind(categories=("ellipse", "rectangle", "star"), extent=(24, 40), pixels=True, cut=0)
METRES = 0.1  # a pixel
EAST, NORTH, SYSTEM = 400_000.0, 5_000_000.0, "EPSG:32633"


@dataclass(eq=False)
class _Sprite:
    category: str
    pixels: Image.Image
    mask: Image.Image
    total: int
    outline: npt.NDArray[np.float64]  # left, top, width, height within the pixels
    place: npt.NDArray[np.float64]
    velocity: npt.NDArray[np.float64]


def draw_film(
    directory: Path,
    *,
    size: tuple[int, int],
    seconds: float,
    fps: float,
    seed: int,
    on_frame: Callable[[], object] = lambda: None,
) -> tuple[Path, Path, int]:
    """Write film.mp4 of `size` (h, w) and film.txt; return both and the number of boxes."""
    make_place(directory / "film.mp4")
    height, width = size
    rng = np.random.default_rng((seed, 1))
    ground, _ = draw_scene((width, height), rng, count=0)
    around = tuple(int(value) for value in np.asarray(ground).mean(axis=(0, 1)))
    sprites = [_sprite(size, (around[0], around[1], around[2]), rng) for _ in range(SHAPES)]
    posts = [(round(low * width), round(high * width), contrasting(rng, (128, 128, 128))) for low, high in POSTS]
    rows: list[str] = []
    with VideoWriter(directory / "film.mp4") as writer:
        for frame in range(max(1, round(seconds * fps))):
            canvas, owners = ground.copy(), np.zeros(size, np.uint8)
            for number, sprite in enumerate(sprites, 1):
                left, top = np.round(sprite.place).astype(int).tolist()
                canvas.paste(sprite.pixels, (left, top), sprite.mask)
                owners[top : top + sprite.mask.height, left : left + sprite.mask.width][
                    np.asarray(sprite.mask) > 0
                ] = number
            for low, high, colour in posts:
                canvas.paste(colour, (low, 0, high, height))
                owners[:, low:high] = POST
            for number, sprite in enumerate(sprites, 1):
                visible = np.count_nonzero(owners == number) / sprite.total
                if visible >= VISIBLE:
                    left, top, *extent = (np.r_[np.round(sprite.place), 0, 0] + sprite.outline).tolist()
                    numbers = ",".join(f"{value:.2f}" for value in (left, top, *extent))
                    rows.append(f"{frame + 1},{number},{numbers},1,{CATEGORIES[sprite.category]},{visible:.3f}")
                _move(sprite, size, 1 / fps, rng)
            writer.write(canvas, frame / fps)
            on_frame()
    write_text(directory / "film.txt", "".join(f"{row}\n" for row in rows))
    return directory / "film.mp4", directory / "film.txt", len(rows)


def _sprite(size: tuple[int, int], ground: tuple[int, int, int], rng: Rng) -> _Sprite:
    """Return a shape with the pixels that are its own, somewhere in the image and on its way."""
    longer = max(size)
    low, high = (min(share * longer, min(size) - 2) for share in EXTENT)
    side = round(1.5 * high)
    canvas, owners = Image.new("RGB", (side, side), ground), np.zeros((side, side), np.uint8)
    category, box, total = draw_shape(canvas, owners, 1, ground, rng, Kind(extent=(low, high), pixels=True, cut=0))
    x, y, width, height = box
    left, top, right, bottom = int(x), int(y), min(side, int(x + width) + 1), min(side, int(y + height) + 1)
    mask = Image.fromarray(255 * owners[top:bottom, left:right])
    place = rng.uniform((0, 0), (size[1] - mask.width, size[0] - mask.height))
    angle, speed = rng.uniform(0, 2 * np.pi), longer * rng.uniform(*SPEED)
    return _Sprite(
        category,
        canvas.crop((left, top, right, bottom)),
        mask,
        total,
        np.array([x - left, y - top, width, height]),
        place,
        speed * np.array([np.cos(angle), np.sin(angle)]),
    )


def _move(sprite: _Sprite, size: tuple[int, int], seconds: float, rng: Rng) -> None:
    """Move on a path that bends at random and is thrown back by the borders."""
    angle = TURN * np.sqrt(seconds) * rng.normal()
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    sprite.velocity = turn @ sprite.velocity
    sprite.place = sprite.place + seconds * sprite.velocity
    most = np.array([size[1] - sprite.mask.width, size[0] - sprite.mask.height])
    beyond = (sprite.place < 0) | (sprite.place > most)
    sprite.velocity = np.where(beyond, -np.abs(sprite.velocity) * np.sign(sprite.place), sprite.velocity)
    sprite.place = np.clip(sprite.place, 0, most)


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
                image, shapes = draw_scene((BLOCK, BLOCK), rng, count=BLOCK_SHAPES, kind=KIND)
                window = rasterio.windows.Window(column * BLOCK, row * BLOCK, BLOCK, BLOCK)
                file.write(np.moveaxis(np.asarray(image), -1, 0), window=window)
                boxes += coco_rows(shapes, 1, after=len(boxes), place=(column * BLOCK, row * BLOCK))
                on_block()
    annotations = directory / "annotations.json"
    images = [{"id": 1, "file_name": path.name, "width": blocks * BLOCK, "height": blocks * BLOCK}]
    categories = [{"id": CATEGORIES[name], "name": name} for name in KIND.categories]
    write_json(annotations, {"images": images, "annotations": boxes, "categories": categories}, indent=None)
    return DataSet(directory, annotations, 1, len(boxes))
