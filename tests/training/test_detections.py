import numpy as np
import pytest

from retinaserve.training.detections import Detections


def test_slots_are_cut_to_the_count() -> None:
    found = Detections.from_slots(
        2, [[0, 0, 1, 1], [1, 2, 3, 4], [0, 0, 0, 0]], [0.9, 0.5, 0], [1, 0, 0], size=(10, 20)
    )
    assert len(found) == 2 and found.size == (10, 20)
    assert found.boxes.dtype == np.float32 and found.classes.dtype == np.int32
    assert found.boxes.tolist() == [[0, 0, 1, 1], [1, 2, 3, 4]]


@pytest.mark.parametrize(("score", "left"), [(0.0, 2), (0.5, 2), (0.51, 1), (1.0, 0)])
def test_above_keeps_the_score_itself_and_the_size(score: float, left: int) -> None:
    found = Detections.from_slots(2, np.zeros((2, 4)), [0.9, 0.5], [1, 0], size=(3, 4)).above(score)
    assert len(found) == left and found.size == (3, 4)


def test_none_is_empty_and_well_formed() -> None:
    none = Detections.none()
    assert len(none) == 0 and none.boxes.shape == (0, 4) and len(none.above(0.5)) == 0


@pytest.mark.parametrize(
    ("boxes", "scores", "classes"),
    [(np.zeros((1, 4)), np.zeros(2), np.zeros(2)), (np.zeros((2, 5)), np.zeros(2), np.zeros(2))],
    ids=["a box too few", "five numbers"],
)
def test_arrays_that_do_not_belong_together_are_refused(
    boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray
) -> None:
    with pytest.raises(ValueError, match="do not belong together"):
        Detections(boxes, scores, classes)
