import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from retinaserve.training.check.snapshot import ImageFile, Split, read_split
from retinaserve.training.coco import Annotations
from retinaserve.training.data.split import Parts, deal, key_of, near_pairs, split
from tests.cli import invoke
from tests.coco import write_coco
from tests.images import encode
from tests.training.test_check import smooth_noise

SHARES = {"train": 0.7, "val": 0.2, "test": 0.1}


def data_set(count: int, *, seed: int = 0) -> Split:
    """Images of which every fifth is almost the one before it; three classes, one of them rare."""
    rng = np.random.default_rng(seed)
    files, boxes, look = {}, [], 0
    for number in range(count):
        if number % 5:
            look = int.from_bytes(rng.bytes(64), "big")
        else:
            for bit in rng.choice(512, 8, replace=False):
                look ^= 1 << int(bit)
        files[100 + number] = ImageFile(True, size=(50, 50), digest=str(number), look=look)
        kinds = {int(kind) for kind in rng.choice(3, rng.integers(0, 4), p=[0.6, 0.35, 0.05])}
        boxes += [{"image_id": 100 + number, "category_id": kind, "iscrowd": 0} for kind in sorted(kinds)]
    names = {image_id: f"scene{image_id // 7}/{image_id}.jpg" for image_id in files}
    labels = Annotations(Path("a.json"), names, {0: "a", 1: "b", 2: "rare"}, tuple(boxes))
    return Split("all", labels.path, labels=labels, files=files)


def part_of(parts: Parts) -> dict[int, str]:
    return {image_id: name for name, ids in parts.images.items() for image_id in ids}


@pytest.mark.parametrize("most", [0, 3, 12, 20])
def test_near_pairs_are_those_of_comparing_all(most: int) -> None:
    rng = np.random.default_rng(most)
    looks = [rng.integers(0, 256, 64, np.uint8) for _ in range(30)]
    for source, differs in itertools.product(range(10), (0, 1, most, most + 1)):
        bits = np.unpackbits(looks[source])
        bits[rng.choice(512, differs, replace=False)] ^= 1
        looks.append(np.packbits(bits))
    expected = []
    for (one, look), (other, second) in itertools.combinations(enumerate(looks), 2):
        differs = int((np.unpackbits(look) != np.unpackbits(second)).sum())
        if differs <= most:
            expected.append((one, other, differs))
    assert near_pairs(dict(enumerate(looks)), most) == expected and len(expected) > 10


def test_look_alikes_are_never_parted_and_the_shares_are_kept() -> None:
    data = data_set(400)
    parts = split(data, SHARES, seed=3)
    where = part_of(parts)
    assert where.keys() == data.files.keys()
    for (one, file), (other, second) in itertools.combinations(data.files.items(), 2):
        assert file.look is not None and second.look is not None
        if (file.look ^ second.look).bit_count() <= 12:
            assert where[one] == where[other]
    # Images 4 and 5, 9 and 10 and so on.
    assert parts.groups == 79 and parts.grouped == 158 and parts.torn > 20
    sizes = Counter(where.values())
    assert {name: sizes[name] / 400 for name in SHARES} == pytest.approx(SHARES, abs=0.02)
    rare = Counter(where[box["image_id"]] for box in data.labels.boxes if box["category_id"] == 2)
    assert {name: rare[name] / rare.total() for name in SHARES} == pytest.approx(SHARES, abs=0.05)


def test_a_seed_deals_the_same_and_another_otherwise() -> None:
    data = data_set(100)
    assert split(data, SHARES, seed=1) == split(data, SHARES, seed=1)
    assert split(data, SHARES, seed=1) != split(data, SHARES, seed=2)


KEYS = {
    "folder": ("folder", {"a/1.jpg": "a", "a/b/2.jpg": "a/b", "3.jpg": None}),
    "a match": (r"patient\d+", {"x/patient12_3.jpg": "patient12", "other.jpg": None}),
    "a group": (r"_(\d+)_", {"cam_7_001.jpg": "7", "cam_7_002.jpg": "7"}),
    "nothing": (None, {"a.jpg": None}),
}


@pytest.mark.parametrize("case", KEYS)
def test_keys_of_names(case: str) -> None:
    pattern, expected = KEYS[case]
    assert {name: key_of(pattern)(name) for name in expected} == expected


def test_what_has_one_key_stays_together() -> None:
    data = data_set(140)
    where = part_of(split(data, SHARES, key=key_of("folder")))
    scenes = {(name.split("/")[0], where[image_id]) for image_id, name in data.labels.images.items()}
    scenes_of = {scene for scene, _ in scenes}
    assert len(scenes_of) > 15 and len(scenes) < len(data.files)
    for scene in scenes_of:  # neighbouring scenes may hang together by a look-alike
        assert len({part for other, part in scenes if other == scene}) == 1


def test_nothing_and_one_group_are_dealt() -> None:
    assert deal([], {}, [0.8, 0.2], 0) == []
    assert deal([[0, 1, 2]], {0: {1}}, [0.8, 0.2], 0) == [0]


def test_the_verb_writes_files_that_check_finds_no_leak_in(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for number in range(24):
        picture = smooth_noise(number // 2)  # two of each: the same image, encoded twice
        (images / f"{number}.jpg").write_bytes(encode(picture, quality=90 - 20 * (number % 2)))
    names, boxes = {n: f"{n}.jpg" for n in range(24)}, [(n, 1 + n // 2 % 2, [5, 5, 20, 20]) for n in range(24)]
    labels = write_coco(tmp_path / "labels.json", names, boxes, {1: "a", 2: "b"})
    words = ["data", "split", str(labels), str(tmp_path / "parts"), "--images", str(images), "--val", "0.25"]
    result = invoke(*words)
    assert result.exit_code == 0, result.output
    assert "24 images in 12 groups" in result.stdout
    train, val = (read_split(name, images, tmp_path / "parts" / f"{name}.json") for name in ("train", "val"))
    assert (len(train.files), len(val.files)) == (18, 6) and not train.problem
    for one, other in itertools.product(train.files.values(), val.files.values()):
        assert one.look is not None and other.look is not None and (one.look ^ other.look).bit_count() > 12
    again = invoke(*words[:2], tmp_path / "parts" / "train.json", *words[3:])
    assert again.exit_code == 2 and "train.json would be overwritten" in again.output
    (images / "3.jpg").unlink()
    gone = invoke(*words)
    assert gone.exit_code == 3 and "1 of 24 images can't be read: 3.jpg" in gone.output
    wrong = invoke(*words, "--group", "(")
    assert wrong.exit_code == 2 and "--group (" in wrong.output
