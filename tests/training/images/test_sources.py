from pathlib import Path

import pytest

from retinaserve.training.errors import UserError
from retinaserve.training.images.sources import find_images, spread

TREE = ("2.jpg", "10.JPG", "1.png", "notes.txt", "sub dir/Ünïcode 図.webp", "sub dir/deep/a[1].tiff")


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in TREE:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "looks like.jpg").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


FOUND = {
    "a file": (["2.jpg"], ["2.jpg"]),
    "a file that is no image by its name": (["notes.txt"], ["notes.txt"]),
    "a file with brackets in its name": (["sub dir/deep/a[1].tiff"], ["sub dir/deep/a[1].tiff"]),
    "a directory, with all below it": (
        ["."],
        ["1.png", "2.jpg", "10.JPG", "sub dir/deep/a[1].tiff", "sub dir/Ünïcode 図.webp"],
    ),
    "a pattern": (["*.jp*"], ["2.jpg"]),
    "a pattern with both cases": (["*.[jJ][pP][gG]"], ["2.jpg", "10.JPG"]),
    "a pattern through directories": (["**/*.[pt]*"], ["1.png", "sub dir/deep/a[1].tiff"]),
    "each once, in the order given": (["2.jpg", "1.png", "2.jpg", "*.png"], ["2.jpg", "1.png"]),
}


@pytest.mark.parametrize("case", FOUND)
def test_places_become_images_in_natural_order(case: str, tree: Path) -> None:
    places, expected = FOUND[case]
    assert [path.as_posix() for path in find_images(places)] == expected


REFUSED = {
    "nothing": ([], "no images are given"),
    "a directory without images": (["empty"], "empty: no images in this directory"),
    "a pattern without images": (["*.txt"], r"\*\.txt: the pattern matches no images"),
    "a name with a slip": (["2.jgp"], r"2\.jgp: no such file or directory"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_place_without_images_is_named(case: str, tree: Path) -> None:
    places, message = REFUSED[case]
    with pytest.raises(UserError, match=message):
        find_images(places)


def test_a_link_in_a_circle_ends(tree: Path) -> None:
    (tree / "sub dir" / "back").symlink_to(tree)
    assert len(find_images(["."])) == 5


@pytest.mark.parametrize(
    ("count", "most", "expected"),
    [(0, 3, []), (2, 3, [0, 1]), (3, 3, [0, 1, 2]), (10, 3, [0, 3, 6]), (10, 1, [0]), (9, 2, [0, 4])],
)
def test_what_is_chosen_is_spread_evenly(count: int, most: int, expected: list[int]) -> None:
    assert spread(range(count), most) == expected


def test_what_a_folder_holds_besides_images_is_told(tree: Path) -> None:
    told: list[str] = []
    (tree / "a.JFIF").touch()
    (tree / "b.heic").touch()
    (tree / "more.txt").touch()
    (tree / "LICENSE").touch()
    found = find_images([tree], left_out=told.append)
    assert {"a.JFIF", "b.heic"} <= {path.name for path in found}
    assert told == ["files left out, by their names no images: 2 .txt, 1 without a suffix"]
    find_images(["*.txt", "2.jpg"][1:], left_out=told.append)
    assert len(told) == 1, "a file that is named is never left out"
