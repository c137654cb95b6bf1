from pathlib import Path

import numpy as np
import pytest

from retinaserve.eval.report.error_types import NEVER
from retinaserve.eval.report.thresholds import ThresholdTable, calibrate, image_errors, steps
from tests.eval.scenes import Row, classified_boxes, label

NONE = dict.fromkeys(("localisation", "class", "both", "duplicate", "background", "missed"), 0)
# Of the scene, at a threshold: precision, recall, errors and confusion (cat, dog, background), all by hand.
POINTS = {
    0.0: (
        2 / 7,
        2 / 4,
        dict(localisation=1, **{"class": 1}, both=1, duplicate=1, background=1, missed=1),
        [[1, 1, 0], [0, 1, 1], [3, 1, 0]],
    ),
    0.65: (1 / 3, 1 / 4, dict(localisation=1, duplicate=1, missed=2), [[1, 0, 1], [0, 0, 2], [2, 0, 0]]),
    0.75: (1 / 2, 1 / 4, dict(duplicate=1, missed=3), [[1, 0, 1], [0, 0, 2], [1, 0, 0]]),
    1.0: (None, 0.0, dict(missed=4), [[0, 0, 2], [0, 0, 2], [0, 0, 0]]),
}


@pytest.mark.parametrize("threshold", POINTS)
def test_a_threshold_counts_as_by_hand(threshold: float, tmp_path: Path) -> None:
    precision, recall, errors, confusion = POINTS[threshold]
    table = ThresholdTable.of(classified_boxes(label(tmp_path)))
    curves = [curve[-1, round(100 * threshold)] for curve in table.curves()]
    assert curves[0] == pytest.approx(np.nan if precision is None else precision, nan_ok=True)
    assert curves[1] == recall
    assert curves[2] == pytest.approx(2 * precision * recall / (precision + recall) if precision and recall else 0)
    assert table.errors(threshold) == {**NONE, **errors}
    assert table.confusion(threshold).tolist() == confusion


def test_the_suggested_threshold_has_the_highest_f1(tmp_path: Path) -> None:
    table = ThresholdTable.of(classified_boxes(label(tmp_path)))
    # All: 4/11 with all seven detections, 2/5 with the first alone, which is so above 0.80.
    assert table.best() == 0.81 and table.curves()[2][-1, 81] == pytest.approx(0.4)
    assert table.best(0) == 0.81  # cats: 2/3 with the first alone
    assert table.best(1) == 0.0  # dogs: the right one is the weakest of three


def test_without_boxes_or_detections_there_is_nothing_to_suggest(tmp_path: Path) -> None:
    nothing = ThresholdTable.of(classified_boxes(label(tmp_path, []), {}))
    assert nothing.best() == 0.5 and np.isnan(nothing.curves()[2]).all()
    assert nothing.confusion(0.5).tolist() == [[0] * 3] * 3 and nothing.errors(0.5) == NONE
    blind = ThresholdTable.of(classified_boxes(label(tmp_path), {}))
    assert blind.best() == 0.5 and blind.errors(0.5) == {**NONE, "missed": 4}
    assert blind.confusion(0.5).tolist() == [[0, 0, 2], [0, 0, 2], [0, 0, 0]]


def test_steps_are_the_highest_threshold_passed() -> None:
    # 0.57 and 0.29 are just below and above as floats; a step has to agree with `score >= threshold` all the same.
    scores = np.array([NEVER, 0.0, 0.009, 0.01, 0.29, 0.57, np.nextafter(0.57, 0), 0.999, 1.0])
    assert steps(scores).tolist() == [-1, 0, 0, 1, 29, 57, 56, 99, 100]


def test_images_are_ranked_by_what_is_wrong_in_them(tmp_path: Path) -> None:
    classified = classified_boxes(label(tmp_path))
    assert classified.image_ids == (10, 11, 12)
    assert image_errors(classified, 0.0).tolist() == [5 + 1, 1, 0]
    assert image_errors(classified, 0.75).tolist() == [1 + 1, 2, 0]


def test_without_detections_there_is_no_error(tmp_path: Path) -> None:
    calibration = calibrate(classified_boxes(label(tmp_path), {}))
    assert calibration["expected_calibration_error"] is None
    assert [bin["detections"] for bin in calibration["bins"]] == [0] * 10


def test_the_error_is_that_of_the_definition(tmp_path: Path) -> None:
    boxes = [(0, 0, 50, 50), (100, 0, 150, 50), (200, 0, 250, 50)]
    truth = label(tmp_path, [(10, 7, box) for box in boxes])
    answers: list[Row] = [(*box, 0.85, 0) for box in boxes]
    answers += [(300, 300, 350, 350, 0.85, 0), (400, 400, 450, 450, 0.25, 0)]
    calibration = calibrate(classified_boxes(truth, {10: answers}))
    # Three of four at 0.85 are right, none of one at 0.25.
    assert calibration["expected_calibration_error"] == pytest.approx(4 / 5 * 0.10 + 1 / 5 * 0.25, abs=1e-6)
    eighth, second = calibration["bins"][8], calibration["bins"][2]
    expected = {"low": 0.8, "high": 0.9, "detections": 4, "precision": 0.75}
    assert eighth == {**expected, "score": pytest.approx(0.85)}
    assert (second["detections"], second["precision"], second["score"]) == (1, 0.0, 0.25)


def test_a_score_of_one_is_in_the_last_bin(tmp_path: Path) -> None:
    calibration = calibrate(classified_boxes(label(tmp_path), {10: [(0, 0, 100, 100, 1.0, 0)]}))
    assert calibration["bins"][9]["detections"] == 1 and calibration["expected_calibration_error"] == 0
