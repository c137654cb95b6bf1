"""Differences of tensors against NumPy on all of them at once."""

import math

import numpy as np
import pytest

from retinaserve.eval.verify.compare import TensorDifference


def test_batches_add_up() -> None:
    rng = np.random.default_rng(0)
    one = rng.normal(-8, 1, (6, 4, 5)).astype(np.float32)
    other = one + rng.normal(0, 0.3, one.shape).astype(np.float32)
    difference = TensorDifference()
    for part in (slice(0, 1), slice(1, 4), slice(4, 6)):
        difference.add(one[part], other[part])
    apart = np.abs(one.astype(np.float64) - other)
    a, b = (values.astype(np.float64).ravel() - one.mean(dtype=np.float64) for values in (one, other))
    assert difference.max == apart.max()
    assert difference.mean == pytest.approx(apart.mean(), rel=1e-9)
    assert difference.cosine == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b), rel=1e-9)


def test_a_constant_offset_is_no_similarity() -> None:
    """Plain cosine of logits around -8 would be 0.9995 here."""
    one = np.array([-9.0, -7.0, -9.0, -7.0])
    difference = TensorDifference()
    difference.add(one, np.array([-7.0, -9.0, -7.0, -9.0]))
    assert difference.cosine == pytest.approx(-1)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ([], [], (0, 0, 1)),
        ([2.0, 2.0], [2.0, 2.0], (0, 0, 1)),
        ([2.0, 2.0], [3.0, 1.0], (1, 1, 0)),
        ([1.0, 2.0], [1.0, 4.0], (2, 1, 1.5 / math.sqrt(0.5 * 6.5))),  # less 1.5: (-0.5, 0.5) and (-0.5, 2.5)
    ],
    ids=["nothing", "equal and flat", "flat", "by hand"],
)
def test_small_cases(one: list[float], other: list[float], expected: tuple[float, ...]) -> None:
    difference = TensorDifference()
    difference.add(np.array(one), np.array(other))
    found = (difference.max, difference.mean, difference.cosine)
    assert found == pytest.approx(expected)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_no_number_is_not_lost(bad: float) -> None:
    difference = TensorDifference()
    difference.add(np.array([1.0, 2.0]), np.array([1.0, bad]))
    difference.add(np.array([1.0, 2.0]), np.array([1.0, 2.0]))
    assert not math.isfinite(difference.max) and not math.isfinite(difference.mean)
    assert math.isnan(difference.cosine)


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="not one shape"):
        TensorDifference().add(np.zeros(2), np.zeros(3))
