import pytest

from retinaserve.build_tools.graph.nodes import FEW, LANES, run_length


@pytest.mark.parametrize(
    ("total", "count", "length"),
    [
        pytest.param(FEW * 1000, 1000, 1, id="few values"),
        pytest.param(720 * 64 * 64, 1000, 48, id="P3 of 512 x 512: 61440 runs and 48000 values"),
        pytest.param(720 * 160 * 160, 1000, 128, id="P3 of 1280 x 1280: with 144 as few"),
        pytest.param(3 * 15 * 35 * 99, 9, 135, id="odd: no multiple of a vector's lanes"),
        pytest.param(20011, 9, 1, id="prime"),
    ],
)
def test_run_length(total, count, length):
    assert run_length(total, count) == length
    assert total % length == 0 and total // length >= count
    lengths = [other for other in range(LANES, total // count + 1, LANES) if total % other == 0]
    if length > 1 and lengths:
        assert all(total // length + count * length <= total // other + count * other for other in lengths)
