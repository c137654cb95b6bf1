"""The verbs of this folder: `export` from its own file, and `build`, from a graph to a Triton repository."""

import shlex
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from retinaserve.scripts.cli.export import (
    JSON,
    calibration_options,
    int8_options,
    progress,
    tell_calibration,
)
from retinaserve.scripts.cli.gpu_options import GPU_OPTIONS, gpu_build_options, gpu_options, target_of
from retinaserve.scripts.cli.options import COUNT, PATH
from retinaserve.scripts.cli.output import name_next
from retinaserve.training.errors import Exit, UserError
from retinaserve.training.files import write_json

if TYPE_CHECKING:
    from retinaserve.build_tools.repository.configs import Profile


@click.command()
@click.argument("model", type=PATH)
@click.option(
    "--profile", type=click.Choice(["cpu", "gpu"]), default="cpu", help="Which server the repository is for."
)
@click.option("--output", type=PATH, required=True, help="The repository; an existing one gets the next version.")
@click.option(
    "--precision",
    type=click.Choice(["f32", "bf16", "int8"]),
    default="f32",
    help="f32, bf16: what the CPU computes in where the graph is float. int8: quantize the checkpoint first, and "
    "compute in bf16 what stays float. bf16 is f32 on a processor that has none.",
)
@calibration_options
@click.option(
    "--max-batch",
    type=click.IntRange(1, 256),
    help="Pictures of one execution, at most; 4, or what the plan was built for.",
)
@click.option(
    "--max-queue",
    type=click.IntRange(1, 4096),
    help="CPU profile: requests that wait, at most; more are refused at once. 32, or two batches. A detector that "
    "takes a second a picture wants fewer: who waits 30 s is refused too.",
)
@click.option("--max-image-bytes", type=COUNT, default=32 * 1024 * 1024, help="Largest encoded picture.")
@click.option("--max-image-pixels", type=COUNT, default=64_000_000, help="Largest picture.")
@gpu_options
@JSON
def build(
    model: Path,
    profile: "Profile",
    output: Path,
    precision: str,
    max_batch: int | None,
    max_queue: int | None,
    max_image_bytes: int,
    max_image_pixels: int,
    json_path: Path | None,
    **more: Any,
) -> None:
    """Make the Triton repository for MODEL.

    The cpu profile takes a grafted .onnx, or a checkpoint .pth that is exported first; an INT8 .onnx is served as
    it is. The gpu profile takes a .plan with its manifest beside it, and refuses one that was not built for the
    target.
    """
    from retinaserve.build_tools.export import ExportOptions, export_detector
    from retinaserve.build_tools.graph.onnx_io import OnnxGraph
    from retinaserve.build_tools.repository.builder import build_repository
    from retinaserve.build_tools.repository.configs import INT8_ARITHMETIC, BuildOptions

    gpu = {name: more.pop(name) for name in GPU_OPTIONS}
    arithmetic = INT8_ARITHMETIC if precision == "int8" else precision
    if max_queue and profile == "gpu":
        raise UserError("--max-queue is of the CPU profile", "on a GPU: --max-inflight", code=Exit.USAGE)
    limits = {"max_queue": max_queue, **gpu_build_options(gpu)}
    options = BuildOptions(arithmetic, max_batch, max_image_bytes, max_image_pixels, **limits)
    target = target_of(gpu) if profile == "gpu" else None
    with tempfile.TemporaryDirectory(prefix="retinaserve-") as scratch:
        graph = model
        if model.suffix == ".pth" and profile == "cpu":
            graph = Path(scratch) / "model.onnx"
            int8 = int8_options(**more) if precision == "int8" else None
            record = export_detector(model, graph, ExportOptions(int8=int8), progress=progress)
            if record:
                tell_calibration(record)
        if profile == "cpu" and precision == "int8" and OnnxGraph.read(graph).precision != "int8":
            raise UserError(
                f"{model} is a float graph; INT8 is made from the checkpoint",
                "retinaserve export MODEL.pth MODEL.onnx --precision int8 --calibration-images DIR",
                code=Exit.USAGE,
            )
        built = build_repository(graph, output, profile=profile, options=options, target=target)
    what = f"{profile}, {built.precision}"
    if profile == "cpu":
        what = f"{profile}, {built.precision} graph, {arithmetic} where it is float"
    click.echo(f"{built.repository}: version {built.version} of {', '.join(built.models)} ({what})")
    report = {"repository": str(built.repository), "version": built.version, "profile": profile}
    if json_path:
        write_json(json_path, {**report, "graph": built.precision, "precision": arithmetic})
    if profile == "gpu":
        name_next(f"serve {built.repository} in NVIDIA's container: docs/serving.md")
    else:
        name_next(f"retinaserve serve {shlex.quote(str(built.repository))}")
