from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from retinaserve.build_tools.quantize.ranges import (
    BINS,
    THRESHOLDS,
    Histogram,
    cached,
    collect,
    entropy,
    normalise,
    percentile,
)
from retinaserve.training.errors import UserError
from tests.toys import toy_spec

RNG = np.random.default_rng(0)


def histogram_of(*batches):
    histogram = Histogram()
    for batch in batches:
        histogram.add(np.asarray(batch, np.float32))
    return histogram


@pytest.mark.parametrize("calibrator", THRESHOLDS)
@pytest.mark.parametrize("batch", [[], [0.0], [0.0] * 1000], ids=["nothing", "a zero", "zeros"])
def test_a_tensor_of_zeros_has_no_range(calibrator, batch) -> None:
    assert THRESHOLDS[calibrator](histogram_of(batch)) == 0


def test_counts_are_those_of_numpy_however_the_range_grew() -> None:
    batches = [RNG.normal(0, scale, 5000).astype(np.float32) for scale in (0.1, 3.0, 0.5, 20.0)]
    histogram = histogram_of(*batches)
    values = np.abs(np.concatenate(batches))
    assert histogram.largest == values.max() and histogram.top >= values.max()
    counts, _ = np.histogram(values, bins=64, range=(0, histogram.top))
    coarse = histogram.counts.reshape(64, -1).sum(axis=1)
    assert histogram.counts.sum() == len(values)
    assert np.abs(coarse - counts).sum() <= 4  # float32 rounding at an edge


def test_minmax_is_the_largest() -> None:
    assert THRESHOLDS["minmax"](histogram_of([0.5, -7.25], [3.0])) == 7.25


@pytest.mark.parametrize("share", [50.0, 99.0, 99.9])
def test_percentile_is_numpys(share) -> None:
    values = RNG.exponential(2.0, 200_000).astype(np.float32)
    histogram = histogram_of(values)
    assert percentile(histogram, share) == pytest.approx(
        np.percentile(values, share), abs=2 * histogram.top / BINS
    )


def test_entropy_cuts_an_outlier_off_and_keeps_what_is_even() -> None:
    """A normal distribution's best 8 bit range is some 4 to 6 deviations; an even one has no tail to cut."""
    normal = np.abs(RNG.normal(0, 1, 400_000))
    assert 3 < entropy(histogram_of(np.append(normal, 60.0))) < 8
    even = RNG.uniform(0, 10, 400_000)
    assert entropy(histogram_of(even)) > 9.5
    assert entropy(histogram_of(np.append(normal, 60.0))) < THRESHOLDS["minmax"](histogram_of([60.0]))


def test_entropy_does_not_mind_how_many_zeros_a_relu_left() -> None:
    values = np.abs(RNG.normal(0, 1, 100_000))
    some, many = (entropy(histogram_of(np.concatenate([values, np.zeros(n)]))) for n in (10, 2_000_000))
    assert some == pytest.approx(many, rel=0.1)


def test_what_is_not_a_number_is_refused() -> None:
    with pytest.raises(UserError, match="not a number"):
        histogram_of([1.0, np.nan])


def doubling_model():
    """Doubles its input and drops what is negative."""
    nodes = [
        helper.make_node("Mul", ["input", "two"], ["doubled"]),
        helper.make_node("Relu", ["doubled"], ["out"]),
    ]
    shape = ["batch", 3, 2, 2]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(np.float32(2), "two")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def test_tensors_are_watched_on_every_picture() -> None:
    """Each picture counts, not only the last: the largest value is in the first."""
    pictures = [np.full((3, 2, 2), value, np.float32) for value in (-5.0, 1.0, 2.0)]
    found = collect(doubling_model(), ["input", "doubled", "out"], pictures)
    assert {name: histogram.largest for name, histogram in found.items()} == {"input": 5, "doubled": 10, "out": 4}
    assert all(histogram.counts.sum() == 36 for histogram in found.values())


def test_the_cache_answers_for_the_same_graph_and_pictures_only(tmp_path: Path) -> None:
    model, runs = doubling_model(), []

    def run():
        runs.append(1)
        return {"out": histogram_of([1.0, 3.0])}

    for _ in range(2):
        found = cached(tmp_path / "cache", model, "pictures", run)["out"]
        assert (found.top, found.largest, found.counts.sum()) == (3.0, 3.0, 2)
    assert len(runs) == 1
    cached(tmp_path / "cache", model, "other pictures", run)
    other = onnx.ModelProto()
    other.CopyFrom(model)
    other.graph.node[0].input[0] = "two"
    cached(tmp_path / "cache", other, "pictures", run)
    assert len(runs) == 3
    assert {path.suffix for path in (tmp_path / "cache").iterdir()} == {".npz"}


def test_pictures_are_normalised_as_the_graft_does() -> None:
    spec = toy_spec()
    white = normalise(spec, np.full((3, 1, 1), 255, np.uint8))
    expected = [(1 - mean) / std for mean, std in zip(spec.mean, spec.std, strict=True)]
    np.testing.assert_allclose(white.ravel(), expected, rtol=1e-6)
