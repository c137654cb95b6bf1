"""A synthetic COCO data set: coloured shapes on textured backgrounds, the same bytes for the same seed.

    draw_dataset(Path("shapes/train"), images=600, seed=0)     # images/*.jpg|png and annotations.json
    draw_dataset(Path("small/train"), images=300, seed=0, small=True)

Shapes are rotated, stretched, textured, hollow or outlined, cut by the border and overlapping; images differ
in size and shape, some are greyscale, carry an EXIF orientation, or hold no shape at all. A box is the tight box
of the whole outline within the image, as for an object that stands behind another; a shape of which less than
`VISIBLE` is seen has none. There are no crowds and no segmentations. Small sets have images of one size, and
shapes of 12 to 28 pixels among as small ones that are none of their classes.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from retinaserve.scripts.shapes.textures import Colour, contrasting, random_colour, texture
from retinaserve.training.errors import UserError
from retinaserve.training.files import write_json

# Category ids leave gaps, as COCO's do: code that takes an id for an index fails here first.
CATEGORIES: Mapping[str, int] = {
    "ellipse": 1,
    "rectangle": 2,
    "triangle": 3,
    "star": 5,
    "cross": 8,
    "crescent": 13,
}
SIDE = (200, 640)  # pixels of an image's longer side
FLATTEST = 0.5  # of the longer side, the shorter one at least
EXTENT = (0.12, 0.5)  # a shape's larger side, of the image's longer side
SMALLEST = 12.0  # pixels, below which a shape can't be told from another
MOST_SHAPES = 8
EMPTY, GREY, ROTATED, PNG, HOLLOW, OUTLINED = 0.05, 0.1, 0.12, 0.12, 0.12, 0.4  # shares
CUT = 0.15  # share of shapes that may reach beyond the image
PLACES = 3  # that a shape may choose from: fewer hide each other, some still do
VISIBLE = 0.5  # of a shape's pixels, for a box
OVERSAMPLING = 4  # masks are drawn this much larger and averaged: smooth edges

# How an image is stored under an EXIF orientation so that undoing the orientation shows it upright again.
STORED_AS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
EXIF_ORIENTATION = 0x0112

Points = npt.NDArray[np.float64]
Rng = np.random.Generator


@dataclass(frozen=True)
class Shape:
    """One drawn shape: its category, its box (x, y, w, h) within the image, and how much of it is seen."""

    category: str
    box: tuple[float, float, float, float]
    area: int  # visible pixels
    visible: float  # share of all its pixels


@dataclass(frozen=True)
class Kind:
    """Which shapes a scene has: their larger sides are shares of the image's longer one, or pixels."""

    categories: tuple[str, ...] = tuple(CATEGORIES)
    extent: tuple[float, float] = EXTENT
    pixels: bool = False
    cut: float = CUT


SMALL = Kind(extent=(SMALLEST, 28), pixels=True, cut=0.05)
SMALL_SIZE, SMALL_COUNT = (320, 240), (6, 21)  # width and height; shapes of all categories, the latter excluded
SMALL_CLASSES = ("ellipse", "triangle", "star", "cross")  # that have boxes


@dataclass(frozen=True)
class DataSet:
    """What `draw_dataset` wrote."""

    images: Path
    annotations: Path
    image_count: int
    box_count: int


def draw_dataset(
    directory: Path,
    *,
    images: int,
    seed: int,
    small: bool = False,
    on_image: Callable[[], object] = lambda: None,
) -> DataSet:
    """Write `images` images and their annotations.json into `directory`; `on_image` is called after each.

    Files that are there already are overwritten, others are left. Raises UserError for an unusable directory.
    """
    folder = directory / "images"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror}", "a directory that can be written is expected") from None
    labelled = SMALL_CLASSES if small else tuple(CATEGORIES)
    coco: dict[str, Any] = {
        "info": {"description": "retinaserve synthetic shapes", "version": "1.0", "seed": seed},
        "licenses": [{"id": 1, "name": "CC0-1.0", "url": "https://creativecommons.org/publicdomain/zero/1.0/"}],
        "images": [],
        "annotations": [],
        "categories": [{"id": CATEGORIES[name], "name": name, "supercategory": "shape"} for name in labelled],
    }
    for index in range(images):
        rng = np.random.default_rng((seed, index))
        if small:
            image, shapes = draw_scene(SMALL_SIZE, rng, count=int(rng.integers(*SMALL_COUNT)), kind=SMALL)
            shapes = [shape for shape in shapes if shape.category in labelled]
        else:
            image, shapes = draw_image(rng)
        name = _save(image, folder / f"{index:05d}", rng)
        entry = {"id": index + 1, "file_name": name, "width": image.width, "height": image.height, "license": 1}
        coco["images"].append(entry)
        coco["annotations"] += coco_rows(shapes, index + 1, after=len(coco["annotations"]))
        on_image()
    annotations = directory / "annotations.json"
    write_json(annotations, coco, indent=None)
    return DataSet(folder, annotations, images, len(coco["annotations"]))


def coco_rows(
    shapes: Iterable[Shape], image: int, *, after: int, place: tuple[int, int] = (0, 0)
) -> list[dict[str, Any]]:
    """Return the annotations of an image's shapes, with ids after `after`; `place` is where it lies in another."""
    rows: list[dict[str, Any]] = []
    for number, shape in enumerate(shapes, after + 1):
        x, y, width, height = shape.box
        box = [round(x + place[0], 2), round(y + place[1], 2), width, height]
        row = {"id": number, "image_id": image, "category_id": CATEGORIES[shape.category]}
        rows.append({**row, "bbox": box, "area": shape.area, "iscrowd": 0})
    return rows


def draw_image(rng: Rng) -> tuple[Image.Image, list[Shape]]:
    """Return an upright image, RGB or greyscale, and those of its shapes that have a box."""
    longer = int(rng.integers(SIDE[0], SIDE[1] + 1))
    shorter = int(longer * rng.uniform(FLATTEST, 1))
    size = (longer, shorter) if rng.random() < 0.6 else (shorter, longer)
    grey = rng.random() < GREY
    canvas, shapes = draw_scene(size, rng)
    return canvas.convert("L") if grey else canvas, shapes


def draw_scene(
    size: tuple[int, int], rng: Rng, *, count: int | None = None, kind: Kind | None = None
) -> tuple[Image.Image, list[Shape]]:
    """Return an RGB image of size (w, h) with `count` shapes, or a few, and those of them that have a box."""
    width, height = size
    kind = kind or Kind()
    ground = random_colour(rng)
    canvas = Image.fromarray(texture(rng, height, width, (ground, random_colour(rng, near=ground))))
    _draw_strokes(canvas, rng)
    if count is None:
        count = 0 if rng.random() < EMPTY else int(rng.integers(1, MOST_SHAPES + 1))
    owners = np.zeros((height, width), np.uint8)  # which shape each pixel shows, counted from 1
    drawn = [draw_shape(canvas, owners, number, ground, rng, kind) for number in range(1, count + 1)]
    shapes = [
        Shape(category, box, area, area / total)
        for number, (category, box, total) in enumerate(drawn, start=1)
        if (area := int((owners == number).sum())) / total >= VISIBLE
    ]
    return _with_grain(canvas, rng), shapes


def outline(category: str, rng: Rng) -> Points:
    """Return the polygon (N, 2) of a category around the origin, within the unit circle, not yet rotated."""
    match category:
        case "ellipse":
            return _arc(1, 0, 2 * math.pi, 72)
        case "rectangle":
            return _arc(1, math.pi / 4, 2 * math.pi + math.pi / 4, 4)
        case "triangle":
            return _arc(1, 0, 2 * math.pi, 3)
        case "star":
            points = _arc(1, 0, 2 * math.pi, 10)
            points[1::2] *= rng.uniform(0.38, 0.5)
            return points
        case "cross":
            arm = rng.uniform(0.25, 0.38)
            quarter = np.array([(1, -arm), (1, arm), (arm, arm)]) / math.hypot(1, arm)
            turns = [np.array([(math.cos(a), math.sin(a)), (-math.sin(a), math.cos(a))]) for a in _QUARTERS]
            return np.concatenate([quarter @ turn for turn in turns])
        case "crescent":
            # The inner circle runs through both horns of the outer one.
            horn, depth = rng.uniform(0.25, 0.4) * math.pi, rng.uniform(0.3, 0.5)
            outer = _arc(1, horn, 2 * math.pi - horn, 48)
            x, y = math.cos(horn), math.sin(horn)
            bottom = -1 + depth * (1 + x)
            centre = (x * x + y * y - bottom * bottom) / (2 * (x - bottom))
            radius = centre - bottom
            half = math.atan2(y, x - centre)
            inner = _arc(radius, 2 * math.pi - half, half, 48) + np.array((centre, 0))
            return np.concatenate([outer, inner])
    raise ValueError(f"no outline for {category!r}")


_QUARTERS = [quarter * math.pi / 2 for quarter in range(4)]


def _arc(radius: float, start: float, end: float, count: int) -> Points:
    angles = np.linspace(start, end, count, endpoint=False)
    points: Points = radius * np.stack((np.cos(angles), np.sin(angles)), axis=1)
    return points


def draw_shape(
    canvas: Image.Image, owners: npt.NDArray[np.uint8], number: int, ground: Colour, rng: Rng, kind: Kind
) -> tuple[str, tuple[float, float, float, float], int]:
    """Draw a random shape; return its category, its box within the image and its number of pixels."""
    category = str(rng.choice(kind.categories))
    scale = 1 if kind.pixels else max(canvas.size)
    extent = max(SMALLEST, scale * math.exp(rng.uniform(*np.log(kind.extent))))
    points = outline(category, rng) * (1, rng.uniform(0.65, 1))
    angle = rng.uniform(0, 2 * math.pi)
    turn = np.array([(math.cos(angle), math.sin(angle)), (-math.sin(angle), math.cos(angle))])
    points = points @ turn
    points *= extent / np.ptp(points, axis=0).max()
    points += _place(np.ptp(points, axis=0), owners, rng, kind.cut) - points.min(axis=0)

    left, top = np.floor(points.min(axis=0)).astype(int)
    right, bottom = np.ceil(points.max(axis=0)).astype(int)
    size = (int(right - left), int(bottom - top))
    fill, edge = contrasting(rng, ground), contrasting(rng, ground)
    hollow = rng.random() < HOLLOW and extent > 2 * SMALLEST
    border = extent * rng.uniform(0.05, 0.1) if hollow or rng.random() < OUTLINED else 0.0
    body, rim = _masks(points - (left, top), size, border)
    skin = Image.fromarray(texture(rng, size[1], size[0], (fill, random_colour(rng, near=fill))))
    if not hollow:
        canvas.paste(skin, (int(left), int(top)), body)
    if border:
        canvas.paste(edge, (int(left), int(top)), rim)

    mask = np.asarray(rim if hollow else body) >= 128
    x1, y1 = max(left, 0), max(top, 0)
    inside = mask[y1 - top : canvas.height - top, x1 - left : canvas.width - left]
    owners[y1 : y1 + inside.shape[0], x1 : x1 + inside.shape[1]][inside] = number
    low, high = points.min(axis=0), points.max(axis=0)
    if inside.shape != mask.shape and inside.any():
        # Cut by the border: what is left need not reach as far as the corners that are gone.
        columns, rows = np.flatnonzero(inside.any(axis=0)), np.flatnonzero(inside.any(axis=1))
        low = np.array((x1 + columns[0], y1 + rows[0]))
        high = np.array((x1 + columns[-1] + 1, y1 + rows[-1] + 1))
    x, y, w, h = (round(float(value), 2) for value in (*low, *(high - low)))
    return category, (x, y, w, h), max(1, int(mask.sum()))


def _place(extent: Points, owners: npt.NDArray[np.uint8], rng: Rng, cut: float) -> Points:
    """Return a top left corner: of a few random ones, that where the shape hides least of those before it."""
    size = np.array(owners.shape[::-1])
    if rng.random() < cut or (extent > size).any():
        low, high = -extent / 2, size - extent / 2  # centred within the image, and cut where that goes beyond
    else:
        low, high = np.zeros(2), size - extent
    corners = rng.uniform(low, high, (PLACES, 2))
    hidden = []
    for corner in corners:
        left, top = np.maximum(corner, 0).astype(int)
        right, bottom = (corner + extent).astype(int)
        hidden.append(np.count_nonzero(owners[top:bottom, left:right]))
    place: Points = corners[np.argmin(hidden)]
    return place


def _masks(points: Points, size: tuple[int, int], border: float) -> tuple[Image.Image, Image.Image]:
    """Return the smooth masks of a polygon's body and of its rim, which lies inside the outline."""
    large = (size[0] * OVERSAMPLING, size[1] * OVERSAMPLING)
    corners = [(float(x), float(y)) for x, y in points * OVERSAMPLING]
    body, rim = Image.new("L", large), Image.new("L", large)
    ImageDraw.Draw(body).polygon(corners, fill=255)
    if border:
        ImageDraw.Draw(rim).polygon(corners, outline=255, width=max(1, round(border * OVERSAMPLING)))
    return body.reduce(OVERSAMPLING), rim.reduce(OVERSAMPLING)


def _draw_strokes(canvas: Image.Image, rng: Rng) -> None:
    """Draw a few lines and arcs: edges that are no shape."""
    draw = ImageDraw.Draw(canvas)
    for _ in range(int(rng.integers(0, 6))):
        colour = random_colour(rng)
        width = int(rng.integers(1, max(2, max(canvas.size) // 80)))
        x1, y1, x2, y2 = (float(value) for value in rng.uniform(0, (*canvas.size, *canvas.size)))
        if rng.random() < 0.5:
            draw.line((x1, y1, x2, y2), fill=colour, width=width)
        else:
            start, length = rng.uniform(0, 360), rng.uniform(40, 160)
            box = (min(x1, x2), min(y1, y2), max(x1, x2) + 1, max(y1, y2) + 1)
            draw.arc(box, start, start + length, fill=colour, width=width)


def _with_grain(canvas: Image.Image, rng: Rng) -> Image.Image:
    """Add a sensor's noise, of one value for the three channels."""
    strength = int(rng.integers(1, 14))
    pixels = np.asarray(canvas, np.int16)
    noise = rng.integers(-strength, strength + 1, pixels.shape[:2], dtype=np.int16)
    return Image.fromarray(np.clip(pixels + noise[..., None], 0, 255).astype(np.uint8))


def _save(image: Image.Image, stem: Path, rng: Rng) -> str:
    """Write the image as PNG or JPEG, now and then turned and with the EXIF tag that undoes it."""
    if rng.random() < PNG:
        path = stem.with_suffix(".png")
        image.save(path, compress_level=1)
        return path.name
    path = stem.with_suffix(".jpg")
    exif = Image.Exif()
    if rng.random() < ROTATED:
        orientation = int(rng.choice(list(STORED_AS)))
        exif[EXIF_ORIENTATION] = orientation
        image = image.transpose(STORED_AS[orientation])
    image.save(path, quality=int(rng.integers(80, 96)), exif=exif)
    return path.name
