"""`build`: from a checkpoint, a graph or a plan to a Triton repository."""

import shlex
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from retinaserve.plugins.tiles import OVERLAP
from retinaserve.scripts.cli.deploy.int8 import Calibration, calibration_options, print_calibration
from retinaserve.scripts.cli.options import PATH, TileSize, also_json_option, decoding_options
from retinaserve.scripts.cli.output import name_next, note, progress
from retinaserve.training.errors import Exit, UserError
from retinaserve.training.files import write_json

if TYPE_CHECKING:
    from retinaserve.build_tools.engine.manifest import Target
    from retinaserve.build_tools.repository.configs import Profile
    from retinaserve.training.pixels import Decoding


class Arithmetic(click.Choice[str]):
    """A choice of precisions that takes f32 for fp32, as it was called before."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the choice that a word means."""
        return super().convert("fp32" if value == "f32" else value, param, ctx)


@click.command()
@click.argument("model", type=PATH)
@click.option("--profile", type=click.Choice(["cpu", "gpu"]), default="cpu", help="The server that it is for.")
@click.option("--output", type=PATH, required=True, help="The repository; an existing one gets the next version.")
@click.option(
    "--precision",
    type=Arithmetic(["fp32", "bf16", "int8"]),
    default="fp32",
    help="fp32, bf16: what the CPU computes in where the graph is float. int8: quantize the checkpoint first, and "
    "compute in bf16 what stays float. bf16 is fp32 on a processor that has none.",
)
@calibration_options
@click.option(
    "--max-batch",
    type=click.IntRange(1, 256),
    help="Images of one execution.  [default: 4, or the plan's]",
)
@click.option(
    "--max-queue",
    type=click.IntRange(1, 4096),
    help="CPU profile: requests that wait, at most; more are refused at once. 32, or two batches. A detector that "
    "takes a second for an image wants fewer: who waits 30 s is refused too.",
)
@decoding_options
@click.option(
    "--tile",
    type=TileSize(),
    metavar="auto|H,W",
    help="Add detector_tiled: it cuts images into tiles, and merges. auto: as trained, or of the model's size.",
)
@click.option("--overlap", type=click.FloatRange(0, 0.9), default=OVERLAP, help="Of its tiles: share of a side.")
@click.option(
    "--triton-version",
    metavar="VERSION",
    default="26.08",
    help="GPU profile: the server it is for, as its container's version or its own (2.72).",
)
@click.option("--plugins", type=PATH, help="GPU profile: the server's plugin library, compared with the plan's.")
@click.option(
    "--tensorrt", metavar="VERSION", help="GPU profile: the server's TensorRT.  [default: this machine's]"
)
@click.option(
    "--compute-capability",
    metavar="N.N",
    help="GPU profile: of the GPU that serves, such as 8.9.  [default: this one's]",
)
@click.option(
    "--max-inflight",
    type=click.IntRange(min=0),
    default=0,
    help="GPU profile: requests between two steps, at most; 0: no limit. From Triton 25.11 on.",
)
@also_json_option
def build(
    model: Path,
    profile: "Profile",
    output: Path,
    precision: str,
    int8: Calibration,
    decoding: "Decoding",
    triton_version: str,
    plugins: Path | None,
    tensorrt: str | None,
    compute_capability: str | None,
    json_path: Path | None,
    **chosen: Any,
) -> None:
    """Make the Triton repository for MODEL.

    The cpu profile takes a grafted .onnx, or a checkpoint .pth that is exported first; an INT8 .onnx is served as
    it is. The gpu profile takes a .plan with its manifest beside it, and refuses one that was not built for the
    target. What was set in the configs of a repository that exists stays, unless an option says otherwise.
    """
    from retinaserve.build_tools.repository import builder, configs

    if chosen["max_queue"] and profile == "gpu":
        raise UserError("--max-queue is of the CPU profile", "on a GPU: --max-inflight", code=Exit.USAGE)
    source = click.get_current_context().get_parameter_source
    may_change = ("max_image_bytes", "max_image_pixels", "max_inflight")
    options = configs.BuildOptions(
        **chosen,
        max_image_bytes=decoding.max_bytes,
        max_image_pixels=decoding.max_pixels,
        full_decode=decoding.full,
        triton=configs.triton_version(triton_version),
        asked=frozenset(name for name in may_change if source(name) == click.core.ParameterSource.COMMANDLINE),
    )
    quantized_here = profile == "cpu" and precision == "int8" and model.suffix == ".pth"
    built = builder.build(
        model,
        output,
        profile=profile,
        precision=precision,
        calibration_images=int8(decoding) if quantized_here else None,
        options=options,
        target=_target(plugins, tensorrt, compute_capability) if profile == "gpu" else None,
        progress=partial(progress, title="calibrating"),
    )
    if built.calibration:
        print_calibration(built.calibration)
    arithmetic = configs.INT8_ARITHMETIC if precision == "int8" else precision
    what = f"{profile}, {built.precision}"
    if profile == "cpu":
        what = f"{profile}, {built.precision} graph, {arithmetic} where it is float"
    click.echo(f"{built.repository}: version {built.version} of {', '.join(built.models)} ({what})")
    for setting in built.kept:
        note(f"kept as the repository has it: {setting}")
    report = {"repository": str(built.repository), "version": built.version, "profile": profile}
    if json_path:
        write_json(json_path, {**report, "graph": built.precision, "precision": arithmetic})
    if profile == "gpu":
        name_next(f"serve {built.repository} in NVIDIA's container: docs/serving.md")
    else:
        name_next(f"retinaserve serve {shlex.quote(str(built.repository))}")


def _target(plugins: Path | None, tensorrt: str | None, compute_capability: str | None) -> "Target":
    """Return where the plan will run: this machine, or what the options say of another."""
    from retinaserve.build_tools.engine.manifest import Target, this_target

    here = this_target(plugins)
    if not tensorrt and not compute_capability:
        return here
    # Another machine than this one: what this one has says nothing of it.
    return Target(tensorrt or "", "", compute_capability or "", here.plugins_sha256)
