import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image, ImageOps

from retinaserve.scripts.cli.learn.data import data
from retinaserve.scripts.shapes.draw import CATEGORIES, DataSet, Kind, draw_dataset, draw_shape, outline
from retinaserve.training.errors import UserError


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    return draw_dataset(tmp_path_factory.mktemp("shapes"), images=120, seed=3)


def digests(directory: Path) -> dict[str, str]:
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_no_images_are_a_set_all_the_same(tmp_path: Path) -> None:
    written = draw_dataset(tmp_path, images=0, seed=0)
    coco = json.loads(written.annotations.read_text())
    assert (coco["images"], coco["annotations"], written.box_count) == ([], [], 0)
    assert [category["id"] for category in coco["categories"]] == [1, 2, 3, 5, 8, 13]


def test_a_seed_fixes_every_byte(tmp_path: Path) -> None:
    for name, seed in (("first", 5), ("again", 5), ("other", 6)):
        draw_dataset(tmp_path / name, images=12, seed=seed)
    assert digests(tmp_path / "first") == digests(tmp_path / "again")
    first, other = digests(tmp_path / "first"), digests(tmp_path / "other")
    assert not set(first.values()) & set(other.values())


def test_small_shapes_have_boxes_by_their_class(tmp_path: Path) -> None:
    coco = json.loads(draw_dataset(tmp_path, images=8, seed=2, small=True).annotations.read_text())
    assert {(image["width"], image["height"]) for image in coco["images"]} == {(320, 240)}
    classes = {category["id"] for category in coco["categories"]}
    assert classes == {CATEGORIES[name] for name in ("ellipse", "triangle", "star", "cross")}
    assert {box["category_id"] for box in coco["annotations"]} == classes
    longest = [max(box["bbox"][2:]) for box in coco["annotations"]]
    assert 8 * 3 < len(longest) < 8 * 21 and max(longest) <= 28.1 and min(longest) < 16


def test_a_larger_set_begins_with_the_smaller(tmp_path: Path) -> None:
    small, large = tmp_path / "small", tmp_path / "large"
    draw_dataset(small, images=4, seed=1)
    draw_dataset(large, images=8, seed=1)
    assert digests(small / "images").items() <= digests(large / "images").items()


def test_images_are_as_the_annotations_say(drawn: DataSet) -> None:
    coco = json.loads(drawn.annotations.read_text())
    assert {path.name for path in drawn.images.iterdir()} == {image["file_name"] for image in coco["images"]}
    sizes = {}
    for entry in coco["images"]:
        sizes[entry["id"]] = entry["width"], entry["height"]
        with Image.open(drawn.images / entry["file_name"]) as image:
            assert ImageOps.exif_transpose(image).size == sizes[entry["id"]]
        assert 200 <= max(sizes[entry["id"]]) <= 640
    for annotation in coco["annotations"]:
        x, y, w, h = annotation["bbox"]
        width, height = sizes[annotation["image_id"]]
        assert 0 <= x < x + w <= width + 0.01 and 0 <= y < y + h <= height + 0.01
        assert 0 < annotation["area"] <= (w + 1) * (h + 1)
        assert annotation["iscrowd"] == 0
    ids = [annotation["id"] for annotation in coco["annotations"]]
    assert ids == list(range(1, drawn.box_count + 1))


def test_pycocotools_reads_it(drawn: DataSet, capsys: pytest.CaptureFixture[str]) -> None:
    from pycocotools.coco import COCO

    coco = COCO(str(drawn.annotations))
    assert len(coco.getImgIds()) == 120 and len(coco.getAnnIds()) == drawn.box_count


def test_the_set_is_varied(drawn: DataSet) -> None:
    coco = json.loads(drawn.annotations.read_text())
    assert {annotation["category_id"] for annotation in coco["annotations"]} == set(CATEGORIES.values())
    assert len(coco["images"]) > len({annotation["image_id"] for annotation in coco["annotations"]}), "none empty"
    ratios = [image["width"] / image["height"] for image in coco["images"]]
    assert min(ratios) < 0.7 and max(ratios) > 1.4
    modes, orientations, suffixes = set(), set(), set()
    for entry in coco["images"]:
        with Image.open(drawn.images / entry["file_name"]) as image:
            modes.add(image.mode)
            suffixes.add(Path(entry["file_name"]).suffix)
            orientations.add(image.getexif().get(0x0112, 1))
    assert modes == {"L", "RGB"} and suffixes == {".jpg", ".png"}
    assert 1 in orientations and len(orientations) > 2
    sides = [max(annotation["bbox"][2:]) for annotation in coco["annotations"]]
    assert min(sides) < 40 and max(sides) > 200


def test_boxes_are_tight() -> None:
    # On black, the pixels that changed are the shape; cut by the border or not, its box ends where they end, but
    # for the last pixels of a sharp tip, which are hardly coloured.
    cut = 0
    for index in range(60):
        canvas, owners = Image.new("RGB", (320, 240)), np.zeros((240, 320), np.uint8)
        _, (x, y, w, h), total = draw_shape(canvas, owners, 1, (0, 0, 0), np.random.default_rng(index), Kind())
        ys, xs = np.nonzero(owners)
        changed = (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
        assert (x, y, x + w, y + h) == pytest.approx(changed, abs=3)
        assert canvas.getbbox() == pytest.approx((x, y, x + w, y + h), abs=3)
        cut += len(xs) < total
    assert 0 < cut < 60


@pytest.mark.parametrize("category", list(CATEGORIES))
def test_outlines_lie_within_the_unit_circle_and_reach_it(category: str) -> None:
    points = outline(category, np.random.default_rng(0))
    radii = np.hypot(points[:, 0], points[:, 1])
    assert radii.max() == pytest.approx(1) and len(points) >= 3


@pytest.mark.parametrize(
    ("category", "area"), [("ellipse", np.pi), ("rectangle", 2.0), ("triangle", 3 * 3**0.5 / 4)]
)
def test_outlines_have_the_area_of_geometry(category: str, area: float) -> None:
    x, y = outline(category, np.random.default_rng(0)).T
    shoelace = abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2
    assert shoelace == pytest.approx(area, rel=0.002)


def test_the_command_draws_both_parts_and_names_the_next(tmp_path: Path) -> None:
    target = tmp_path / "set"
    result = CliRunner().invoke(data, ["shapes", str(target), "--train", "3", "--val", "2"])
    assert result.exit_code == 0, result.output
    assert f"{target}/train/annotations.json: 3 images" in result.stdout
    assert f"{target}/val/annotations.json: 2 images" in result.stdout
    assert "next: retinaserve train" in result.stderr
    train, val = digests(target / "train" / "images"), digests(target / "val" / "images")
    assert not set(train.values()) & set(val.values())


def test_the_command_draws_over_nothing_unasked(tmp_path: Path) -> None:
    (tmp_path / "keep.txt").write_text("mine")
    arguments = ["shapes", str(tmp_path), "--train", "1", "--val", "1"]
    refused = CliRunner().invoke(data, arguments)
    assert isinstance(refused.exception, UserError)
    assert str(refused.exception) == f"{tmp_path} is not empty\nname a new directory, or draw into it with --force"
    assert CliRunner().invoke(data, [*arguments, "--force"]).exit_code == 0
    assert (tmp_path / "keep.txt").read_text() == "mine"


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "images").write_text("")
    with pytest.raises(UserError, match="images: File exists"):
        draw_dataset(tmp_path, images=1, seed=0)
