import pytest

from retinaserve.eval.image_files import spread


@pytest.mark.parametrize(
    ("count", "most", "expected"),
    [(0, 3, []), (2, 3, [0, 1]), (3, 3, [0, 1, 2]), (10, 3, [0, 3, 6]), (10, 1, [0]), (9, 2, [0, 4])],
)
def test_what_is_chosen_is_spread_evenly(count: int, most: int, expected: list[int]) -> None:
    assert spread(range(count), most) == expected
