"""Appends ONNX nodes to a graph by calls: what is built with it reads like arithmetic.

    nodes = NodeBuilder(graph)
    half = nodes("Mul", nodes("Add", a, b), 0.5)

It infers no shapes and checks nothing: the graft does, once, at its end (build_tools/graph/graft.py).
"""

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

PREFIX = "detect"  # of the names of all nodes and tensors made here


class NodeBuilder:
    """Appends nodes to a graph: `nodes("Mul", a, 2.0)` is a new tensor; arrays and numbers become constants."""

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
