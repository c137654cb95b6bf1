"""Appends ONNX nodes to a graph by calls, and top-k and division out of such nodes.

    nodes = NodeBuilder(graph)
    half = nodes("Mul", nodes("Add", a, b), 0.5)
    values, index = top_k(nodes, logits, total=2949120, count=1000, floor=-3)    # of (B, ...) as (B, total)
    values, index = stable_top_k(nodes, logits, total=4500, count=100)    # of (B, total), ties to the lower index

The functions work round four things of OpenVINO: its TopK over all logits of a level takes longer than anything
else behind the network, and four times as long as over the same logits raised to a floor that most lie under; it
orders equal values arbitrarily, and it divides integers in float32.
"""

from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

PREFIX = "detect"  # of the names of all nodes and tensors made here
FLOAT32_INTEGERS = 2**24  # float32 holds every integer up to here
FEW = 128  # values for each one taken: up to here one TopK is as fast as three small ones
LANES = 16  # float32 values in a vector of AVX-512: what a group's length is best a multiple of


class NodeBuilder:
    """Appends nodes: `nodes("Mul", a, 2.0)` is a new tensor; arrays become constants, numbers of shape (1,)."""

    def __init__(self, graph: gs.Graph) -> None:
        self.graph = graph
        self._count = 0

    def __call__(
        self, op: str, *inputs: Any, outputs: int = 1, domain: str | None = None, **attributes: Any
    ) -> Any:
        """Return the node's output tensor, or a list of them where `outputs` is above one."""
        self._count += 1
        name = f"{PREFIX}/{op}_{self._count}"
        made = [gs.Variable(f"{name}_out{i}" if i else f"{name}_out") for i in range(outputs)]
        given = [item if isinstance(item, gs.Tensor) else self._constant(name, item) for item in inputs]
        self.graph.nodes.append(
            gs.Node(op, name=name, attrs=attributes, inputs=given, outputs=made, domain=domain)
        )
        return made if outputs > 1 else made[0]

    def _constant(self, name: str, value: Any) -> gs.Constant:
        self._count += 1
        array = np.asarray(value)
        kind = {np.dtype(np.float64): np.float32, np.dtype(np.int32): np.int64}.get(array.dtype, array.dtype)
        return gs.Constant(f"{name}_const_{self._count}", np.ascontiguousarray(array, kind))


def top_k(nodes: NodeBuilder, values: Any, *, total: int, count: int, floor: float) -> tuple[Any, Any]:
    """Return the best `count` of (B, ...), flattened to (B, total), and their flat indices: both (B, count).

    Best first; ties to the lower index where the runtime's own TopK does so (ONNX Runtime's and TensorRT's).
    Values up to `floor` come back as that, with the index of any of them.

    Where there are many values, the maximum of every run of `length` neighbours is found first, and only the best
    `count` runs are looked into. No other run can hold one of the best: each of these has a value that is as
    large, and stands before it if it is equal, because the runs keep their order.
    """
    length = run_length(total, count)
    if length == 1:
        best, index = _top(nodes, values, [count], floor)
        return best, index
    runs = total // length
    table = nodes("Reshape", values, [-1, length])  # (B*runs, length)
    peaks = nodes("Max", nodes("Reshape", _reduce_max(nodes, table), [-1, runs]), np.float32(floor))
    chosen, inside = _best_runs(nodes, table, peaks, runs, [count])
    return _inside_runs(nodes, chosen, _top(nodes, inside, [count], floor), length)


def open_top_k(
    nodes: NodeBuilder, values: Any, *, step: int, typical: int, count: int, floor: float
) -> tuple[Any, Any]:
    """Return what `top_k` does of a number of values that is known to be a multiple of `step`.

    typical: how many values there are when it matters how long it takes. Where there are fewer than `count`, the
    last are -inf, with the index 0.
    """
    total = nodes("Gather", nodes("Shape", nodes("Reshape", values, [0, -1])), [1], axis=0)  # (1,)
    length = run_length(typical, count, step)
    if length == 1:
        flat = nodes("Max", nodes("Reshape", values, [0, -1]), np.float32(floor))
        taken = nodes("Min", total, [count])
        best, index = nodes("TopK", flat, taken, axis=1, outputs=2)
        return _filled(nodes, best, -np.inf, count), _filled(nodes, index, 0, count)
    runs = nodes("Div", total, [length])
    table = nodes("Reshape", values, [-1, length])  # (B*runs, length)
    peaks = nodes("Reshape", _reduce_max(nodes, table), nodes("Concat", [-1], runs, axis=0))
    peaks = nodes("Max", peaks, np.float32(floor))
    taken = nodes("Min", runs, [count])
    chosen, inside = _best_runs(nodes, table, peaks, runs, taken)
    most = nodes("Min", nodes("Mul", taken, [length]), [count])
    best, index = _inside_runs(nodes, chosen, _top(nodes, inside, most, floor), length)
    return _filled(nodes, best, -np.inf, count), _filled(nodes, index, 0, count)


def _top(nodes: NodeBuilder, values: Any, count: Any, floor: float) -> Any:
    """Return the best of (B, ...) values, raised to a floor, and their flat places."""
    flat = nodes("Max", nodes("Reshape", values, [0, -1]), np.float32(floor))
    return nodes("TopK", flat, count, axis=1, outputs=2)


def _best_runs(nodes: NodeBuilder, table: Any, peaks: Any, runs: Any, taken: Any) -> tuple[Any, Any]:
    """Return the runs with the highest peaks by number, in their order, and these rows of (B*runs, length)."""
    _, chosen = nodes("TopK", peaks, taken, axis=1, outputs=2)
    chosen, _ = nodes("TopK", chosen, taken, axis=1, largest=0, outputs=2)
    images = nodes("Range", 0, nodes("Gather", nodes("Shape", chosen), 0, axis=0), 1)
    rows = nodes("Add", chosen, nodes("Unsqueeze", nodes("Mul", images, runs), [1]))
    return chosen, nodes("Gather", table, rows, axis=0)  # (B, taken, length)


def _inside_runs(nodes: NodeBuilder, chosen: Any, found: Any, length: int) -> tuple[Any, Any]:
    """Return values found inside the chosen runs, and their flat indices among all."""
    best, place = found
    run, offset = divide(nodes, place, length)
    return best, nodes("Add", nodes("Mul", nodes("GatherElements", chosen, run, axis=1), length), offset)


def _filled(nodes: NodeBuilder, values: Any, value: Any, count: int) -> Any:
    """Return (B, some) values as (B, count)."""
    missing = nodes("Sub", [count], nodes("Gather", nodes("Shape", values), [1], axis=0))
    pads = nodes("Concat", [0, 0, 0], missing, axis=0)
    constant = np.float32(value) if value else np.int64(value)
    return nodes("Reshape", nodes("Pad", values, pads, constant), [-1, count])


def run_length(total: int, count: int, step: int = 0) -> int:
    """Return the divisor of `total` for which runs and values inside `count` runs are fewest together.

    With a `step`, a divisor of that, where `total` is only one of its multiples.

    A multiple of a vector's lanes if there is one: the maximum over other lengths takes up to half as long again.
    1 says that a single TopK will do.
    """
    if total <= FEW * count:
        return 1
    divisors = [length for length in range(2, total // count + 1) if (step or total) % length == 0]
    even = [length for length in divisors if length % LANES == 0]
    return min(even or divisors or [1], key=lambda length: total // length + count * length)


def _reduce_max(nodes: NodeBuilder, table: Any) -> Any:
    """Return the maximum of each row; the axes became an input with opset 18."""
    if nodes.graph.opset < 18:
        return nodes("ReduceMax", table, axes=[1], keepdims=0)
    return nodes("ReduceMax", table, [1], keepdims=0)


def stable_top_k(nodes: NodeBuilder, values: Any, *, total: int, count: int) -> tuple[Any, Any]:
    """Return the best `count` of (B, total) values and their indices, ties to the lower index in any runtime.

    Which they are is decided by (above, at or below the last of them, index), which has no ties; a full sort takes
    ten times as long. The sorted values then fall into runs of equal ones: (number of the run, index).
    """
    best, _ = nodes("TopK", values, [count], axis=1, outputs=2)
    last = nodes("Gather", best, [count - 1], axis=1)
    below = nodes("Cast", nodes("Greater", last, values), to=onnx.TensorProto.INT64)
    above = nodes("Cast", nodes("Greater", values, last), to=onnx.TensorProto.INT64)
    key = nodes("Add", nodes("Mul", nodes("Sub", below, above), total), np.arange(total))
    _, chosen = nodes("TopK", key, [count], axis=1, largest=0, outputs=2)
    values = nodes("GatherElements", values, chosen, axis=1)
    ranked, place = nodes("TopK", values, [count], axis=1, outputs=2)
    index = nodes("GatherElements", chosen, place, axis=1)
    previous = nodes("Gather", ranked, np.maximum(np.arange(count) - 1, 0), axis=1)
    starts = nodes("Cast", nodes("Not", nodes("Equal", ranked, previous)), to=onnx.TensorProto.INT64)
    run = nodes("CumSum", starts, np.int64(1))
    key = nodes("Add", nodes("Mul", run, total), index)
    _, pick = nodes("TopK", key, [count], axis=1, largest=0, outputs=2)
    return nodes("GatherElements", ranked, pick, axis=1), nodes("GatherElements", index, pick, axis=1)


def divide(nodes: NodeBuilder, value: Any, by: Any, *, below: int = 0) -> tuple[Any, Any]:
    """Return quotient and remainder of integers under `below`, also where a runtime divides in float32."""
    quotient = nodes("Div", value, by)
    remainder = nodes("Sub", value, nodes("Mul", quotient, by))
    if below > FLOAT32_INTEGERS:
        over = nodes("Cast", nodes("GreaterOrEqual", remainder, by), to=onnx.TensorProto.INT64)
        under = nodes("Cast", nodes("Less", remainder, 0), to=onnx.TensorProto.INT64)
        quotient = nodes("Add", quotient, nodes("Sub", over, under))
        remainder = nodes("Sub", value, nodes("Mul", quotient, by))
    return quotient, remainder
