import json
import tracemalloc
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from retinaserve.eval.report.report import Report, evaluate_detector
from retinaserve.training.coco import Annotations
from retinaserve.training.detections import Detections, ImageError
from retinaserve.training.errors import UserError
from tests.coco import write_coco
from tests.images import checker

NAMES = {2: "ball", 4: "crate", 6: "never there"}
BOX = (10.0, 20.0, 110.0, 80.0)


@dataclass
class Oracle:
    """A detector that knows the answers, by the length of the encoded picture."""

    answers: dict[int, Detections | ImageError]
    class_names: tuple[str, ...] = ("crate", "ball", "dragon")
    category_ids: tuple[int, ...] = (1, 2, 3)

    def predict(self, images: Sequence[bytes]) -> list[Detections]:
        return [found for found in self.predict_many(images) if isinstance(found, Detections)]

    def predict_many(self, images: Iterable[bytes | ImageError]) -> Iterator[Detections | ImageError]:
        for image in images:
            yield image if isinstance(image, ImageError) else self.answers[len(image)]


@pytest.fixture
def images(tmp_path: Path) -> dict[str, int]:
    """Pictures by name, and how long each file is."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number, name in enumerate(("a.png", "b.png", "c.png", "empty.png")):
        checker(200 + 10 * number, 100, seed=number).save(folder / name)
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    assert len(set(sizes.values())) == 4
    return sizes


def load(tmp_path: Path, images: Iterable[str]) -> Annotations:
    names = list(images)
    x1, y1, x2, y2 = BOX
    boxes = [
        (5 * n, 2 if n else 4, [x1, y1, x2 - x1, y2 - y1]) for n, name in enumerate(names) if name != "empty.png"
    ]
    files = {5 * n: name for n, name in enumerate(names)}
    return Annotations.load(write_coco(tmp_path / "annotations.json", files, boxes, NAMES))


def box(index: int, score: float = 0.9) -> Detections:
    return Detections.from_slots(1, [BOX], [score], [index])


def run(oracle: Oracle, tmp_path: Path, names: Iterable[str]) -> Report:
    return evaluate_detector(oracle, load(tmp_path, names), tmp_path / "images")


NAMES_IN_ORDER = ("a.png", "b.png", "c.png", "empty.png")


def perfect(images: dict[str, int]) -> dict[int, Detections | ImageError]:
    answers: dict[int, Detections | ImageError] = {images[name]: box(1) for name in NAMES_IN_ORDER}
    return {**answers, images["a.png"]: box(0), images["empty.png"]: Detections.none()}


def test_perfect_answers_score_one(tmp_path: Path, images: dict[str, int]) -> None:
    report = run(Oracle(perfect(images)), tmp_path, NAMES_IN_ORDER)
    assert report.scores.ap == pytest.approx(1) and report.errors == {}
    assert report.warning == (
        "classes the file does not have, left out: dragon; "
        "categories the detector does not know, never found: never there"
    )
    assert report.to_dict()["images"] == 4 and report.to_dict()["scores"]["ap50"] == pytest.approx(1)
    assert json.loads(json.dumps(report.to_dict()))["failed"] == []


def test_a_failed_picture_lowers_the_score_and_is_named(tmp_path: Path, images: dict[str, int]) -> None:
    answers = {**perfect(images), images["b.png"]: ImageError("corrupt")}
    report = run(Oracle(answers), tmp_path, NAMES_IN_ORDER)
    # crate: all found. ball: one of two, which 51 of the 101 recall points reach.
    assert report.scores.ap == pytest.approx((1 + 51 / 101) / 2)
    (failed,) = report.to_dict()["failed"]
    assert (Path(failed["file"]).name, failed["message"], failed["kind"]) == ("b.png", "corrupt", "bad_image")


def test_the_table_names_every_number_and_class(tmp_path: Path, images: dict[str, int]) -> None:
    table = run(Oracle(perfect(images)), tmp_path, NAMES_IN_ORDER).table().splitlines()
    rows = {line.split()[0]: line.split()[1] for line in table[:12]}
    assert rows["ap"] == rows["ap50"] == rows["ar_100"] == "1.000"
    assert rows["ap_small"] == "-", "nothing in the file is small"
    assert [line.split() for line in table[13:16]] == [
        ["class", "instances", "detections", "ap", "ap50", "ar"],
        ["ball", "2", "2", "1.000", "1.000", "1.000"],
        ["crate", "1", "1", "1.000", "1.000", "1.000"],
    ]
    assert table[16] == "and 1 more without instances or detections"


@pytest.mark.parametrize("count", [0, 4], ids=["nothing found", "all found"])
def test_pictures_are_written(tmp_path: Path, images: dict[str, int], count: int) -> None:
    none = dict.fromkeys(images.values(), Detections.none())
    report = run(Oracle(perfect(images) if count else none), tmp_path, NAMES_IN_ORDER)
    report.write_images(tmp_path / "report")
    with Image.open(tmp_path / "report" / "contact_sheet.jpg") as sheet:
        assert sheet.width > 4 * 400 and sheet.height > 2 * 300  # four pairs, two in a row
    with Image.open(tmp_path / "report" / "curves.png") as curves:
        assert np.asarray(curves.convert("L")).std() > 5
    results = json.loads((tmp_path / "report" / "detections.json").read_text())
    assert len(results) == (3 if count else 0)


def test_truth_and_detection_of_a_class_have_one_colour(tmp_path: Path, images: dict[str, int]) -> None:
    from retinaserve.training.images.draw import colour_of

    answers = perfect(images)
    answers[images["empty.png"]] = box(2)  # a dragon, which the file does not know: a colour of its own
    sheet = np.asarray(run(Oracle(answers), tmp_path, NAMES_IN_ORDER).sheet())
    crate, dragon = colour_of(1), colour_of(3)
    half = sheet.shape[1] // 4
    for part in (sheet[: sheet.shape[0] // 2, :half], sheet[: sheet.shape[0] // 2, half : 2 * half]):
        assert (part == crate).all(axis=2).sum() > 300, "a.png, labelled and found"
    last = sheet[sheet.shape[0] // 2 :]
    assert (last == dragon).all(axis=2).sum() > 300


MISSING: dict[str, tuple[tuple[str, ...], str]] = {
    "no pictures": ((), "there are no images"),
    "some are gone": (("a.png", "gone.png", "lost.png"), "2 of the 3 images named in .* are not in"),
}


@pytest.mark.parametrize("case", MISSING)
def test_missing_pictures_are_named_before_anything_is_asked(
    case: str, tmp_path: Path, images: dict[str, int]
) -> None:
    names, message = MISSING[case]
    with pytest.raises(UserError, match=message) as caught:
        run(Oracle({}), tmp_path, names)
    assert case != "some are gone" or "gone.png, lost.png" in caught.value.hint


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="images: no such directory"):
        run(Oracle({}), tmp_path, ["a.png"])


def test_an_unreadable_file_is_an_error_of_its_own(tmp_path: Path, images: dict[str, int]) -> None:
    class Thief(Oracle):
        """Removes a file after the check that all are there."""

        def predict_many(self, images: Iterable[bytes | ImageError]) -> Iterator[Any]:
            (tmp_path / "images" / "c.png").unlink()
            yield from super().predict_many(images)

    report = run(Thief(perfect(images)), tmp_path, NAMES_IN_ORDER)
    assert report.errors[10].message == "the file can't be read: No such file or directory"


def test_judging_holds_no_pictures(tmp_path: Path) -> None:
    """What is kept of a picture is its answer: a hundred files of a megabyte take no more memory than a few."""
    (tmp_path / "images").mkdir()
    names = [f"{number}.bin" for number in range(100)]
    for name in names:
        with (tmp_path / "images" / name).open("wb") as file:
            file.truncate(2**20)  # a hole: nothing on disk, a megabyte when read
    tracemalloc.start()
    report = run(Oracle({2**20: box(0)}), tmp_path, names)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert report.scores.images == 100 and peak < 10 * 2**20
