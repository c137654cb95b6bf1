from pathlib import Path

import pytest

from retinaserve.eval.report.gains import gains
from tests.eval.scenes import label, outcomes_of

# AP50 of the scene: cats reach recall 0.5 (51 of 101 points) at precision 1, dogs at precision 1/3. Mended:
EXPECTED = {
    "localisation": 50 * (2 / 3) / 101 / 2,  # the second cat comes third
    "class": (50 * (2 / 4) + 51 * (1 / 2 - 1 / 3)) / 101 / 2,  # the second cat fourth, and one false dog less
    "both": 51 * (1 / 2 - 1 / 3) / 101 / 2,  # one false dog less
    "duplicate": 0.0,  # comes after the first cat, and nothing comes after it
    "background": 0.0,
    "missed": (1 / 3 - 51 / 101 / 3) / 2,  # the one dog that is left is found
}


def test_gains_are_those_worked_out_by_hand(tmp_path: Path) -> None:
    truth = label(tmp_path)
    assert gains(truth, outcomes_of(truth)) == pytest.approx(EXPECTED)


def test_without_labels_nothing_can_be_gained(tmp_path: Path) -> None:
    truth = label(tmp_path, [])
    assert set(gains(truth, outcomes_of(truth)).values()) == {None}


def test_a_blind_detector_misses_everything(tmp_path: Path) -> None:
    truth = label(tmp_path)
    found = gains(truth, outcomes_of(truth, {}))
    assert found["missed"] == 1.0 and sum(value or 0 for value in found.values()) == 1.0


def test_only_the_best_of_several_errors_on_a_box_is_mended(tmp_path: Path) -> None:
    truth = label(tmp_path, [(10, 7, (0, 0, 100, 100))])
    loose = [(0, 0, 100, 40, 0.9, 0), (0, 60, 100, 100, 0.8, 0)]
    # One is mended, the other goes. Were only the weaker one mended, precision would be 1/2.
    assert gains(truth, outcomes_of(truth, {10: loose}))["localisation"] == pytest.approx(1.0)
