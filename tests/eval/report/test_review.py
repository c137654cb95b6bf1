import json
import re
from pathlib import Path

from PIL import Image

from retinaserve.eval.report.analysis import Analysis
from retinaserve.eval.report.review import disagreements
from tests.cli import invoke
from tests.eval.scenes import ANSWERS, LABELS, Row, classified_boxes, label, report_on

# By hand, of the scene with every kind of error.
EXPECTED = [
    ("place", 0.7, "cat", "cat"),  # the dog of 0.6 is about the same label
    ("not found", 0.5, "dog", None),  # one dog of two was found
    ("unlabelled", 0.4, None, "cat"),
]


def told(folder: Path, answers: dict[int, list[Row]] = ANSWERS, **more: float) -> list[tuple[object, ...]]:
    truth = label(folder)
    found = disagreements(classified_boxes(truth, answers), truth, **more)
    return [(each.kind, each.weight, each.label, each.found) for each in found]


def test_a_scene_is_told_as_by_hand(tmp_path: Path) -> None:
    assert told(tmp_path) == EXPECTED
    assert told(tmp_path, count=2) == EXPECTED[:2] and told(tmp_path, least=0.45) == EXPECTED[:2]


def test_a_wrong_class_and_several_boxes_at_an_unlabelled_place_are_told_once(tmp_path: Path) -> None:
    x1, y1, x2, y2 = LABELS[1][2]
    answers: dict[int, list[Row]] = {
        10: [(x1, y1, x2, y2, 0.8, 1), (600, 0, 700, 100, 0.9, 0), (600, 5, 700, 100, 0.7, 1)]
    }
    expected = [("unlabelled", 0.9, None, "cat"), ("class", 0.8, "cat", "dog")]
    assert told(tmp_path, answers) == expected  # no class was found once: its missed labels weigh nothing


def test_where_both_agree_there_is_nothing(tmp_path: Path) -> None:
    right: dict[int, list[Row]] = {10: [], 11: []}
    for image, category, (x1, y1, x2, y2) in LABELS:
        right[image].append((x1, y1, x2, y2, 0.9, 0 if category == 7 else 1))
    assert told(tmp_path, right) == [] and told(tmp_path, {}) == []


def test_the_verb_writes_a_page_that_names_what_is_wrong(tmp_path: Path) -> None:
    truth = label(tmp_path, images={10: "<b>.png", 11: "b.png", 12: "empty.png"})
    for name in truth.images.values():
        Image.new("RGB", (800, 700), "grey").save(tmp_path / name)
    report = tmp_path / "report.json"
    report.write_text(json.dumps(Analysis.of(report_on(truth), resamples=20).to_dict()))
    page, found = tmp_path / "review.html", tmp_path / "review.json"
    words = ["data", "review", report, "--images", tmp_path, "--annotations", truth.path]
    result = invoke(*words, "--output", page, "--json", found)
    assert result.exit_code == 0, result.output
    text = page.read_text()
    assert text.count("<figure>") == 3 and len(re.findall('src="data:image/jpeg', text)) == 6
    assert "&lt;b&gt;.png" in text and "<b>.png" not in text and "<b>dog</b> was not found" in text
    assert [each["kind"] for each in json.loads(found.read_text())] == [row[0] for row in EXPECTED]
    (tmp_path / "other.json").write_text("{}")
    wrong = invoke(*[*words[:2], tmp_path / "other.json", *words[3:]])
    assert wrong.exit_code == 3 and "no report to compare with" in wrong.output
