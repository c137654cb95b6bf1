import numpy as np
import pytest
from PIL import Image

from retinaserve.training.detections import Detections
from retinaserve.training.images.draw import colour_of, contact_sheet, contrast, draw, text_colour

GREY = (128, 128, 128)
BLUE = (37, 99, 235)  # the first class


def one(*box: float, index: int = 0) -> Detections:
    return Detections(np.float32([box]), np.float32([0.9]), np.int32([index]))


def test_no_detections_leave_the_picture_as_it_is() -> None:
    image = Image.effect_noise((640, 480), 50).convert("RGB")
    assert np.array_equal(np.asarray(draw(image, Detections.none(), ())), np.asarray(image))


# Size of the image, box, and a place in the middle of its right line (half-open: x2 - 1 is the last column).
LINES = {
    "normal": ((640, 480), (100, 200, 400, 400), (399, 300)),
    "huge": ((4000, 3000), (1000, 1000, 3000, 2000), (2999, 1500)),
    "tiny, enlarged four times": ((80, 60), (20, 30, 60, 50), (239, 160)),
    "to the very edge": ((640, 480), (0, 0, 640, 480), (639, 240)),
    "over the edge": ((640, 480), (-50, -50, 900, 900), (639, 240)),
    "a slit": ((1000, 20), (100, 0, 900, 20), (899, 18)),
}


@pytest.mark.parametrize("case", LINES)
def test_a_box_is_drawn_where_it_is(case: str) -> None:
    size, box, (x, y) = LINES[case]
    drawn = draw(Image.new("RGB", size, GREY), one(*box), ["cat"])
    assert drawn.getpixel((x, y)) == BLUE
    if x + 3 < drawn.width:
        assert drawn.getpixel((x + drawn.width // 100, y)) == GREY


def test_outlines_are_thin_white_and_beneath() -> None:
    drawn = draw(
        Image.new("RGB", (640, 480), GREY), one(100, 100, 200, 200), ["cat"], outlines=[[300, 100, 400, 200]]
    )
    assert drawn.getpixel((399, 150)) == (255, 255, 255) and drawn.getpixel((396, 150)) == GREY
    over = draw(
        Image.new("RGB", (640, 480), GREY), one(100, 100, 200, 200), ["cat"], outlines=[[100, 100, 200, 200]]
    )
    assert over.getpixel((199, 150)) == BLUE


LABELS = {
    "room above": ((640, 480), (200, 200, 400, 400)),
    "at the top": ((640, 480), (200, 0, 400, 400)),
    "at the right": ((640, 480), (600, 200, 640, 400)),
    "a box of no size": ((640, 480), (639.9, 479.9, 640, 480)),
    "one pixel": ((1, 1), (0, 0, 1, 1)),
    "lower than a letter": ((640, 8), (10, 0, 20, 8)),
}


@pytest.mark.parametrize(
    "name", ["cat", "ÄÖ Кошка 猫 قطة", "x" * 500, ""], ids=["plain", "scripts", "long", "empty"]
)
@pytest.mark.parametrize("case", LABELS)
def test_a_label_is_readable_on_its_own_ground(case: str, name: str) -> None:
    size, box = LABELS[case]
    drawn = np.asarray(draw(Image.new("RGB", size, GREY), one(*box), [name]))
    # The chip is the only place with letters: some pure text pixels beside many of the class colour.
    assert (drawn == BLUE).all(axis=2).sum() > 20
    assert (drawn == (255, 255, 255)).all(axis=2).any()


def test_text_on_every_class_colour_passes_wcag_for_large_text() -> None:
    colours = [colour_of(index) for index in range(36)]
    assert len(set(colours)) == 36
    assert min(contrast(text_colour(colour), colour) for colour in colours) >= 3.0
    assert colour_of(36) == colour_of(0)


def test_contrast_is_that_of_wcag() -> None:
    assert contrast((0, 0, 0), (255, 255, 255)) == pytest.approx(21)
    assert contrast((119, 119, 119), (255, 255, 255)) == pytest.approx(4.48, abs=0.005)  # WCAG's own example


def test_labels_of_boxes_on_one_place_stay_apart() -> None:
    boxes = Detections(np.float32([[200, 200, 420, 400]] * 3), np.float32([0.9, 0.8, 0.7]), np.int32([0, 1, 2]))
    drawn = np.asarray(draw(Image.new("RGB", (640, 480), GREY), boxes, ["aaaa", "bbbb", "cccc"]))
    for index in range(3):
        assert (drawn == colour_of(index)).all(axis=2).sum() > 500, "its label is hidden"


def test_within_fits_before_drawing() -> None:
    drawn = draw(Image.new("RGB", (4000, 1000), GREY), one(0, 0, 4000, 1000), ["cat"], within=(400, 300))
    assert drawn.size == (400, 100)
    assert drawn.getpixel((399, 50)) == BLUE and drawn.getpixel((399 - 5, 50)) == GREY


SHEETS = {"one": (1, 4, 1, 1), "a row": (3, 4, 3, 1), "more rows": (9, 4, 4, 3)}


@pytest.mark.parametrize("case", SHEETS)
def test_a_sheet_has_room_for_all(case: str) -> None:
    count, columns, wide, high = SHEETS[case]
    images = [(Image.new("RGB", (50 + 100 * n, 200), BLUE), f"{n} " * 60) for n in range(count)]
    sheet = contact_sheet(images, columns=columns, tile=(200, 150))
    assert wide * 200 < sheet.width < wide * 220 and high * 150 < sheet.height < high * 200
    last = np.asarray(sheet)[-sheet.height // high :]  # the last row has an image too
    assert (last == BLUE).all(axis=2).any()


def test_a_name_of_several_lines_is_drawn_in_one() -> None:
    image = Image.new("RGB", (400, 300), GREY)
    first, second = (draw(image, one(50, 50, 300, 200), [name]) for name in ("big cat", "big\ncat\n"))
    assert np.array_equal(np.asarray(first), np.asarray(second))


def test_many_boxes_have_thin_lines_and_no_labels() -> None:
    """A survey of 3000 pixels with 400 boxes of 30: most of what is inside them stays to be seen."""
    places = np.stack(np.meshgrid(np.arange(20), np.arange(20)), axis=-1).reshape(-1, 2) * 150 + 40
    boxes = np.concatenate((places, places + 30), axis=1).astype(np.float32)
    found = Detections(boxes, np.full(400, 0.9, np.float32), np.zeros(400, np.int32))
    drawn = np.asarray(draw(Image.new("RGB", (3000, 3000), (200, 200, 200)), found, ["star"]))
    changed = (drawn != 200).any(axis=-1)
    assert changed[40:70, 40:70].mean() < 0.6 and not changed[50:60, 50:60].any()
    assert changed.sum() < 400 * 40 * 40
