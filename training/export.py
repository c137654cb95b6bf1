"""From a torch model to an ONNX file of its raw heads, which is where the graft begins.

    export_heads(model, spec, Path("heads.onnx"))

One file, dynamic batch, names from the spec, batch normalisation folded into the convolutions. The same model
gives the same bytes on every machine. It adds no decode, no NMS and no normalisation (build_tools/graph/graft.py).
"""

import copy
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import onnx
import torch
from torch import nn

from retinaserve.training.files import whole
from retinaserve.training.spec import METADATA_CLASSES, METADATA_SPEC, NETWORK_INPUT, DetectorSpec

OPSET = 18  # the exporter's own; ONNX Runtime, OpenVINO and TensorRT 10 and later all parse it

TRACED = (256, 384)  # where sides are dynamic: multiples of every rule's, and of more than one cell on every level


def export_heads(model: nn.Module, spec: DetectorSpec, path: Path) -> None:
    """Write `model` at the spec's size, or for all canvases of its resize rule; the model is left as it is.

    The file appears whole or not at all.
    """
    with whole(path) as (partial,):
        onnx.save(heads_graph(model, spec), partial)


def heads_graph(
    model: nn.Module, spec: DetectorSpec, *, metadata: Mapping[str, str] | None = None
) -> onnx.ModelProto:
    """Return what `export_heads` writes; the model is left as it is.

    model: FP32 (B, 3, H, W) to a pair (class logits, box deltas) a level, as spec.head_names describes them.
    metadata: further metadata_props of the graph.
    """
    model = copy.deepcopy(model).cpu().eval()
    size, sides, multiple = spec.size, {}, spec.resizing.multiple
    if not spec.resizing.fixed:
        size = TRACED
        sides = {2 + axis: multiple * torch.export.Dim(name) for axis, name in enumerate(("rows", "columns"))}
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            model,
            (torch.zeros(2, 3, *size),),  # a batch of one would be taken for a constant
            input_names=[NETWORK_INPUT],
            output_names=[name for pair in spec.head_names for name in pair],
            dynamic_shapes=({0: torch.export.Dim("batch"), **sides},),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None  # only the exporter of TorchScript returns nothing
    proto = program.model_proto
    _forget_origin(proto)
    described = {METADATA_SPEC: spec.to_json(), METADATA_CLASSES: json.dumps(spec.classes)}
    onnx.helper.set_model_props(proto, {**(metadata or {}), **described})
    onnx.checker.check_model(proto, full_check=True)
    return proto


def _forget_origin(proto: onnx.ModelProto) -> None:
    """Drop the stack traces and file names that the exporter leaves on every node."""
    graph = proto.graph
    for item in (graph, *graph.node, *graph.initializer, *graph.input, *graph.output, *graph.value_info):
        item.ClearField("metadata_props")
        item.ClearField("doc_string")


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's remarks on packages it does without and on its own deprecated calls."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
