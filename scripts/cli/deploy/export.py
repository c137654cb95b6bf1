"""`export`: from a checkpoint to the graph or plan that is deployed."""

import json
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from retinaserve.scripts.cli.deploy.int8 import SHOWN, Calibration, calibration_options, print_calibration
from retinaserve.scripts.cli.options import PATH, also_json_option, decoding_options
from retinaserve.scripts.cli.output import bar, caution, name_next, note, progress
from retinaserve.training.errors import Exit, UserError
from retinaserve.training.files import write_json

if TYPE_CHECKING:
    from retinaserve.build_tools.engine.builder import BuiltPlan
    from retinaserve.build_tools.export import Exported
    from retinaserve.build_tools.graph.graft import Flavour
    from retinaserve.build_tools.graph.onnx_io import Precision
    from retinaserve.training.pixels import Decoding

PLUGINS = Path("build/plugins/libretinaserve_plugins.so")


@click.command()
@click.argument("model", type=PATH)
@click.argument("output", type=PATH)
@click.option(
    "--size",
    type=click.IntRange(min=32),
    nargs=2,
    metavar="H W",
    help="Input size, multiples of the largest stride; the checkpoint's if not given.",
)
@click.option(
    "--flavour",
    type=click.Choice(["standard", "tensorrt"]),
    show_default="tensorrt for a .plan, standard for an .onnx",
    help="Decode and NMS: standard operators for any runtime, or this project's TensorRT plugins.",
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16", "int8"]),
    show_default="fp32",
    help="What the network computes in; decode and NMS are float always. For TensorRT, int8 stands among fp16.",
)
@click.option(
    "--max-detections",
    type=click.IntRange(1),
    show_default="the checkpoint's: 100",
    help="Boxes of an image, at most.",
)
@click.option(
    "--nms-iou",
    type=click.FloatRange(0, 1, min_open=True),
    show_default="the checkpoint's: 0.5",
    help="Of two boxes of a class that overlap more, the weaker goes.",
)
@click.option(
    "--score-threshold",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    show_default="the checkpoint's: 0.05",
    help="What scores less is never answered.",
)
@calibration_options
@decoding_options
@click.option(
    "--batch",
    type=click.IntRange(1),
    nargs=3,
    metavar="MIN OPT MAX",
    default=(1, 8, 16),
    help="Plan: batch sizes it takes, and the one it is fastest at.",
)
@click.option("--timing-cache", type=PATH, metavar="FILE", help="Plan: keep timings here, for quicker builds.")
@click.option("--plugins", type=PATH, default=PLUGINS, help="Plan: the library of our TensorRT plugins.")
@also_json_option
def export(
    model: Path,
    output: Path,
    flavour: "Flavour | None",
    precision: "Precision | None",
    batch: tuple[int, int, int],
    timing_cache: Path | None,
    plugins: Path,
    json_path: Path | None,
    int8: Calibration,
    decoding: "Decoding",
    **of_graph: Any,
) -> None:
    """Turn the checkpoint MODEL into the deployable graph OUTPUT (.onnx), or into a TensorRT engine (.plan).

    The graph takes uint8 images and answers boxes in the original's pixels: normalisation, decode, NMS and the
    undoing of the letterbox are inside. For INT8 the images it was calibrated with are listed beside OUTPUT.

    A plan is for the GPU and the TensorRT it is built with: OUTPUT.json, beside it, says which. MODEL can be an
    exported .onnx there.
    """
    from retinaserve.build_tools import export as library

    engine = None
    if output.suffix == ".plan":
        from retinaserve.build_tools.engine.builder import EngineOptions

        engine = EngineOptions(batch, plugins, timing_cache)
        if model.suffix == ".onnx":
            _refuse_options()
    with _percent_bar() as show:
        exported = library.export(
            model,
            output,
            precision=precision or "fp32",
            flavour=flavour,
            calibration_images=int8(decoding) if precision == "int8" else None,
            engine=engine,
            progress=partial(progress, title="calibrating"),
            build_progress=show,
            **of_graph,
        )
    report = (
        _print_plan(exported.path, exported.plan) if exported.plan else _print_graph(exported, precision or "fp32")
    )
    if json_path:
        write_json(json_path, report)
    if exported.plan:
        name_next(f"retinaserve build {shlex.quote(str(output))} --profile gpu --output repository")
    elif exported.flavour == "tensorrt":
        command = ["retinaserve", "export", str(output), str(output.with_suffix(".plan"))]
        name_next(shlex.join(command), where="on the GPU")
    else:
        name_next(f"retinaserve build {shlex.quote(str(output))} --profile cpu --output repository")


def _print_graph(exported: "Exported", precision: "Precision") -> dict[str, Any]:
    """Print what was exported, and return it for JSON."""
    from retinaserve.build_tools.export import record_path
    from retinaserve.build_tools.graph.float16 import Rounding
    from retinaserve.build_tools.graph.onnx_io import load_graph

    spec, megabytes = exported.spec, exported.path.stat().st_size / 1e6
    report: dict[str, Any] = {
        "onnx": str(exported.path),
        "megabytes": round(megabytes, 3),
        "size": spec.size,
        "classes": spec.classes,
        "flavour": exported.flavour,
        "precision": precision,
    }
    what = f"{len(spec.classes)} classes at {spec.size_text}, {precision}, {megabytes:.1f} MB"
    click.echo(f"{exported.path}: {what}")
    if exported.calibration:
        report["calibration"] = exported.calibration
        print_calibration(exported.calibration)
        note(f"{record_path(exported.path)}: the images it was calibrated with")
    rounding = Rounding.read(load_graph(exported.path))
    if rounding.values:
        report["rounding"] = asdict(rounding)
        note(
            f"weights in FP16: {rounding.values} values up to {rounding.largest:.3g}, "
            f"{rounding.denormal} below 6.1e-5 with fewer digits, {rounding.zeroed} below 3e-8 became zero"
        )
    return report


def _print_plan(plan: Path, built: "BuiltPlan") -> dict[str, Any]:
    """Print what was built, for what, and where it is not as its graph states; return it for JSON."""
    manifest, report = built.manifest, built.engine.report
    low, best, high = manifest.batch
    where = f"{manifest.gpu} ({manifest.compute_capability})" if manifest.gpu else manifest.compute_capability
    what = f"{manifest.precision} for {where}, TensorRT {manifest.tensorrt}, batch {low} to {high}, best at {best}"
    click.echo(f"{plan}: {what}, {len(built.engine.data) / 1e6:.1f} MB, built in {built.engine.seconds:.0f} s")
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(report.convolutions.items())) or "none named"
    fallen = f"{len(report.fallen)} of them in a wider type than the graph's"
    note(f"{report.layers} layers; convolutions: {kinds}; {fallen}")
    for remark in (*(f"fell back: {name}" for name in report.fallen[:SHOWN]), *built.engine.remarks):
        caution(remark)
    found = {"plan": str(plan), "seconds": round(built.engine.seconds, 1), **asdict(report)}
    return {**found, "manifest": json.loads(manifest.to_json())}


def _refuse_options() -> None:
    """An exported graph has its size, flavour and precision already."""
    from retinaserve.build_tools.export import CUTS

    context = click.get_current_context()
    for name in ("size", "flavour", "precision", "calibration_images", *CUTS):
        if context.get_parameter_source(name) == click.core.ParameterSource.COMMANDLINE:
            raise UserError(
                f"--{name.replace('_', '-')} means nothing for an .onnx: it was chosen when that was exported",
                "export the checkpoint with it",
                code=Exit.USAGE,
            )


@contextmanager
def _percent_bar() -> Iterator[Callable[[float, str], None]]:
    """Give a function that shows, on a terminal, which share of a build is done and what is being done."""
    shown: Any = None
    last: tuple[int, str] | None = None

    def show(share: float, doing: str) -> None:
        nonlocal shown, last
        if (int(100 * share), doing) == last:  # it is called thousands of times
            return
        last = int(100 * share), doing
        shown = shown or bar(100, unit="%", leave=False)
        shown.n = last[0]
        shown.set_description(doing)

    try:
        yield show
    finally:
        if shown is not None:
            shown.close()
