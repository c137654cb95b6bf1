"""The layers of a raw-heads graph that INT8 can be had for, with names that people can read and type.

    layers = find_layers(onnx.load("heads.onnx"), spec)
    [layer.name for layer in layers]      # backbone.layer1.0.conv1, backbone.layer1.0.conv2+add,
    cls_head.convs.0/p3

A convolution is called as in the checkpoint; in the heads, which are the same for all levels, the level follows. A
sum is called after the convolution it is computed with. It changes no graph (build_tools/quantize/qdq.py does).
"""

import difflib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import onnx_graphsurgeon as gs

from retinaserve.training.errors import Exit, UserError
from retinaserve.training.spec import FIRST_LEVEL, DetectorSpec

PASSING = ("MaxPool", "Resize")  # give out values that came in: what is INT8 before them is INT8 behind them
SHOWN = 3


@dataclass(frozen=True)
class Layer:
    """A convolution or a sum; `data` is the tensor that it takes as INT8."""

    name: str
    kind: Literal["conv", "add"]
    node: str  # its name in the graph
    data: str
    slot: int  # of `data` among the node's inputs


def find_layers(graph: gs.Graph, spec: DetectorSpec) -> list[Layer]:
    """Return the layers in the graph's order; the output convolutions of the heads are not among them.

    Of a sum's two inputs one is the output of a convolution, with which TensorRT and OpenVINO compute the sum in
    one go; that one stays as it is, and the other, the shortcut or the coarser level, is `data`.
    """
    level_of = {name: f"p{FIRST_LEVEL + level}" for level, pair in enumerate(spec.head_names) for name in pair}
    convolutions = [node for node in graph.nodes if node.op == "Conv"]
    users = Counter(_weight(node) for node in convolutions)
    levels = _levels(graph, level_of)
    names: dict[str, str] = {}
    layers: list[Layer] = []
    for node in graph.nodes:
        if node.op == "Conv":
            name = _weight(node).removesuffix(".weight")
            if users[_weight(node)] > 1:
                name += "/" + "".join(sorted(levels[node.name]))
            names[node.name] = name
            if node.outputs[0].name not in level_of:
                layers.append(Layer(name, "conv", node.name, node.inputs[0].name, 0))
        elif node.op == "Add" and all(isinstance(tensor, gs.Variable) for tensor in node.inputs):
            for slot, tensor in enumerate(node.inputs):
                producer = _computed_with(tensor)
                if producer is not None:
                    data = node.inputs[1 - slot].name
                    layers.append(Layer(f"{names[producer.name]}+add", "add", node.name, data, 1 - slot))
                    break
    return layers


def without(layers: Sequence[Layer], excluded: Sequence[str]) -> list[Layer]:
    """Return the layers that no name of `excluded` means: a whole name, or its beginning up to a `.` or `/`.

    Raises UserError for a name that means none.
    """
    for name in excluded:
        if not any(_means(name, layer.name) for layer in layers):
            known = [layer.name for layer in layers]
            near = difflib.get_close_matches(name, known, SHOWN, cutoff=0.3) or known[:SHOWN]
            raise UserError(
                f"--exclude {name}: there is no such layer",
                f"similar are: {', '.join(near)}; `retinaserve sensitivity` lists all of them",
                code=Exit.USAGE,
            )
    return [layer for layer in layers if not any(_means(name, layer.name) for name in excluded)]


def _means(name: str, layer: str) -> bool:
    rest = layer.removeprefix(name)
    return layer == name or (rest != layer and rest[0] in "./")


def _weight(node: gs.Node) -> str:
    return str(node.inputs[1].name)


def _computed_with(tensor: gs.Variable) -> gs.Node | None:
    """Return the convolution that makes a tensor for one consumer alone, with its norm in between or not."""
    while len(tensor.outputs) == 1 and tensor.inputs:
        producer = tensor.inputs[0]
        if producer.op == "Conv":
            return producer
        if producer.op != "BatchNormalization":
            return None
        tensor = producer.inputs[0]
    return None


def _levels(graph: gs.Graph, level_of: dict[str, str]) -> dict[str, set[str]]:
    """Return the levels that each node serves, by the node's name."""
    served: dict[str, set[str]] = {}
    for node in reversed(graph.nodes):
        served[node.name] = set()
        for tensor in node.outputs:
            served[node.name] |= {level_of[tensor.name]} if tensor.name in level_of else set()
            for consumer in tensor.outputs:
                served[node.name] |= served[consumer.name]
    return served
