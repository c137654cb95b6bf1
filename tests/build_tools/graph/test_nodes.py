import numpy as np
import onnx_graphsurgeon as gs
import pytest

from retinaserve.build_tools.graph.nodes import FEW, LANES, NodeBuilder, run_length, stable_top_k, top_k
from tests.build_tools.graph.test_graft import runner_of

RUNTIMES = ("onnxruntime", "openvino")
LOW = -1e9  # a floor under everything
CASES = {
    "one value is all": ((1,), 1),
    "all are taken": ((3, 4, 5), 60),
    "a single TopK": ((6, 8, 10), 7),
    "two steps": ((9, 32, 48), 5),
    "two steps, no multiple of a vector": ((3, 15, 35), 5),
    "a prime number": ((2003,), 3),
}


def model(function, shape, count, *, opset=18, **more):
    values = gs.Variable("values", np.float32, ["batch", *shape])
    graph = gs.Graph(inputs=[values], opset=opset, ir_version=10)
    best, index = function(NodeBuilder(graph), values, total=int(np.prod(shape)), count=count, **more)
    best.name, index.name = "best", "index"
    best.dtype, index.dtype, best.shape, index.shape = np.float32, np.int64, ["batch", count], ["batch", count]
    graph.outputs = [best, index]
    return gs.export_onnx(graph.cleanup().toposort())


def pictures(shape, kind):
    """Three pictures of values; rounded ones have a few dozen different values only."""
    values = np.random.default_rng(0).normal(-4, 2, (3, *shape)).astype(np.float32)
    return np.round(values) if kind == "ties" else values


def expected(values, count):
    flat = values.reshape(len(values), -1)
    index = np.argsort(-flat, axis=1, kind="stable")[:, :count]
    return np.take_along_axis(flat, index, axis=1), index


@pytest.mark.parametrize("kind", ["distinct", "ties"])
@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("name", CASES)
def test_top_k(name, runtime, kind):
    shape, count = CASES[name]
    values = pictures(shape, kind)
    run = runner_of(model(top_k, shape, count, floor=LOW), runtime)
    for batch in (values, values[:1]):
        best, index = run({"values": batch})
        wanted, where = expected(batch, count)
        assert (best == wanted).all()
        if runtime == "onnxruntime" or kind == "distinct":
            assert (index == where).all()
        else:  # which of equal values, and in which order, is OpenVINO's choice
            flat = batch.reshape(len(batch), -1)
            assert (np.take_along_axis(flat, index.astype(np.int64), axis=1) == wanted).all()
            assert all(len(set(row)) == count for row in index.tolist())


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("name", ["a single TopK", "two steps"])
def test_values_under_the_floor_come_back_as_the_floor(name, runtime):
    shape, count = CASES[name]
    values = pictures(shape, "distinct")
    wanted, where = expected(values, count)
    floor = float(wanted[0, count // 2])  # of the first image as many are above it, of the others fewer or more
    best, index = runner_of(model(top_k, shape, count, floor=floor), runtime)({"values": values})
    above = wanted > np.float32(floor)
    assert (best == np.maximum(wanted, np.float32(floor))).all() and (index[above] == where[above]).all()
    rest = np.take_along_axis(values.reshape(len(values), -1), index.astype(np.int64), axis=1)[~above]
    assert len(rest) and (rest <= np.float32(floor)).all()


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_equal_values_only(runtime):
    shape, count = CASES["two steps"]
    best, index = runner_of(model(top_k, shape, count, floor=LOW), runtime)(
        {"values": np.full((2, *shape), 1.5, np.float32)}
    )
    assert (best == 1.5).all() and all(len(set(row)) == count for row in index.tolist())
    if runtime == "onnxruntime":
        assert index.tolist() == [list(range(count))] * 2


def test_opset_17_has_its_axes_elsewhere():
    shape, count = CASES["two steps"]
    values = pictures(shape, "distinct")
    found = runner_of(model(top_k, shape, count, opset=17, floor=LOW), "onnxruntime")({"values": values})
    assert all((a == b).all() for a, b in zip(found, expected(values, count), strict=True))


@pytest.mark.parametrize("kind", ["distinct", "ties"])
@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize(("total", "count"), [(1, 1), (50, 50), (4500, 100)])
def test_stable_top_k(total, count, runtime, kind):
    values = pictures((total,), kind)
    found = runner_of(model(stable_top_k, (total,), count), runtime)({"values": values})
    assert all((a == b).all() for a, b in zip(found, expected(values, count), strict=True))


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
