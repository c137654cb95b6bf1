"""Whether NVIDIA's compiler takes a graph, and in which precisions it would run, on a machine without a GPU.

    python -m retinaserve.scripts.lab.compile_check model.onnx --target 7.5 --target 8.9

TensorRT for RTX has TensorRT's parser and builder and compiles for a GPU that is not there. It has no
implementation of NonMaxSuppression and takes no plugins, so a graph is cut before the first of them: what is
compiled is normalisation, network, and decode up to the candidates. What it makes is thrown away. Without graphs,
detectors of published size with random weights are made first.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
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
    profiles,
)
from retinaserve.build_tools.engine.report import LayerReport
from retinaserve.build_tools.engine.tensorrt import message_log
from retinaserve.build_tools.export import ExportOptions, export_detector
from retinaserve.build_tools.graph.detection import DECODE, DOMAIN
from retinaserve.build_tools.graph.graft import save
from retinaserve.build_tools.graph.onnx_io import load_graph, metadata_of, read_spec
from retinaserve.build_tools.quantize.calibrate import Int8Options
from retinaserve.scripts.lab import run
from retinaserve.scripts.precisions import random_checkpoint
from retinaserve.scripts.shapes.draw import draw_dataset
from retinaserve.training.errors import Exit, UserError
from retinaserve.training.files import write_json

GPUS = {"7.5": "T4", "8.0": "A100", "8.6": "A10", "8.9": "L4", "12.0": "RTX 50", "12.1": "GB10"}
TARGETS = ("7.5", "8.6", "8.9", "12.0")
BATCH = (1, 8, 16)
FLOATS = (np.float32, np.float16)
NMS_OPERATOR = "NonMaxSuppression"
# TensorRT for RTX 1.7 runs every quantized convolution of ours in the float it is dequantized to on Turing.
WITHOUT_INT8 = ("7.5",)
SIZE, IMAGES = (640, 640), 8
WIDTHS = (24, 14, 8, 20, 8, 9, 9)


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

    def row(self) -> list[str]:
        """Return the cells of its line in the table."""
        gpu = f"{self.compute_capability} {GPUS.get(self.compute_capability, '')}".strip()
        if self.report is None:
            return [self.graph.name, gpu, "refused"]
        counts = ", ".join(f"{count} {kind}" for kind, count in sorted(self.report.convolutions.items()))
        sizes = [str(len(self.report.fallen)), f"{self.engine_bytes / 1e6:.1f}", f"{self.seconds:.1f}"]
        return [self.graph.name, gpu, str(self.report.layers), counts, *sizes]


def compile_check(
    graphs: Sequence[Path], targets: Iterable[str] = TARGETS, *, batch: tuple[int, int, int] = BATCH
) -> Iterator[Compiled]:
    """Compile every graph for every target and give each result as it comes; what is refused is a result.

    Raises UserError before anything is compiled where TensorRT for RTX is missing or does not know a target, and
    for a file that is no graph of ours.
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
                try:
                    engine = build_engine(trt, path, each)
                except UserError as error:
                    yield Compiled(graph, target, cut, refusal=error.message.removeprefix(f"{path}: "))
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
        if isinstance(tensor, gs.Variable) and tensor.name not in inputs and tensor.dtype in FLOATS
    ]
    graph.outputs = list({tensor.name: tensor for tensor in ends}.values())
    graph.cleanup(remove_unused_graph_inputs=True).toposort()
    cut = gs.export_onnx(graph)
    onnx.helper.set_model_props(cut, metadata_of(model))
    onnx.checker.check_model(cut)
    return cut, lacking[0].op


def copied_heads(path: Path, target: str, batch: tuple[int, int, int] = BATCH) -> tuple[str, ...]:
    """Return the heads of a graph with plugins that a kernel casts or reorders on their way to the plugin.

    An output of the network takes the plugin's place: half, in vectors of eight channels. Raises UserError for
    what the builder refuses.
    """
    trt = load_tensorrt(RTX)
    model, _ = compilable(path)
    log = message_log(trt)
    builder = trt.Builder(log)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, log)
    if not parser.parse(model.SerializeToString()):
        raise UserError(f"{path}: NVIDIA's parser refuses it: {log.first_error()}")
    heads = [network.get_output(number) for number in range(network.num_outputs)]
    for head in heads:
        head.allowed_formats = 1 << int(trt.TensorFormat.HWC8)
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    for profile in profiles(builder, network, batch, read_spec(model, str(path))):
        config.add_optimization_profile(profile)
    config.num_compute_capabilities = 1
    config.set_compute_capability(compute_capability(trt, target), 0)
    if builder.build_serialized_network(network, config) is None:
        raise UserError(f"{path}: NVIDIA's builder refuses it: {log.first_error()}")
    written = {
        line.split("Outputs: ")[1] for line in log.listing.splitlines() if "LayerType: correlation," in line
    }
    starts = {head.name: f"[ {{ Name: {head.name}, " for head in heads}
    return tuple(
        name for name, start in starts.items()
        if not any(outputs.startswith(start) and "Datatype: Half" in outputs for outputs in written)
    )  # fmt: skip


def make_graphs(folder: Path, backbone: str, *, size: tuple[int, int] = SIZE) -> list[Path]:
    """Write a detector of random weights as <backbone>_<precision>.onnx in each precision, and return the files.

    What a compiler makes of a graph does not depend on what the weights were trained for. INT8 is calibrated with
    drawn images all the same, so that scales are those of real tensors.
    """
    with tempfile.TemporaryDirectory(prefix="retinaserve-") as scratch:
        checkpoint, drawn = Path(scratch) / "model.pth", Path(scratch) / "drawn"
        random_checkpoint(backbone, checkpoint, size)
        draw_dataset(drawn, images=IMAGES, seed=0)
        int8 = Int8Options(drawn / "images", count=IMAGES, calibrator="minmax")
        half, quantized = ExportOptions(half=True), ExportOptions(half=True, int8=int8)
        files = [folder / f"{backbone}_{precision}.onnx" for precision in ("fp32", "fp16", "int8")]
        for file, option in zip(files, (ExportOptions(), half, quantized), strict=True):
            export_detector(checkpoint, file, option)
    return files


def main(words: Sequence[str] | None = None) -> None:
    """Compile graphs with NVIDIA's parser and builder for GPUs that need not be there.

    Exits with 1 where a graph is refused, or a convolution runs in a wider type than its graph states.
    """
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("graphs", type=Path, nargs="*", help="ONNX graphs of `export`.")
    parser.add_argument("--target", action="append", help="Compute capability; may be repeated.")
    parser.add_argument("--batch", type=int, nargs=3, metavar=("MIN", "OPT", "MAX"), default=BATCH)
    parser.add_argument(
        "--backbone", nargs="*", default=["resnet18", "resnet50"], help="Without graphs: what to make."
    )
    parser.add_argument("--output", type=Path, default=Path("runs/compile"), help="Where those that are made go.")
    parser.add_argument("--json", type=Path, help="Also write the results to this file.")
    given = parser.parse_args(words)
    paths = given.graphs or [path for name in given.backbone for path in make_graphs(given.output, name)]
    done: list[Compiled] = []
    for compiled in compile_check(paths, given.target or TARGETS, batch=tuple(given.batch)):
        if not done:
            _print_row(["graph", "GPU", "layers", "convolutions", "fallen", "MB", "seconds"])
        done.append(compiled)
        _print_row(compiled.row())
    if given.json:
        results = [{**asdict(each), "graph": str(each.graph), "problem": each.problem} for each in done]
        write_json(given.json, {"batch": given.batch, "results": results})
    problems = [each for each in done if each.problem]
    for each in problems:
        print(f"{each.graph} on {each.compute_capability}: {each.problem}", file=sys.stderr)
    if problems:
        raise UserError(f"{len(problems)} of {len(done)} builds failed the check", code=Exit.CHECK_FAILED)


def _print_row(cells: Sequence[str]) -> None:
    print("  ".join(f"{cell:<{width}}" for cell, width in zip(cells, WIDTHS, strict=False)).rstrip(), flush=True)


if __name__ == "__main__":
    run(main)
