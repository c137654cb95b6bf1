"""Annotated images: boxes, class names and scores, on any size of image.

    image = draw(open_image(jpeg), detections, class_names)
    contact_sheet([(image, "a.jpg")], columns=4).save("sheet.jpg")

Line widths and letters follow the image's diagonal, and an image too small for letters is enlarged. Cut weak
detections off with `detections.above(score)` before.
"""

import importlib.util
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont, ImageOps

from retinaserve.training.detections import Detections
from retinaserve.training.errors import UserError
from retinaserve.training.images.letterbox import load_image

__all__ = ["contact_sheet", "draw", "open_image"]

Colour = tuple[int, int, int]
Rectangle = tuple[int, int, int, int]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

DARK, LIGHT = (24, 24, 27), (255, 255, 255)
PAPER, CAPTION = (250, 250, 250), (63, 63, 70)
# Strong on light and dark ground alike, neighbours far apart in hue.
PALETTE: tuple[Colour, ...] = (
    (37, 99, 235),  # blue
    (249, 115, 22),  # orange
    (22, 163, 74),  # green
    (217, 39, 119),  # pink
    (234, 179, 8),  # yellow
    (124, 58, 237),  # violet
    (220, 38, 38),  # red
    (6, 160, 190),  # cyan
    (132, 176, 13),  # lime
    (146, 84, 40),  # brown
    (13, 148, 136),  # teal
    (192, 85, 211),  # orchid
)
SMALLEST_SIDE = 320  # an image whose longer side is below is enlarged, or its labels would hide it
SMALLEST_TEXT = 11  # px
MOST_LABELS = 100  # boxes, above which labels would hide the image: colours alone tell the class


def colour_of(index: int) -> Colour:
    """Return the colour of a class: the same in every image; 36 differ, then they come again."""
    base = PALETTE[index % len(PALETTE)]
    target, share = ((base, 0.0), (LIGHT, 0.45), (DARK, 0.45))[index // len(PALETTE) % 3]
    red, green, blue = (round(c + share * (t - c)) for c, t in zip(base, target, strict=True))
    return red, green, blue


def text_colour(background: Colour) -> Colour:
    """Return dark or light, whichever has the higher contrast (WCAG 2.1) on the background."""
    return max(LIGHT, DARK, key=lambda text: contrast(text, background))


def contrast(one: Colour, other: Colour) -> float:
    """Return the WCAG 2.1 contrast ratio of two colours, 1 to 21."""
    low, high = sorted((_luminance(one), _luminance(other)))
    return (high + 0.05) / (low + 0.05)


def open_image(image: bytes | Path, value_range: tuple[int, int] | None = None) -> Image.Image:
    """Decode an encoded image to what the network sees of it, RGB and upright. Raises OSError for garbage."""
    try:
        return load_image(image, value_range)
    except UserError as error:
        raise OSError(error.message) from None


def draw(
    image: Image.Image,
    detections: Detections,
    class_names: Sequence[str] | Mapping[int, str],
    *,
    within: tuple[int, int] | None = None,
    scores: bool = True,
    outlines: npt.ArrayLike = (),
) -> Image.Image:
    """Return a copy of an upright RGB image with its boxes drawn, and those of `outlines` thin and white.

    `within` (width, height) scales the copy to fit before anything is drawn, so that lines and letters keep
    their size; without it only an image too small for letters is scaled, by a whole number.
    """
    if within:
        scale = min(within[0] / image.width, within[1] / image.height)
    else:
        scale = float(math.ceil(SMALLEST_SIDE / max(image.size)))
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    canvas = image.resize(size, Image.Resampling.LANCZOS) if size != image.size else image.copy()
    diagonal = math.hypot(*size)
    line = max(2, round(diagonal / 300))
    crowded = len(detections) > MOST_LABELS
    if crowded:
        sides = scale * (detections.boxes[:, 2:] - detections.boxes[:, :2])
        line = max(1, min(line, round(float(np.median(sides)) / 12)))
    font = _font(max(SMALLEST_TEXT, round(diagonal / 55)))
    ink = ImageDraw.Draw(canvas, "RGBA")

    for box in np.asarray(outlines, np.float32).reshape(-1, 4):
        _outline(ink, _inside(box * scale, size, 2), LIGHT, 1)
    order = np.argsort(-detections.scores, kind="stable")
    boxes = [_inside(detections.boxes[index] * scale, size, 2 * line) for index in order]
    for box, index in reversed(list(zip(boxes, order, strict=True))):  # the best lie on top
        _outline(ink, box, colour_of(int(detections.classes[index])), line)
    chips: list[Rectangle] = []
    for box, index in zip(boxes, order, strict=True) if not crowded else ():
        class_index = int(detections.classes[index])
        text = class_names[class_index]
        if detections.track_ids is not None and detections.track_ids[index] > 0:
            text = f"#{detections.track_ids[index]} {text}"
        if scores:
            text += f" {detections.scores[index]:.2f}"
        chips.append(_chip(ink, box, text, font, colour_of(class_index), line, size, chips))
    return canvas


def contact_sheet(
    images: Sequence[tuple[Image.Image, str]], *, columns: int = 4, tile: tuple[int, int] = (400, 300)
) -> Image.Image:
    """Return images with their captions in a grid; each is scaled to fit the tile (width, height)."""
    columns = max(1, min(columns, len(images)))
    rows = math.ceil(len(images) / columns)
    gap, font = max(8, tile[0] // 40), _font(max(SMALLEST_TEXT, tile[0] // 30))
    text_height = round(1.6 * _height(font))
    step_x, step_y = tile[0] + gap, tile[1] + text_height + gap
    sheet = Image.new("RGB", (gap + columns * step_x, gap + rows * step_y), PAPER)
    ink = ImageDraw.Draw(sheet)
    for number, (image, caption) in enumerate(images):
        left, top = gap + number % columns * step_x, gap + number // columns * step_y
        fitted = ImageOps.contain(image, tile, Image.Resampling.LANCZOS)
        sheet.paste(fitted, (left + (tile[0] - fitted.width) // 2, top + (tile[1] - fitted.height) // 2))
        text = _shortened(caption, font, tile[0])
        ink.text((left + tile[0] / 2, top + tile[1] + text_height / 2), text, CAPTION, font, anchor="mm")
    return sheet


def _inside(box: npt.NDArray[np.float32], size: tuple[int, int], least: int) -> Rectangle:
    """Round to pixels that exist, last one included, and let even the smallest box be seen."""
    edges = []
    for low, high, end in ((box[0], box[2], size[0]), (box[1], box[3], size[1])):
        first = min(max(0, math.floor(low)), max(0, end - 1 - least))
        edges.append((first, min(max(math.ceil(high) - 1, first + least), end - 1)))
    (x1, x2), (y1, y2) = edges
    return x1, y1, x2, y2


def _outline(ink: ImageDraw.ImageDraw, box: Rectangle, colour: Colour, line: int) -> None:
    # A thin shade on both sides parts the line from a ground of its own colour.
    shade = max(1, line // 3)
    x1, y1, x2, y2 = box
    ink.rectangle((x1 - shade, y1 - shade, x2 + shade, y2 + shade), outline=(0, 0, 0, 70), width=line + 2 * shade)
    ink.rectangle(box, outline=colour, width=line)


def _chip(
    ink: ImageDraw.ImageDraw,
    box: Rectangle,
    text: str,
    font: Font,
    colour: Colour,
    line: int,
    size: tuple[int, int],
    taken: Sequence[Rectangle],
) -> Rectangle:
    """Draw a label at the corner of the box where it hides the fewest other labels; return its place."""
    pad = max(2, round(_height(font) / 4))
    text = _shortened(" ".join(text.split()), font, size[0] - 2 * pad)
    width = math.ceil(ink.textlength(text, font)) + 2 * pad
    height = _height(font) + pad
    x1, y1, x2, y2 = box
    places = (
        (x1, y1 - height),  # above, the usual place
        (x2 + 1 - width, y1 - height),
        (x1, y2 + 1),  # below
        (x1, y1),  # inside
        (x2 + 1 - width, y2 + 1 - height),
    )
    kept = [_kept(place, (width, height), size) for place in places]
    # The first of the equally free ones wins, but one that had to be moved is the last resort.
    moved = [(x, y) != place[:2] for (x, y), place in zip(places, kept, strict=True)]
    best = min(range(len(kept)), key=lambda n: (_overlap(kept[n], taken), moved[n], n))
    chip = kept[best]
    ink.rectangle((chip[0], chip[1], chip[2] - 1, chip[3] - 1), fill=colour)
    middle = (chip[0] + pad, (chip[1] + chip[3]) / 2)
    ink.text(middle, text, text_colour(colour), font, anchor="lm")
    return chip


def _kept(place: tuple[int, int], extent: tuple[int, int], size: tuple[int, int]) -> Rectangle:
    x = max(0, min(place[0], size[0] - extent[0]))
    y = max(0, min(place[1], size[1] - extent[1]))
    return x, y, x + extent[0], y + extent[1]


def _overlap(chip: Rectangle, taken: Sequence[Rectangle]) -> int:
    return sum(
        max(0, min(chip[2], other[2]) - max(chip[0], other[0]))
        * max(0, min(chip[3], other[3]) - max(chip[1], other[1]))
        for other in taken
    )


def _shortened(text: str, font: Font, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    while len(text) > 1 and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


def _height(font: Font) -> int:
    """Return the height that any line of text takes, so that all chips are alike."""
    top, bottom = font.getbbox("Ågj|")[1::2]
    return math.ceil(bottom - top)


@lru_cache
def _font(size: int) -> Font:
    """Return DejaVu Sans, which knows most scripts, from matplotlib's files; Pillow's own where it is missing."""
    package = importlib.util.find_spec("matplotlib")  # finds it without the cost of an import
    if package and package.origin:
        path = Path(package.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans-Bold.ttf"
        if path.is_file():
            return ImageFont.truetype(str(path), size)
    return ImageFont.load_default(size)


def _luminance(colour: Colour) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
