"""Whether NVIDIA's compiler takes a graph, and in which precisions it would run, on a machine without a GPU.

    for compiled in compile_check([Path("model.onnx")], ["7.5", "8.9"]):
        compiled.problem, compiled.report.convolutions, compiled.megabytes

TensorRT for RTX has TensorRT's parser and builder and compiles for a GPU that is not there. It has no
implementation of NonMaxSuppression and takes no plugins, so a graph is cut before the first of them: what is
compiled is normalisation, network, and decode up to the candidates. What it makes is thrown away.
"""

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from retinaserve.build_tools.engine.builder import (
    RTX,
    EngineOptions,
    build_engine,
    compute_capability,
    load_tensorrt,
)
from retinaserve.build_tools.engine.layers import LayerReport
from retinaserve.build_tools.engine.listeners import Progress
from retinaserve.build_tools.graph.detection import DECODE, DOMAIN
from retinaserve.build_tools.graph.graft import save
from retinaserve.build_tools.graph.onnx_io import load_graph, metadata_of, read_spec
from retinaserve.training.errors import UserError

# T4; A10; L4; RTX 50
TARGETS = ("7.5", "8.6", "8.9", "12.0")
BATCH = (1, 8, 16)
NMS_OPERATOR = "NonMaxSuppression"
# TensorRT for RTX 1.7 runs every quantized convolution of ours in the float it is dequantized to on Turing.
WITHOUT_INT8 = ("7.5",)


@dataclass(frozen=True)
class Compiled:
    """What the compiler made of one graph for one GPU."""

    graph: Path
    compute_capability: str
    cut: str  # the operator that the graph was cut before, or nothing
    report: LayerReport | None = None
    engine_bytes: int = 0
    seconds: float = 0.0
    refusal: str = ""  # the compiler's reason

    @property
    def problem(self) -> str:
        """What is wrong, in a sentence; nothing where all is well."""
        if self.report is None:
            return self.refusal
        if self.report.unnamed:
            return f"the compiler names no layer for {len(self.report.unnamed)} convolutions"
        if self.report.fallen and self.compute_capability not in WITHOUT_INT8:
            some = ", ".join(self.report.fallen[:3])
            return f"{len(self.report.fallen)} convolutions run in a wider type than the graph's: {some}"
        return ""


def compile_check(
    graphs: Sequence[Path],
    targets: Iterable[str] = TARGETS,
    *,
    batch: tuple[int, int, int] = BATCH,
    progress: Progress | None = None,
) -> Iterator[Compiled]:
    """Compile every graph for every target and give each result as it comes.

    Raises UserError where TensorRT for RTX is missing or does not know a target, and for a file that is no graph
    of ours, before anything is compiled.
    What the compiler refuses is a result.
    """
    trt = load_tensorrt(RTX)
    options = [EngineOptions(batch, compute_capability=target) for target in targets]
    for each in options:
        compute_capability(trt, each.compute_capability)
    cuts = {graph: compilable(graph) for graph in graphs}
    with tempfile.TemporaryDirectory(prefix="retinaserve-") as scratch:
        for graph, (model, cut) in cuts.items():
            path = Path(scratch) / graph.name
            save(model, path)
            for each in options:
                target = each.compute_capability
                show = _named(progress, f"{graph.name} for {target}")
                try:
                    engine = build_engine(trt, path, each, progress=show)
                except UserError as error:
                    reason = error.message.removeprefix(f"{path}: ")
                    yield Compiled(graph, target, cut, refusal=reason)
                else:
                    yield Compiled(graph, target, cut, engine.report, len(engine.data), engine.seconds)


def compilable(path: Path) -> tuple[onnx.ModelProto, str]:
    """Return a graph up to the first operator that TensorRT for RTX lacks, and that operator or nothing.

    Raises UserError for a file that is no detector of ours.
    """
    model = load_graph(path)
    read_spec(model, str(path))
    graph = gs.import_onnx(onnx.shape_inference.infer_shapes(model))
    lacking = [
        node for node in graph.nodes if node.op == NMS_OPERATOR or (node.op, node.domain) == (DECODE, DOMAIN)
    ]
    if not lacking:
        return model, ""
    inputs = {tensor.name for tensor in graph.inputs}
    ends = [
        tensor
        for node in lacking
        for tensor in node.inputs
        if isinstance(tensor, gs.Variable) and tensor.name not in inputs and tensor.dtype == np.float32
    ]
    graph.outputs = list({tensor.name: tensor for tensor in ends}.values())
    graph.cleanup(remove_unused_graph_inputs=True).toposort()
    cut = gs.export_onnx(graph)
    onnx.helper.set_model_props(cut, metadata_of(model))
    onnx.checker.check_model(cut)
    return cut, lacking[0].op


def _named(progress: Progress | None, name: str) -> Progress | None:
    """Return a progress that tells which build it is rather than the builder's phases."""
    return (lambda share, doing: progress(share, name)) if progress else None
