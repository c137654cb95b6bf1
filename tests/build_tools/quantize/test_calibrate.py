import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from retinaserve.build_tools.preprocess import Preprocessor
from retinaserve.build_tools.quantize.calibrate import Drawn, Int8Options, draw, image_files
from retinaserve.training.errors import UserError
from tests.images import bad_images, checker, encode
from tests.toys import toy_spec

COUNT = 40


def drawn(source: Path, count: int, seed: int = 0) -> Drawn:
    return draw(toy_spec(), Int8Options(source, count=count, seed=seed))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of two kinds in two folders, so that the first files of the set are of one kind."""
    root = tmp_path_factory.mktemp("pictures")
    for number in range(COUNT):
        place = root / ("a" if number < COUNT // 2 else "b")
        place.mkdir(exist_ok=True)
        (place / f"{number:03}.jpg").write_bytes(encode(checker(60 + number, 50, seed=number)))
    (root / "notes.txt").write_text("not a picture")
    return root


def test_a_draw_is_from_the_whole_set_and_repeats(folder: Path) -> None:
    first, again, other = (drawn(folder, 12, seed) for seed in (3, 3, 4))
    names = list(first.files)
    assert len(set(names)) == 12 and first.available == COUNT
    assert {name[0] for name in names} == {"a", "b"}
    assert names == list(again.files) and first.digest == again.digest
    assert first.digest != other.digest


def test_the_draw_does_not_depend_on_where_the_set_lies(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "elsewhere")
    assert drawn(copy, 9).digest == drawn(folder, 9).digest


def test_fewer_than_asked_for_are_all(folder: Path) -> None:
    assert len(drawn(folder, 10 * COUNT).files) == COUNT


def test_images_are_what_the_server_sees(folder: Path) -> None:
    spec = toy_spec()
    found = drawn(folder, 5)
    encoded = [(folder / name).read_bytes() for name in found.files]
    for image, prepared in zip(found.images, Preprocessor(spec.size, spec.pad_value).run(encoded), strict=True):
        np.testing.assert_array_equal(image, prepared.image)


def test_the_unreadable_are_named_and_replaced(folder: Path, tmp_path: Path) -> None:
    mixed = shutil.copytree(folder, tmp_path / "mixed")
    for number, (data, _) in enumerate(bad_images().values()):
        (mixed / f"bad {number}.jpg").write_bytes(data)
    found = drawn(mixed, COUNT)
    assert len(found.files) == COUNT
    record = found.record()
    assert record["count"] == COUNT and record["sha256"] == found.digest
    assert {item["file"] for item in record["unreadable"]} <= {f"bad {n}.jpg" for n in range(len(bad_images()))}
    assert record["unreadable"] and all(item["reason"] for item in record["unreadable"])
    assert not any("bad" in item["file"] for item in record["images"])


def test_a_set_without_a_readable_image_is_refused(tmp_path: Path) -> None:
    for number, (data, _) in enumerate(bad_images().values()):
        (tmp_path / f"{number}.jpg").write_bytes(data)
    with pytest.raises(UserError, match=f"none of its {len(bad_images())} images can be read"):
        drawn(tmp_path, 5)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no such folder or file"),
        ("{}", "no list of images"),
        ("[1", "not JSON"),
        ('{"images": []}', "there are no images"),
        ('{"images": [{"file_name": "gone.jpg"}]}', "none of the 1 images it names is there"),
    ],
    ids=["missing", "no list", "no JSON", "empty", "images gone"],
)
def test_a_json_that_names_nothing_is_refused(tmp_path: Path, content: str | None, words: str) -> None:
    source = tmp_path / "annotations" / "train.json"
    if content is not None:
        source.parent.mkdir()
        source.write_text(content)
    with pytest.raises(UserError, match=words):
        drawn(source, 5)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError, match="no images to calibrate with"):
        image_files(tmp_path)


@pytest.mark.parametrize("place", [".", "images", "../images"])
def test_images_of_a_json_are_found(folder: Path, tmp_path: Path, place: str) -> None:
    source = tmp_path / "annotations" / "train.json"
    source.parent.mkdir()
    names = ["a/003.jpg", "b/030.jpg"]
    source.write_text(json.dumps({"images": [{"file_name": name} for name in names]}))
    shutil.copytree(folder, source.parent / place, dirs_exist_ok=True)
    found = drawn(source, 5)
    assert sorted(found.files) == names
