import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from retinaserve.scripts.cli.learn.data import data
from retinaserve.scripts.cli.learn.train import train
from retinaserve.training.check.checks import check_content, check_data, preflight
from retinaserve.training.check.findings import CODES, REFUSED, Report, refuse_errors
from retinaserve.training.check.snapshot import ImageFile, Split, read_split
from retinaserve.training.coco import Annotations
from retinaserve.training.errors import UserError
from tests.images import encode
from tests.training.pixels.known import exif, xmp
from tests.training.pixels.matrix import exif_segment, with_segments, xmp_segment

Coco = dict[str, Any]
SIZE = (80, 60)


def smooth_noise(seed: int, *, size: tuple[int, int] = SIZE) -> Image.Image:
    """Return smooth noise, which looks like no other seed's."""
    noise = np.random.default_rng(seed).integers(0, 256, (7, 9, 3)).astype(np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder without a fault: 6 images of 4 boxes a category."""
    folder = tmp_path_factory.mktemp("clean")
    for seed in range(6):
        smooth_noise(seed).save(folder / f"{seed}.jpg", quality=95)
    (folder / "train.json").write_text(json.dumps(coco()))
    return folder


def coco(first: int = 0, count: int = 6) -> Coco:
    names = range(first, first + count)
    boxes = [[10 * column + 2, 5 * row + 2, 20, 14] for column in range(2) for row in range(2)]
    return {
        "images": [{"id": n + 1, "file_name": f"{n}.jpg", "width": SIZE[0], "height": SIZE[1]} for n in names],
        "annotations": [
            {"id": 100 * n + 10 * category + place, "image_id": n + 1, "category_id": category, "bbox": box}
            for n in names
            for category in (1, 7)
            for place, box in enumerate(boxes)
        ],
        "categories": [{"id": 1, "name": "egg"}, {"id": 7, "name": "hen"}],
    }


def change(key: str, index: int, **fields: Any) -> Callable[[Coco, Path], None]:
    return lambda content, _: content[key][index].update(fields)


def remove(key: str, *fields: str) -> Callable[[Coco, Path], None]:
    return lambda content, _: [content[key][0].pop(field) for field in fields] and None


def add(key: str, *entries: Any) -> Callable[[Coco, Path], None]:
    return lambda content, _: content[key].extend(entries)


def boxes(convert: Callable[[float, float, float, float], list[Any]]) -> Callable[[Coco, Path], None]:
    def apply(content: Coco, _: Path) -> None:
        for entry in content["annotations"]:
            x, y, w, h = entry["bbox"]
            entry["bbox"] = convert(x + 30, y + 20, w, h)

    return apply


def file(name: str, data: bytes | None) -> Callable[[Coco, Path], None]:
    def apply(_: Coco, folder: Path) -> None:
        (folder / name).unlink() if data is None else (folder / name).write_bytes(data)

    return apply


def drop(key: str, of: Callable[[Any], bool]) -> Callable[[Coco, Path], None]:
    return lambda content, _: content.update({key: [each for each in content[key] if not of(each)]})


JPEG = encode(smooth_noise(0), quality=95)
BOX = {"image_id": 1, "category_id": 1}
# What is done to a clean set, and all that is to be found then, with counts.
OF_FORMATS = {  # which tests/training/formats has cases of
    *("category-unnamed", "image-ambiguous", "image-unlabelled", "image-unsized"),
    *("label-line", "label-overruled", "label-unused", "shape-skipped"),
}
MISTAKES: dict[str, tuple[Callable[[Coco, Path], None], dict[str, int]]] = {
    "nothing": (lambda content, folder: None, {}),
    "no categories": (lambda content, _: content.update(categories=[]), {"file-unreadable": 1}),
    "no images key": (lambda content, _: content.pop("images"), {"file-unreadable": 1}),
    "a missing file": (file("2.jpg", None), {"image-missing": 1}),
    "a cut file": (file("2.jpg", JPEG[: len(JPEG) // 2]), {"image-unreadable": 1}),
    "a text": (file("2.jpg", b"no image"), {"image-unreadable": 1}),
    "an empty file": (file("2.jpg", b""), {"image-unreadable": 1}),
    "half the size": (file("2.jpg", encode(smooth_noise(2, size=(40, 30)))), {"image-size": 1}),
    "listed height wrong": (change("images", 3, height=61), {"image-size": 1}),
    "no size listed": (remove("images", "width", "height"), {}),
    "turned by EXIF, listed unturned": (file("2.jpg", encode(smooth_noise(2), orientation=6)), {"image-exif": 1}),
    "XMP was left behind": (
        file("2.jpg", with_segments(encode(smooth_noise(2)), exif_segment(exif(1)), xmp_segment(xmp(6)))),
        {"image-orientation": 1},
    ),
    "a sensor of 12 bits": (
        file(
            "2.jpg",
            encode(Image.fromarray(np.asarray(smooth_noise(2).convert("L")).astype(np.uint16) * 16), "PNG"),
        ),
        {"image-range": 1},
    ),
    "a larger file than servers take": (
        file("2.jpg", encode(smooth_noise(2), "PNG") + bytes(33 << 20)),
        {"image-limits": 1},
    ),
    "id is a string": (change("images", 0, id="1"), {"value-text": 1}),
    "id is a fraction": (change("images", 0, id=1.5), {"image-entry": 1, "annotation-image": 8}),
    "id is missing": (remove("images", "id"), {"image-entry": 1, "annotation-image": 8}),
    "no file name": (change("images", 0, file_name=None), {"image-entry": 1}),
    "an id twice": (change("images", 1, id=1), {"image-id-repeated": 1, "annotation-image": 8}),
    "an image twice": (add("images", coco()["images"][0]), {"image-id-repeated": 1}),
    "an image under two ids": (
        lambda content, _: (
            content["images"].append({**content["images"][0], "id": 9, "file_name": "./0.jpg"}),
            content["annotations"].extend(
                {**each, "id": 900 + each["id"], "image_id": 9} for each in content["annotations"][:8]
            ),
        ),
        {"image-file-repeated": 1},
    ),
    "an id for each half of the boxes": (
        lambda content, _: (
            content["images"].append({**content["images"][0], "id": 9}),
            [each.update(image_id=9) for each in content["annotations"][:4]],
        ),
        {"image-file-split": 1},
    ),
    "windows": (change("images", 0, file_name=".\\0.jpg"), {"image-name": 1}),
    "listed size 0": (change("images", 0, width=0, height=0), {"image-size-unknown": 1}),
    "listed size null": (change("images", 0, width=None, height=None), {}),
    "listed size as text": (change("images", 0, width="80"), {"value-text": 1}),
    "optional fields null": (change("annotations", 0, area=None, iscrowd=None, segmentation=None), {}),
    "iscrowd as text": (change("annotations", 0, iscrowd="0"), {"value-text": 1}),
    "iscrowd a word": (change("annotations", 0, iscrowd="maybe"), {"annotation-entry": 1}),
    "area 0": (change("annotations", 0, area=0), {"area-contradicts": 1}),
    "area of a thin shape": (change("annotations", 0, area=11), {}),
    "area beyond the box": (change("annotations", 0, area=400), {"area-contradicts": 1}),
    "one area for all": (
        lambda content, _: [
            each.update(area=100, bbox=[*each["bbox"][:2], 12 + each["id"] % 3, 14])
            for each in content["annotations"]
        ],
        {"area-contradicts": 48},
    ),
    "a polygon alone": (
        change("annotations", 0, bbox=None, segmentation=[[2, 2, 22, 2, 22, 16]]),
        {"box-derived": 1},
    ),
    "run lengths alone": (
        change("annotations", 0, bbox=[], segmentation={"size": [60, 80], "counts": [65, 10, 50, 10, 4665]}),
        {"box-derived": 1},
    ),
    "run lengths of another size": (
        change("annotations", 0, bbox=None, segmentation={"size": [60, 80], "counts": [65, 10]}),
        {"box-malformed": 1},
    ),
    "rotated": (change("annotations", 0, attributes={"rotation": 30}, bbox=[25, 25, 9, 9]), {"box-rotated": 1}),
    "turned whole": (change("annotations", 0, attributes={"rotation": 360.0}), {}),
    "drawn from the other corner": (change("annotations", 0, bbox=[22, 16, -20, -14]), {"box-flipped": 1}),
    "name with a line break": (change("categories", 0, name="egg\n"), {"category-name": 1}),
    "two copies": (
        lambda content, folder: [shutil.copy(folder / "0.jpg", folder / f"{n}.jpg") for n in (1, 2)],
        {"image-repeated": 1},
    ),
    "an unknown image": (change("annotations", 0, image_id=99), {"annotation-image": 1}),
    "an unknown category": (change("annotations", 0, category_id=2), {"annotation-category": 1}),
    "category as a string": (change("annotations", 0, category_id="1"), {"value-text": 1}),
    "an annotation that is a list": (add("annotations", [1, 2]), {"annotation-entry": 1}),
    "annotation ids twice": (change("annotations", 1, id=10), {"annotation-id-repeated": 1}),
    "category without a name": (add("categories", {"id": 3}), {"category-entry": 1}),
    "category name blank": (change("categories", 0, name=" "), {"category-entry": 1}),
    "category name twice": (change("categories", 1, name="egg"), {"category-repeated": 1}),
    "category id twice": (add("categories", {"id": 7, "name": "cow"}), {"category-repeated": 1}),
    "category by case": (change("categories", 1, name="Egg"), {"category-alike": 1}),
    "category unused": (add("categories", {"id": 3, "name": "fox"}), {"category-unused": 1}),
    "category rare": (
        drop("annotations", lambda each: each["category_id"] == 7 and each["image_id"] > 2),
        {"category-rare": 1},
    ),
    "three numbers": (change("annotations", 0, bbox=[1, 2, 3]), {"box-malformed": 1}),
    "not a number": (change("annotations", 0, bbox=[1, 2, float("nan"), 4]), {"box-malformed": 1}),
    "a number as text": (change("annotations", 0, bbox=["1", 2, 3, 4]), {"value-text": 1}),
    "a word for a number": (change("annotations", 0, bbox=["one", 2, 3, 4]), {"box-malformed": 1}),
    "no bbox": (remove("annotations", "bbox"), {"box-malformed": 1}),
    "no width": (change("annotations", 0, bbox=[5, 5, 0, 9]), {"box-degenerate": 1}),
    "thin": (change("annotations", 0, bbox=[5, 5, 1.5, 9]), {"box-tiny": 1}),
    "outside": (change("annotations", 0, bbox=[90, 5, 9, 9]), {"box-outside": 1}),
    "over the border": (change("annotations", 0, bbox=[70, 5, 20, 9]), {"box-overhang": 1}),
    "a pixel over the border": (change("annotations", 0, bbox=[61, 5, 20, 9]), {}),
    "corners": (boxes(lambda x, y, w, h: [x, y, x + w, y + h]), {"box-xyxy": 1}),
    "shares": (
        boxes(lambda x, y, w, h: [x / SIZE[0], y / SIZE[1], w / SIZE[0], h / SIZE[1]]),
        {"box-normalised": 1},
    ),
    "centres": (boxes(lambda x, y, w, h: [x + w / 2 + 20, y + h / 2 + 14, w, h]), {"box-centre": 1}),
    "a box twice": (change("annotations", 1, bbox=[2, 2, 20, 14]), {"box-repeated": 1}),
    "a crowd": (change("annotations", 0, iscrowd=1), {"crowd": 1}),
    "no boxes at all": (
        lambda content, _: content.update(annotations=[]),
        {"no-boxes": 1, "image-empty": 6, "category-unused": 2},
    ),
    "more boxes than a detector answers": (
        add(
            "annotations",
            *({"id": 5000 + n, **BOX, "bbox": [2 + n % 12 * 5.5, 2 + n // 12 * 5, 5, 4]} for n in range(101)),
        ),
        {"image-dense": 1},
    ),
    "an empty image": (drop("annotations", lambda each: each["image_id"] == 2), {"image-empty": 1}),
    "a hundred to one": (
        lambda content, _: content.update(
            annotations=[
                {**BOX, "id": n, "category_id": 7 if n == 0 else 1, "bbox": [n % 50, n // 50, 10, 10]}
                for n in range(120)
            ],
            images=content["images"][:1],
        ),
        {"category-rare": 1, "category-imbalance": 1, "image-dense": 1},
    ),
}


def checked(folder: Path) -> Report:
    return check_data(read_split("train", folder, folder / "train.json"))


@pytest.mark.parametrize("name", MISTAKES)
def test_every_mistake_is_found_and_nothing_else(tmp_path: Path, clean: Path, name: str) -> None:
    folder = Path(shutil.copytree(clean, tmp_path / "set"))
    mistake, expected = MISTAKES[name]
    content = coco()
    mistake(content, folder)
    (folder / "train.json").write_text(json.dumps(content))
    report = checked(folder)
    assert {finding.code: finding.count for finding in report.findings} == expected
    for finding in report.findings:
        assert 0 < len(finding.examples) <= 5 and finding.remedy and finding.split == "train"
    ranks = [("error", "warning", "note").index(finding.severity) for finding in report.findings]
    assert ranks == sorted(ranks)


def between(folder: Path, val: Coco) -> dict[str, int]:
    (folder / "val.json").write_text(json.dumps(val))
    train = read_split("train", folder, folder / "train.json")
    report = check_data(train, read_split("val", folder, folder / "val.json"))
    return {finding.code: finding.count for finding in report.findings if finding.split == "train, val"}


def test_splits_are_held_together(tmp_path: Path, clean: Path) -> None:
    folder = Path(shutil.copytree(clean, tmp_path / "set"))
    for seed in (10, 11, 12):
        smooth_noise(seed).save(folder / f"{seed}.jpg", quality=95)
    assert between(folder, coco(10, 3)) == {}
    assert between(folder, coco(10, 6)) == {}
    assert between(folder, coco(10, 7)) == {"split-larger": 1}
    shutil.copy(folder / "4.jpg", folder / "11.jpg")
    smooth_noise(5).save(folder / "12.jpg", quality=60)
    assert between(folder, coco(10, 3)) == {"split-leak": 1, "split-similar": 1}
    other = coco(10, 1)
    other["categories"][0]["name"] = "fox"
    other["categories"].append({"id": 9, "name": "cow"})
    other["annotations"][0]["category_id"] = 9
    assert between(folder, other) == {"split-categories": 1, "split-unseen": 2}
    for entry in other["categories"]:
        entry["name"] += " of the moon"
    assert between(folder, other) == {"split-disjoint": 1}


def test_the_same_file_twice_is_a_warning(clean: Path) -> None:
    split = read_split("train", clean, clean / "train.json")
    report = check_data(split, read_split("val", clean, clean / "train.json"))
    assert [finding.code for finding in report.findings] == ["split-same"] and not report.errors


def test_every_code_has_a_case_and_every_error_a_line_in_the_docs() -> None:
    covered = {code for _, expected in MISTAKES.values() for code in expected}
    between_splits = {code for code in CODES if code.startswith("split-")}
    assert covered | between_splits | OF_FORMATS == set(CODES)
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    text, table = page.split("## What data check finds")[1].split("| error |")
    errors = {code for code, known in CODES.items() if known.severity == "error"}
    assert set(re.findall(r"`([a-z]+-[a-z-]+)`", table)) == errors
    assert all(f"`{code}`" in text for code in errors if CODES[code].scoring != REFUSED)


def test_the_command_writes_json_and_exits_with_3(tmp_path: Path, clean: Path) -> None:
    content = coco()
    content["images"][0]["file_name"] = "none.jpg"
    (tmp_path / "bad.json").write_text(json.dumps(content))
    flags = ["check", "--images", str(clean), "--json", str(tmp_path / "new" / "report.json"), "--annotations"]
    good = CliRunner().invoke(data, [*flags, str(clean / "train.json")])
    assert good.exit_code == 0 and "kinds of errors: 0" in good.stdout and "next: retinaserve train" in good.stderr
    bad = CliRunner().invoke(data, [*flags, str(tmp_path / "bad.json")])
    assert bad.exit_code == 3 and "image-missing" in bad.stdout
    report = json.loads((tmp_path / "new" / "report.json").read_text())
    assert (report["errors"], report["warnings"], report["splits"][0]["images"]) == (1, 0, 6)
    assert report["splits"][0]["boxes_per_category"] == {"egg": 24, "hen": 24}
    (finding,) = report["findings"]
    assert (finding["code"], finding["count"], finding["examples"]) == ("image-missing", 1, ["none.jpg"])
    none = CliRunner().invoke(data, [*flags, str(tmp_path / "none.json")])
    assert none.exit_code == 3 and "no such file" in none.stdout


def test_training_is_refused_in_one_line(tmp_path: Path, clean: Path) -> None:
    content = coco()
    boxes(lambda x, y, w, h: [x, y, x + w, y + h])(content, clean)
    content["images"][0]["file_name"] = "none.jpg"
    (tmp_path / "bad.json").write_text(json.dumps(content))
    with pytest.raises(UserError) as refused:
        preflight(clean, tmp_path / "bad.json")
    found = "images that are not there [image-missing]: none.jpg; other kinds of errors: 1"
    assert refused.value.message == f"{tmp_path / 'bad.json'}: {found}" and "data check" in refused.value.hint
    flags = ["--images", str(clean), "--annotations", str(tmp_path / "bad.json"), "--iters", "1"]
    training = CliRunner().invoke(train, [str(tmp_path / "model.pth"), *flags]).exception
    assert isinstance(training, UserError) and training.message == refused.value.message and training.code == 3
    assert [path.name for path in tmp_path.iterdir()] == ["bad.json"]
    warned: list[str] = []
    report = preflight(clean, clean / "train.json", clean, clean / "train.json", warn=warned.append)
    refuse_errors(report.findings, clean / "train.json")
    assert len(warned) == 1 and "[split-same]" in warned[0]


def test_headers_alone_tell_sizes(clean: Path) -> None:
    split = read_split("train", clean, clean / "train.json", decode=False)
    assert [file.size for file in split.files.values()] == [SIZE] * 6 and not split.files[1].digest


@pytest.mark.parametrize(
    ("low", "high", "depth", "words"),
    [
        (0, 4095, 16, "values of 0 to 4095 of 0 to 65535; --value-range 0 4095"),
        (90, 3900, 16, "--value-range 0 4095"),
        (7000, 9000, 16, "values of 7000 to 9000 of 0 to 65535; --value-range 7000 9000"),
        (0, 60000, 16, ""),
        (0, 4000, 12, ""),
    ],
    ids=["12 of 16 bits", "nearly", "a narrow band", "all of it", "12 bits"],
)
def test_a_range_for_the_sensor_is_named(low: int, high: int, depth: int, words: str) -> None:
    labels = Annotations(Path("a.json"), {1: "a.png"}, {}, ())
    files = {1: ImageFile(True, size=(4, 4), levels=(low, high), depth=depth)}
    split = Split("train", Path("a.json"), labels=labels, files=files)
    finds = [find[1].format(*find[2:]) for find in check_content(split)]
    assert [words in find for find in finds] == [True] * bool(words)
