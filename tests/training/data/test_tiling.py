"""Cutting a labelled set, by hand."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from retinaserve.training.data.dataset import CocoDataset
from retinaserve.training.data.tiling import Cut, suitable_tile, tile_dataset
from retinaserve.training.errors import UserError
from retinaserve.training.spec import DetectorSpec
from tests.coco import write_coco
from tests.images import checker

# Tiles of 100 without overlap. Boxes: whole in the first; 60 % in the first and 40 % in the second; a crowd in the
# third; a quarter in each of the four.
BOXES = [[10, 10, 20, 20], [70, 40, 50, 10], [20, 150, 40, 30], [90, 90, 20, 20]]


@pytest.fixture
def labelled(tmp_path: Path) -> CocoDataset:
    checker(200, 200).save(tmp_path / "a.png")
    Image.new("RGB", (200, 100)).save(tmp_path / "b.png")
    rows = [(5, 3, box, {"area": 1, "iscrowd": int(n == 3)}) for n, box in enumerate(BOXES, 1)]
    return CocoDataset(tmp_path, write_coco(tmp_path / "a.json", {5: "a.png", 6: "b.png"}, rows, {3: "disc"}))


def cut(dataset: CocoDataset, folder: Path, **options: float) -> dict[str, list[list[float]]]:
    """Return the boxes of each tile by its file."""
    written = CocoDataset(
        folder / "images", tile_dataset(dataset, folder, Cut((100, 100), **{"overlap": 0, **options}))
    )
    return {labels.path.name: labels.boxes.tolist() for labels in written.labels}


def test_boxes_are_clipped_where_enough_is_seen(labelled: CocoDataset, tmp_path: Path) -> None:
    assert cut(labelled, tmp_path / "half", empty=0) == {
        "5_a_0_0.png": [[10, 10, 30, 30], [70, 40, 100, 50]],
        "5_a_0_100.png": [[20, 50, 60, 80]],
    }
    quarter = cut(labelled, tmp_path / "quarter", visible=0.25, empty=0)
    assert quarter["5_a_100_0.png"] == [[0, 40, 20, 50], [0, 90, 10, 100]]
    assert quarter["5_a_100_100.png"] == [[0, 0, 10, 10]]
    truth = json.loads((tmp_path / "half" / "annotations.json").read_text())
    assert [row["iscrowd"] for row in truth["annotations"]] == [0, 0, 1]
    assert [row["area"] for row in truth["annotations"]] == [400, 300, 1200]
    whole = np.asarray(Image.open(labelled.labels[0].path).convert("RGB"))
    with Image.open(tmp_path / "half" / "images" / "5_a_0_100.png") as tile:
        assert np.array_equal(np.asarray(tile), whole[100:, :100])


def test_empty_tiles_are_few(labelled: CocoDataset, tmp_path: Path) -> None:
    some = cut(labelled, tmp_path / "some", empty=1)
    assert len(some) == 5, "two with boxes and two without, and one of the image without any"
    assert sum(not boxes for boxes in some.values()) == 3


def test_a_set_is_cut_once(labelled: CocoDataset, tmp_path: Path) -> None:
    calls: list[int] = []
    for options in (Cut((100, 100)), Cut((100, 100)), Cut((100, 64))):
        tile_dataset(labelled, tmp_path / "tiles", options, on_image=lambda: calls.append(1))
    assert len(calls) == 2 * len(labelled)


def test_a_suitable_tile(labelled: CocoDataset, tmp_path: Path) -> None:
    # Sides of the boxes that are no crowds: 20, 20, and the root of 500, 22.4; the tenth percentile is 20.
    assert suitable_tile(labelled, size=(256, 512), anchor=20) == (256, 512)
    assert suitable_tile(labelled, size=(256, 512), anchor=40) == (128, 256)
    assert suitable_tile(labelled, size=(256, 512), anchor=400) == (48, 88), "twice the ninetieth percentile, 21.9"
    labelled.labels[0].crowd[:] = True
    with pytest.raises(UserError, match="no boxes"):
        suitable_tile(labelled, size=(256, 512), anchor=20)


def test_the_spec_remembers_the_tile() -> None:
    plain, tiled = (DetectorSpec.create(["a"], tile=tile) for tile in (None, (320, 480)))
    assert "tile" not in json.loads(plain.to_json()), "earlier versions read it"
    assert DetectorSpec.from_json(tiled.to_json()).tile == (320, 480)
