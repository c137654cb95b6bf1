"""Check, training's validation and `infer` read any annotation file alike: one AP, or one reason to refuse it."""

import copy
import json
import random
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from retinaserve.eval.report.report import evaluate_detector
from retinaserve.eval.runtimes.detector import open_detector
from retinaserve.scripts.shapes.draw import draw_dataset
from retinaserve.training.check.checks import check_data, preflight, scored_labels
from retinaserve.training.check.snapshot import read_split
from retinaserve.training.checkpoint import load
from retinaserve.training.coco import Annotations, read_labels
from retinaserve.training.data.dataset import CocoDataset
from retinaserve.training.detections import Detections
from retinaserve.training.errors import UserError
from retinaserve.training.scoring.scores import evaluate, match_classes
from retinaserve.training.trainer.start import detector_to_train
from retinaserve.training.trainer.trainer import Trainer
from retinaserve.training.trainer.validate import check, score
from tests.coco import write_coco
from tests.training.squares import QUICK, SPEC, draw

SHAPES = Path(__file__).parents[2] / "examples" / "shapes.pth"
FILES = 150
Coco = dict[str, Any]
Change = Callable[[random.Random, Coco], object]


class Remembered:
    """A detector's answers by the images' bytes: the images stay the same while their annotations change."""

    def __init__(self, images: list[Path]) -> None:
        detector = open_detector(SHAPES, threads=1)
        self.class_names, self.category_ids = detector.class_names, detector.category_ids
        data = [path.read_bytes() for path in images]
        self.answers = dict(zip(data, detector.predict(data), strict=True))

    def predict(self, images: Iterable[bytes]) -> list[Detections]:
        return [self.answers[image] for image in images]

    def predict_many(self, images: Iterable[Any]) -> Iterator[Any]:
        return (self.answers[image] for image in images)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Coco, Remembered]:
    """A folder, its annotations, and what a real detector finds in it."""
    part = draw_dataset(tmp_path_factory.mktemp("labels") / "set", images=8, seed=3)
    content = json.loads(part.annotations.read_text())
    return part.images, content, Remembered(sorted(part.images.iterdir()))


def some(rng: random.Random, entries: list[Any]) -> list[Any]:
    return [each for each in entries if isinstance(each, dict) and rng.random() < 0.5] or entries[:1]


def each(key: str, **fields: Any) -> Change:
    """Set fields of some entries: to a value, or to what a function of the entry says."""

    def apply(rng: random.Random, content: Coco) -> None:
        for entry in some(rng, content[key]):
            entry.update({name: value(entry) if callable(value) else value for name, value in fields.items()})

    return apply


def renumber(key: str, refers: str, number: Callable[[int], Any]) -> Change:
    def apply(_: random.Random, content: Coco) -> None:
        for entry in content[key]:
            entry["id"] = number(entry["id"])
        for entry in content["annotations"]:
            entry[refers] = number(entry[refers])

    return apply


def flipped(entry: Any) -> list[float]:
    x, y, w, h = entry["bbox"]
    return [x + w, y + h, -w, -h]


def outline(entry: Any) -> list[list[float]]:
    x, y, w, h = entry["bbox"]
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


def segmented(rng: random.Random, content: Coco) -> None:
    for entry in some(rng, content["annotations"]):
        if len(entry.get("bbox") or ()) == 4 and all(type(v) in (int, float) for v in entry["bbox"]):
            entry["segmentation"] = outline(entry)
            entry["bbox"] = None


def twice(rng: random.Random, content: Coco) -> None:
    image = dict(content["images"][0], id=10**6 + rng.randrange(1000))
    mine = [entry for entry in content["annotations"] if entry.get("image_id") == content["images"][0]["id"]]
    content["images"].append(image)
    content["annotations"] += [dict(entry, image_id=image["id"], id=10**6 + n) for n, entry in enumerate(mine)]


def swapped(_: random.Random, content: Coco) -> None:
    numbers = [entry["id"] for entry in content["categories"]]
    other = dict(zip(numbers, numbers[1:] + numbers[:1], strict=True))
    for entry in content["categories"]:
        entry["id"] = other[entry["id"]]
    for entry in content["annotations"]:
        entry["category_id"] = other[entry["category_id"]]


# What changes nothing: AP is that of the clean file.
HARMLESS: dict[str, Change] = {
    "null fields": each("annotations", area=None, iscrowd=None, segmentation=None),
    "no fields": each("annotations", iscrowd=lambda e: 0, attributes={}),
    "flags as text": each("annotations", iscrowd="0"),
    "boolean flags": each("annotations", iscrowd=False),
    "areas of nothing": each("annotations", area=0),
    "areas of all": each("annotations", area=1e9),
    "areas as text": each("annotations", area="12.5"),
    "the other corner": each("annotations", bbox=flipped),
    "boxes as text": each("annotations", bbox=lambda e: [str(v) for v in e["bbox"]]),
    "segmentation alone": segmented,
    "no size": each("images", width=0, height=0),
    "size as text": each("images", width=lambda e: str(e["width"])),
    "size null": each("images", width=None, height=None),
    "image ids as text": renumber("images", "image_id", str),
    "image ids as floats": renumber("images", "image_id", float),
    "other category ids": swapped,
    "category ids as text": renumber("categories", "category_id", str),
    "line breaks in names": each("categories", name=lambda e: f" {e['name']}\n"),
    "names in capitals": each("categories", name=lambda e: e["name"].upper()),
    "annotation ids": each("annotations", id=0),
    "no annotation ids": each("annotations", id=None),
    "turned whole": each("annotations", attributes={"rotation": 360}),
    "a file twice": twice,
    "backslashes": each("images", file_name=lambda e: f".\\{e['file_name']}"),
    "flat boxes": lambda rng, content: content["annotations"].append(
        {"id": 7000, "image_id": content["images"][0]["id"], "category_id": 1, "bbox": [9, 9, 0, rng.random()]}
    ),
    "another order": lambda rng, content: [rng.shuffle(content[key]) for key in ("images", "annotations")],
    "more keys": lambda _, content: content.update(info=None, licenses=[], type="instances"),
}
JUNK = (None, "", "x", -1, 0.5, 1e300, [], {}, [None], [[1]], True, float("nan"), "\x00", 10**30, [1, 2, 3, "a"])


def junk(rng: random.Random, content: Coco) -> None:
    key = rng.choice(["images", "annotations", "categories"])
    place = rng.randrange(len(content[key]))
    if rng.random() < 0.1:
        content[key][place] = rng.choice(JUNK)
    elif isinstance(content[key][place], dict):
        content[key][place][rng.choice([*content[key][place], "segmentation", "attributes"])] = rng.choice(JUNK)


# What changes the labels or can't be used: whatever comes of it must be the same everywhere.
HARMFUL: dict[str, Change] = {
    "crowds": each("annotations", iscrowd=1),
    "crowds as text": each("annotations", iscrowd="1"),
    "rotated": each("annotations", attributes={"rotation": 30.0}),
    "a file per box": lambda _, content: content.update(
        images=[dict(content["images"][0], id=number) for number in range(len(content["annotations"]))],
        annotations=[dict(entry, image_id=number) for number, entry in enumerate(content["annotations"])],
    ),
    "ids of another file": each("images", id=1),
    "fractional ids": each("images", id=lambda e: e["id"] + 0.5),
    "unknown images": each("annotations", image_id=10**9),
    "unknown categories": each("annotations", category_id=10**9),
    "a category alone": lambda _, content: content["categories"].pop(),
    "a new category": each("categories", name=lambda e: f"new {e['name']}"),
    "lost files": each("images", file_name=lambda e: f"lost/{e['file_name']}"),
    "corners": lambda _, content: [
        entry.update(bbox=[x, y, x + w, y + h])
        for entry in content["annotations"]
        for x, y, w, h in [entry["bbox"]]
    ],
    "moved away": each("annotations", bbox=[5000, 5000, 10, 10]),
    "other size": each("images", width=17, height=23),
    "no boxes": lambda _, content: content.update(annotations=[]),
    "boxes twice": lambda rng, content: content["annotations"].extend(some(rng, content["annotations"])),
    "no list": lambda rng, content: content.pop(rng.choice(["images", "annotations", "categories"])),
    "one": junk,
    "two": junk,
    "three": junk,
}


def irregular(rng: random.Random, content: Coco) -> tuple[Coco, bool]:
    """Return a file with one to three irregularities, and whether all of them are harmless."""
    changed, harmless = copy.deepcopy(content), True
    # Of harmful ones the last alone: the others want entries they can read.
    names = rng.sample(sorted(HARMLESS), rng.choice([1, 2, 3]))
    if rng.random() < 0.5:
        names[-1] = rng.choice(sorted(HARMFUL))
        harmless = False
    done = []
    for name in names:
        before = copy.deepcopy(changed)
        try:
            (HARMLESS.get(name) or HARMFUL[name])(rng, changed)
            done.append(name)
        except (TypeError, KeyError, ValueError):  # two that don't go together
            changed = before
    return changed, harmless or not (done and done[-1] in HARMFUL)


def code_of(error: UserError) -> str:
    assert not re.search(r"\w+Error|NoneType|object|argument|Traceback", str(error)), str(error)
    (code,) = re.findall(r"\[([a-z]+(?:-[a-z]+)+)\]", error.message)
    return str(code)


def outcome(of: Callable[[], Any]) -> Any:
    try:
        return of()
    except UserError as error:
        return code_of(error)


def by_hand(content: Coco, found: dict[int, Detections], ids: tuple[int, ...]) -> float:
    """Return the AP that pycocotools gives for a clean file."""
    truth = COCO()
    truth.dataset = copy.deepcopy(content)
    truth.createIndex()
    rows = [
        {"image_id": number, "category_id": ids[c], "bbox": [x, y, p - x, q - y], "score": s}
        for number, answer in found.items()
        for (x, y, p, q), s, c in zip(
            answer.boxes.astype(float), answer.scores.tolist(), answer.classes, strict=True
        )
    ]
    judge = COCOeval(truth, truth.loadRes(rows), "bbox")
    judge.evaluate()
    judge.accumulate()
    judge.summarize()
    return float(judge.stats[0])


def test_one_file_is_one_ap_or_one_refusal(
    tmp_path: Path, drawn: tuple[Path, Coco, Remembered], capsys: pytest.CaptureFixture[str]
) -> None:
    images, content, detector = drawn
    spec = load(SHAPES).spec
    by_name = {path.name: detector.answers[path.read_bytes()] for path in images.iterdir()}
    found = {image["id"]: by_name[image["file_name"]] for image in content["images"]}
    clean = by_hand(content, found, detector.category_ids)
    assert 0.3 < clean < 0.95
    path, rng, refused, scored = tmp_path / "labels.json", random.Random(0), set(), 0

    def validate() -> Any:
        preflight(images, path)
        dataset = CocoDataset(images, path)
        check(dataset, spec)
        labels = {each.image_id: each for each in dataset.labels}
        for box in dataset.truth.boxes:  # what is learnt is what is scored
            x, y, w, h = box["bbox"]
            assert np.abs(labels[box["image_id"]].boxes - np.float32([x, y, x + w, y + h])).max(1).min() < 1e-3
        return score(dataset, spec, {each.image_id: by_name[each.path.name] for each in dataset.labels}).ap

    for number in range(FILES):
        changed, harmless = irregular(rng, content)
        path.write_text(json.dumps(changed))
        report = check_data(read_split("train", images, path))
        checked = report.errors[0].code if report.errors else None
        validated = outcome(validate)
        inferred = outcome(lambda: evaluate_detector(detector, scored_labels(path, images), images).scores.ap)
        if checked:
            refused.add(checked)
            assert (validated, inferred) == (checked, checked), number
            assert not harmless, (number, report.errors)
        elif isinstance(validated, str):  # the file is good, and of none of the detector's classes
            assert validated == "split-disjoint"
        else:
            scored += 1
            assert abs((inferred or 0) - validated) < 1e-9, number
            assert not harmless or abs(validated - clean) < 1e-9, number
    assert scored > 0.4 * FILES and len(refused) > 10, (scored, refused)
    capsys.readouterr()


def test_areas_that_contradict_the_boxes_are_not_scored(
    tmp_path: Path, drawn: tuple[Path, Coco, Remembered]
) -> None:
    images, content, detector = drawn
    path = tmp_path / "labels.json"

    def by_size(area: Callable[[Coco], Any]) -> list[float | None]:
        changed = copy.deepcopy(content)
        for entry in changed["annotations"]:
            entry["area"] = area(entry)
        path.write_text(json.dumps(changed))
        scores = evaluate_detector(detector, Annotations.load(path), images).scores
        return [scores.ap_small, scores.ap_medium, scores.ap_large]

    right = by_size(lambda entry: entry["bbox"][2] * entry["bbox"][3])
    for wrong in (0, 1, 1024.0, -5, None, 1e12):
        assert by_size(lambda _, value=wrong: value) == right, wrong
    assert by_size(lambda entry: entry["bbox"][2] * entry["bbox"][3] / 9) != right  # a shape of a ninth is one


@pytest.mark.parametrize(
    ("degrees", "expected"),
    [
        (90, (20, 5, 20, 40)),
        (180, (10, 15, 40, 20)),
        (-90, (20, 5, 20, 40)),
        # 40 cos 30 + 20 sin 30 wide, 40 sin 30 + 20 cos 30 high, about the centre at 30, 25
        (30, (30 - 22.3205, 25 - 18.6603, 44.6410, 37.3205)),
    ],
)
def test_a_rotated_box_becomes_the_upright_one_around_it(
    tmp_path: Path, degrees: float, expected: tuple[float, ...]
) -> None:
    box = (1, 1, [10, 15, 40, 20], {"attributes": {"rotation": degrees}})
    labels = read_labels(write_coco(tmp_path / "a.json", {1: "a.jpg"}, [box]))
    assert labels.boxes[0]["bbox"] == pytest.approx(expected, abs=1e-3)
    assert [finding.code for finding in labels.findings] == ["box-rotated"]


def test_validation_is_matched_by_name(tmp_path: Path) -> None:
    train, val = draw(tmp_path / "train", 4), draw(tmp_path / "val", 2)
    for labels in val.labels:  # another image than the one of the same name in training
        image = Image.open(labels.path)
        image.putpixel((0, 0), (1, 2, 3))
        image.save(labels.path)
    path = tmp_path / "val" / "annotations.json"
    content = json.loads(path.read_text())
    assert content["categories"] == [{"id": 2, "name": "dark"}, {"id": 5, "name": "light"}]
    content["categories"] = [{"id": 1, "name": "light"}, {"id": 9, "name": "dark"}]
    for entry in content["annotations"]:
        entry["category_id"] = {2: 9, 5: 1}[entry["category_id"]]
    path.write_text(json.dumps(content))
    report = preflight(tmp_path / "train", train.truth.path, tmp_path / "val", path)
    (finding,) = [finding for finding in report.findings if finding.code.startswith("split-categories")]
    assert finding.severity == "note" and finding.examples == ("'dark' is 2 and 9", "'light' is 5 and 1")
    perfect = {
        each.image_id: Detections(each.boxes, np.ones(1, np.float32), each.classes.astype(np.int32))
        for each in val.labels
    }
    assert score(CocoDataset(tmp_path / "val", path), SPEC, perfect).ap == pytest.approx(1)
    # A set that lacks a category is scored on the others.
    content["categories"].pop(0)
    content["annotations"] = [entry for entry in content["annotations"] if entry["category_id"] == 9]
    path.write_text(json.dumps(content))
    report = preflight(tmp_path / "train", train.truth.path, tmp_path / "val", path)
    assert any("'light' is not in val" in finding.examples for finding in report.findings)
    lacking = CocoDataset(tmp_path / "val", path)
    check(lacking, SPEC)
    assert score(lacking, SPEC, perfect).ap == pytest.approx(1)


def test_a_run_goes_on_where_ids_changed_and_names_did_not(tmp_path: Path) -> None:
    data, model = draw(tmp_path / "set", 4), tmp_path / "model.pth"
    Trainer(SPEC, QUICK).fit(model, data)
    content = json.loads(data.truth.path.read_text())

    def resume(categories: list[Coco], ids: dict[int, int]) -> Any:
        changed = copy.deepcopy(content) | {"categories": categories}
        for entry in changed["annotations"]:
            entry["category_id"] = ids[entry["category_id"]]
        data.truth.path.write_text(json.dumps(changed))
        return detector_to_train(model, CocoDataset(tmp_path / "set", data.truth.path), {}, None)

    assert resume([{"id": 1, "name": "dark"}, {"id": 4, "name": "light"}], {2: 1, 5: 4}) == SPEC
    with pytest.raises(UserError, match="class 0 was dark, and id 1 makes it light"):
        resume([{"id": 1, "name": "light"}, {"id": 4, "name": "dark"}], {2: 4, 5: 1})
    with pytest.raises(UserError, match="other classes: without dark; with grey"):
        resume([{"id": 2, "name": "grey"}, {"id": 5, "name": "light"}], {2: 2, 5: 5})


def test_scores_of_classes_that_differ_in_case_are_their_own(tmp_path: Path) -> None:
    names = ["a", "A", "b", "B"]
    rows = [(1, number, [20 * number, 0, 15, 15]) for number in range(1, 5)]
    truth = Annotations.load(write_coco(tmp_path / "a.json", {1: "1.jpg"}, rows, dict(enumerate(names, 1))))
    boxes = np.array([[20 * n, 0, 20 * n + 15, 15] for n in range(1, 5)], np.float32)
    found = Detections(boxes, np.full(4, 0.9, np.float32), np.arange(4, dtype=np.int32))
    match = match_classes(names, truth.categories)
    assert not match.warning and evaluate(truth, {1: found}, match.category_ids).ap == pytest.approx(1)
