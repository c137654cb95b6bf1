"""`export`, from a checkpoint to the graph that is deployed, and the options of calibration that verbs share."""

import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from retinaserve.scripts.cli.export_plan import PlanChoices, export_plan, plan_options, tell_rounding
from retinaserve.scripts.cli.options import PATH
from retinaserve.scripts.cli.output import name_next
from retinaserve.training.errors import Exit, UserError
from retinaserve.training.files import write_json

if TYPE_CHECKING:
    from retinaserve.build_tools.graph.graft import Flavour
    from retinaserve.build_tools.quantize.calibrate import Inputs, Int8Options
    from retinaserve.build_tools.quantize.ranges import Calibrator

JSON = click.option("--json", "json_path", type=PATH, help="Also write what was done to this file.")
CALIBRATORS = ("minmax", "percentile", "entropy")  # the default first
SHOWN = 5
FEW_PICTURES = 100  # to calibrate with: docs/benchmarks.md has what few cost
Verb = TypeVar("Verb", bound=Callable[..., Any])

_CALIBRATION = (
    click.option(
        "--calibration-images",
        type=PATH,
        metavar="DIR|JSON",
        help="INT8: pictures like those to come, a folder or a COCO JSON; the training set will do.",
    ),
    click.option(
        "--calibration-count",
        type=click.IntRange(1),
        default=300,
        help="INT8: pictures to draw; all where there are fewer.",
    ),
    click.option(
        "--calibrator",
        type=click.Choice(CALIBRATORS),
        default=CALIBRATORS[0],
        help="INT8: where ranges are cut off: docs/export.md.",
    ),
    click.option("--seed", type=click.IntRange(0), default=0, help="INT8: of the draw."),
    click.option(
        "--exclude",
        multiple=True,
        metavar="LAYER",
        help="INT8: a layer to leave in float, or the beginning of several names; can be repeated.",
    ),
    click.option(
        "--calibration-cache", type=PATH, metavar="DIR", help="INT8: keep ranges here, and take them from here."
    ),
)


def calibration_options(verb: Verb) -> Verb:
    """Give a verb the options of calibration; `int8_options` reads them."""
    for option in reversed(_CALIBRATION):
        verb = option(verb)
    return verb


def int8_options(
    calibration_images: Path | None,
    calibration_count: int,
    calibrator: "Calibrator",
    seed: int,
    exclude: Sequence[str],
    calibration_cache: Path | None,
) -> "Int8Options":
    """Return the options as one. Raises UserError where there are no pictures."""
    from retinaserve.build_tools.quantize.calibrate import Int8Options

    if calibration_images is None:
        raise UserError(
            "INT8 needs --calibration-images",
            "a folder of pictures like those to come, or a COCO JSON: its ranges are measured on them",
            code=Exit.USAGE,
        )
    return Int8Options(calibration_images, calibration_count, calibrator, seed, tuple(exclude), calibration_cache)


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
@calibration_options
@plan_options
@JSON
def export(
    model: Path,
    output: Path,
    size: tuple[int, int] | None,
    flavour: "Flavour | None",
    precision: str | None,
    batch: tuple[int, int, int],
    timing_cache: Path | None,
    plugins: Path,
    json_path: Path | None,
    **calibration: Any,
) -> None:
    """Turn the checkpoint MODEL into the deployable graph OUTPUT (.onnx), or into a TensorRT engine (.plan).

    The graph takes uint8 pictures and answers boxes in the original's pixels: normalisation, decode, NMS and the
    undoing of the letterbox are inside. For INT8 the pictures it was calibrated with are listed beside OUTPUT.

    A plan is for the GPU and the TensorRT it is built with: OUTPUT.json, beside it, says which. MODEL can be an
    exported .onnx there.
    """
    if output.suffix not in (".onnx", ".plan"):
        raise UserError(f"{output}: a file name that ends in .onnx or .plan is expected", code=Exit.USAGE)
    from retinaserve.build_tools.export import ExportOptions, export_detector, record_path
    from retinaserve.build_tools.graph.onnx_io import OnnxGraph, load_graph

    flavour = flavour or ("tensorrt" if output.suffix == ".plan" else "standard")
    precision = precision or "fp32"
    half = precision == "fp16" or (precision == "int8" and flavour == "tensorrt")
    options = ExportOptions(size, flavour, int8_options(**calibration) if precision == "int8" else None, half)
    if output.suffix == ".plan":
        export_plan(model, output, options, PlanChoices(batch, timing_cache, plugins), json_path, progress)
        return
    record = export_detector(model, output, options, progress=progress)
    spec = OnnxGraph.read(output).spec
    megabytes = output.stat().st_size / 1e6
    report: dict[str, object] = {
        "onnx": str(output),
        "megabytes": round(megabytes, 3),
        "size": spec.size,
        "classes": spec.classes,
        "flavour": flavour,
        "precision": precision,
    }
    what = f"{len(spec.classes)} classes at {spec.size[0]} x {spec.size[1]}, {precision}, {megabytes:.1f} MB"
    click.echo(f"{output}: {what}")
    if record:
        report["calibration"] = record
        tell_calibration(record)
        click.echo(f"{record_path(output)}: the pictures it was calibrated with", err=True)
    if half:
        report["rounding"] = tell_rounding(load_graph(output))
    if json_path:
        write_json(json_path, report)
    if flavour == "tensorrt":
        name_next(
            shlex.join(["retinaserve", "export", str(output), str(output.with_suffix(".plan"))]),
            where="on the GPU",
        )
    else:
        name_next(f"retinaserve build {shlex.quote(str(output))} --profile cpu --output repository")


def tell_calibration(record: dict[str, Any]) -> None:
    """Say what an INT8 graph was made with, and which pictures could not be read."""
    pictures = record["pictures"]
    for bad in pictures["unreadable"][:SHOWN]:
        click.secho(f"left out: {bad['file']}: {bad['reason']}", fg="yellow", err=True)
    unreadable = len(pictures["unreadable"])
    if unreadable > SHOWN:
        click.secho(f"left out: {unreadable - SHOWN} more unreadable pictures", fg="yellow", err=True)
    excluded = record["excluded"]
    click.echo(f"{record['quantized']} layers in INT8, {len(excluded)} left in float as asked", err=True)
    click.echo(
        f"ranges: {record['calibrator']} over {pictures['count']} of {pictures['available']} pictures, "
        f"{unreadable} could not be read",
        err=True,
    )
    if pictures["count"] < FEW_PICTURES:
        click.secho(
            f"{pictures['count']} pictures are few to calibrate with: a few hundred keep points of AP; "
            "retinaserve precisions says what it costs here",
            fg="yellow",
            err=True,
        )


def progress(inputs: "Inputs", total: int) -> "Inputs":
    """Show how far calibration is, on a terminal."""
    from tqdm import tqdm

    # `disable=None` shows the bar on a terminal only.
    yield from tqdm(inputs, "calibrating", total, unit="image", file=sys.stderr, disable=None, dynamic_ncols=True)
