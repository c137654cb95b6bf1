"""A COCO data set: pictures on disk and the boxes an annotation file has for them.

    data = CocoDataset(Path("train/images"), Path("train/annotations.json"))
    data.classes, data.category_ids, len(data)
    picture = data.load(0)                                   # upright RGB, whatever the file was
    pixels, how = letterbox(picture, (512, 512), fill)       # (H, W, 3) uint8, and what `LETTERBOX` holds

Classes count from 0 in the order of the file's category ids. Boxes stay in the pixels of the upright picture.
Segmentations, keypoints and licences are not looked at.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from retinaserve.training.coco import Annotations
from retinaserve.training.errors import UserError

Pixels = npt.NDArray[np.uint8]
FloatArray = npt.NDArray[np.float32]

ORIENTATION = 0x0112  # of EXIF
SIDEWAYS = (5, 6, 7, 8)  # the orientations that exchange width and height


@dataclass(frozen=True, eq=False)
class Labels:
    """One picture's file and boxes: (M, 4) xyxy in its upright pixels, class indices, and which are crowds."""

    image_id: int
    path: Path
    boxes: FloatArray
    classes: npt.NDArray[np.int64]
    crowd: npt.NDArray[np.bool_]


class CocoDataset:
    """The pictures of an annotation file, with those that have no boxes."""

    def __init__(self, images: Path, annotations: Path) -> None:
        """Read the file and find its pictures. Raises UserError for what is missing or not COCO."""
        truth = Annotations.load(annotations, strict=True)
        # Boxes without an area can't be learnt, and are not asked for in validation.
        boxes = tuple(box for box in truth.boxes if min(box["bbox"][2:]) > 0)
        self.truth = replace(truth, boxes=boxes)
        self.category_ids = tuple(sorted(truth.categories))
        self.classes = tuple(truth.categories[number] for number in self.category_ids)
        self.labels = _labels(images, self.truth, self.category_ids)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def box_count(self) -> int:
        """The number of boxes that can be learnt: all but crowds."""
        return sum(int((~labels.crowd).sum()) for labels in self.labels)

    def load(self, index: int) -> Image.Image:
        """Return a picture as upright RGB. Raises UserError for a file that can't be read."""
        return load_image(self.labels[index].path)


def load_image(path: Path) -> Image.Image:
    """Return the picture in a file as upright RGB; its EXIF orientation is applied, its alpha dropped."""
    try:
        with Image.open(path) as picture:
            return ImageOps.exif_transpose(picture).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: the picture can't be read: {error}") from None


def upright_size(path: Path) -> tuple[int, int]:
    """Return (h, w) of the picture in a file after its EXIF orientation, from its header."""
    try:
        with Image.open(path) as picture:
            width, height = picture.size
            sideways = picture.getexif().get(ORIENTATION) in SIDEWAYS
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: the picture can't be read: {error}") from None
    return (width, height) if sideways else (height, width)


def resized_size(original: tuple[int, int], size: tuple[int, int], *, zoom: float = 1.0) -> tuple[int, int]:
    """Return (h, w) of a picture scaled into `size` with its aspect kept, rounded per axis, at least 1.

    `zoom` is a further factor, for augmentation. In float32, as the served preprocessing computes it.
    """
    scale = min(np.float32(size[0]) / np.float32(original[0]), np.float32(size[1]) / np.float32(original[1]))
    scale *= np.float32(zoom)
    height, width = (max(1, math.floor(np.float32(side) * scale + np.float32(0.5))) for side in original)
    return height, width


def letterbox(
    picture: Image.Image, size: tuple[int, int], fill: tuple[int, int, int]
) -> tuple[Pixels, FloatArray]:
    """Scale a picture into `size` at the top left and pad it.

    Returns (H, W, 3) uint8 and [original h, original w, resized h, resized w]. Pillow's bilinear filter is the
    antialiased triangle that the served preprocessing uses.
    """
    height, width = resized_size((picture.height, picture.width), size)
    canvas = Image.new("RGB", (size[1], size[0]), fill)
    canvas.paste(picture.resize((width, height), Image.Resampling.BILINEAR), (0, 0))
    how = np.array((picture.height, picture.width, height, width), np.float32)
    return np.array(canvas), how


def _labels(folder: Path, truth: Annotations, category_ids: tuple[int, ...]) -> tuple[Labels, ...]:
    files = {image_id: folder / name for image_id, name in truth.images.items()}
    lost = [file for file in files.values() if not file.is_file()]
    if lost:
        raise UserError(
            f"{lost[0]}: no such picture ({len(lost)} of {len(files)} are missing)",
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
