from pathlib import Path

import pytest

from retinaserve.eval.report.calibration import calibrate
from tests.eval.scenes import Row, label, outcomes_of


def test_without_detections_there_is_no_error(tmp_path: Path) -> None:
    calibration = calibrate(outcomes_of(label(tmp_path), {}))
    assert calibration.error is None
    assert [bin.detections for bin in calibration.bins] == [0] * 10


def test_the_error_is_that_of_the_definition(tmp_path: Path) -> None:
    boxes = [(0, 0, 50, 50), (100, 0, 150, 50), (200, 0, 250, 50)]
    truth = label(tmp_path, [(10, 7, box) for box in boxes])
    answers: list[Row] = [(*box, 0.85, 0) for box in boxes]
    answers += [(300, 300, 350, 350, 0.85, 0), (400, 400, 450, 450, 0.25, 0)]
    calibration = calibrate(outcomes_of(truth, {10: answers}))
    # Three of four at 0.85 are right, none of one at 0.25.
    assert calibration.error == pytest.approx(4 / 5 * 0.10 + 1 / 5 * 0.25, abs=1e-6)
    eighth, second = calibration.bins[8], calibration.bins[2]
    assert (eighth.low, eighth.high, eighth.detections, eighth.precision) == (0.8, 0.9, 4, 0.75)
    assert (second.detections, second.precision, second.score) == (1, 0.0, 0.25)


def test_a_score_of_one_is_in_the_last_bin(tmp_path: Path) -> None:
    calibration = calibrate(outcomes_of(label(tmp_path), {10: [(0, 0, 100, 100, 1.0, 0)]}))
    assert calibration.bins[9].detections == 1 and calibration.error == 0
