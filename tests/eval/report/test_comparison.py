import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retinaserve.eval.report.analysis import Analysis, ImageChange, read_baseline
from retinaserve.training.coco import Annotations
from retinaserve.training.errors import UserError
from tests.eval.scenes import ANSWERS, Row, label, report_on

BETTER: dict[int, list[Row]] = {
    10: [(0, 0, 100, 100, 0.9, 0), (200, 200, 300, 300, 0.8, 0)],
    11: [(5, 5, 25, 25, 0.7, 1), (400, 400, 500, 500, 0.65, 1)],
}


def written(truth: Annotations, folder: Path, answers: dict[int, list[Row]] = ANSWERS) -> Path:
    path = folder / "baseline.json"
    path.write_text(json.dumps(Analysis.of(report_on(truth, answers), resamples=50).to_dict()))
    return path


def test_a_baseline_comes_back_exactly_as_it_was(tmp_path: Path) -> None:
    truth = label(tmp_path)
    thirds: dict[int, list[Row]] = {
        10: [(1 / 3, 1 / 7, 100 / 3, 200 / 7, 1 / 3, 0)],
        12: [(0, 0, 9.1, 9.7, 0.1, 1)],
    }
    report = report_on(truth, thirds)
    baseline = read_baseline(written(truth, tmp_path, thirds), truth)
    for image_id, place in ((10, 0), (12, 1)):
        before = report.results[image_id]
        assert baseline.classified.boxes[place].astype(np.float32) == pytest.approx(before.boxes[0], rel=1e-7)
        assert np.float32(baseline.classified.score[place]) == before.scores[0]
    assert baseline.scores == report.scores


def test_what_changed_is_told_by_number_class_and_image(tmp_path: Path) -> None:
    truth = label(tmp_path)
    baseline = read_baseline(written(truth, tmp_path), truth)
    change = Analysis.of(report_on(truth, BETTER), baseline, resamples=200).comparison
    assert change is not None and change.interval is not None
    # By hand: cats go from 51/101 at IoU 0.5 to all found. Dogs from 1/3 to 1 on half of the recall.
    cats, dogs = change.classes
    assert cats == ("cat", pytest.approx(51 / 101), pytest.approx(1.0))
    assert dogs == ("dog", pytest.approx(51 / 101 / 3), pytest.approx(51 / 101))
    assert change.difference == pytest.approx((1 + 51 / 101) / 2 - 51 / 101 * (2 / 3))
    assert change.numbers["ap50"] == (pytest.approx(51 / 101 * 2 / 3), pytest.approx((1 + 51 / 101) / 2))
    assert change.interval.low <= change.difference <= change.interval.high and change.interval.low >= 0
    # The baseline at 0.81 misses three boxes; the new one at 0.66 misses one dog.
    assert change.better == (ImageChange(10, 1, 0), ImageChange(11, 2, 1)) and change.worse == ()
    assert change.drop() == 0.0


def test_a_drop_is_told_and_equals_do_not_differ(tmp_path: Path) -> None:
    truth = label(tmp_path)
    baseline = read_baseline(written(truth, tmp_path, BETTER), truth)
    worse = Analysis.of(report_on(truth), baseline, resamples=200).comparison
    assert worse is not None and worse.drop() == pytest.approx(-(worse.difference or 0)) and worse.drop() > 0.4
    assert [change.image_id for change in worse.worse] == [10, 11] and worse.better == ()
    same = Analysis.of(report_on(truth, BETTER), baseline, resamples=200).comparison
    assert same is not None and same.interval is not None
    assert (same.drop(), same.interval.low, same.interval.high) == (0, 0, 0) and same.worse == same.better == ()


def test_the_comparison_is_in_the_json(tmp_path: Path) -> None:
    truth = label(tmp_path)
    baseline = read_baseline(written(truth, tmp_path), truth)
    values = json.loads(json.dumps(Analysis.of(report_on(truth, BETTER), baseline, resamples=50).to_dict()))
    assert values["comparison"]["classes"][0] == {"name": "cat", "before": pytest.approx(51 / 101), "now": 1.0}
    assert values["comparison"]["better"][0] == {"image_id": 10, "before": 1, "now": 0}
    assert values["confusion"]["labels"] == ["cat", "dog", None]


def damaged(**change: Any) -> dict[str, Any]:
    return change


WRONG: dict[str, tuple[str | dict[str, Any], str]] = {
    "empty": ("", "is not JSON"),
    "a list": ("[]", "no report to compare with"),
    "another format": (damaged(format=0), "format 0"),
    "other labels": (damaged(annotations_sha256="0"), "was scored on other labels"),
    "no detections": (damaged(detections=None), "its detections can't be read"),
    "an unknown image": (damaged(detections={"99": [[7, 0.5, 0, 0, 1, 1]]}), "ValueError image 99"),
    "an unknown category": (damaged(detections={"10": [[8, 0.5, 0, 0, 1, 1]]}), "KeyError 8"),
    "a box too short": (damaged(detections={"10": [[7, 0.5, 0, 0, 1]]}), "can't be read"),
    "not a number": (damaged(detections={"10": [[7, float("nan"), 0, 0, 1, 1]]}), "ValueError image 10"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_file_that_cannot_be_compared_with_is_named(case: str, tmp_path: Path) -> None:
    content, message = WRONG[case]
    truth = label(tmp_path)
    path = written(truth, tmp_path)
    text = content if isinstance(content, str) else json.dumps({**json.loads(path.read_text()), **content})
    path.write_text(text)
    with pytest.raises(UserError, match=r"baseline\.json") as caught:
        read_baseline(path, truth)
    assert message in caught.value.message


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.json: No such file"):
        read_baseline(tmp_path / "none.json", label(tmp_path))
