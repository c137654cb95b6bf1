"""`export`: from a checkpoint to the graph or plan that is deployed. Other verbs share its calibration options."""

import json
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from retinaserve.scripts.cli.options import PATH, decoding_options
from retinaserve.scripts.cli.output import name_next, progress
from retinaserve.training.errors import Exit, UserError
from retinaserve.training.files import write_json

if TYPE_CHECKING:
    from retinaserve.build_tools.engine.builder import BuiltPlan
    from retinaserve.build_tools.export import Exported
    from retinaserve.build_tools.graph.graft import Flavour
    from retinaserve.build_tools.graph.onnx_io import Precision
    from retinaserve.build_tools.quantize.calibrate import Int8Options
    from retinaserve.build_tools.quantize.ranges import Calibrator
    from retinaserve.training.pixels import Decoding

JSON = click.option("--json", "json_path", type=PATH, help="Also write what was done to this file.")
CALIBRATORS = ("minmax", "percentile", "entropy")  # the default first
PLUGINS = Path("build/plugins/libretinaserve_plugins.so")
SHOWN = 5
FEW_IMAGES = 100  # to calibrate with: docs/benchmarks.md has what few cost
Verb = TypeVar("Verb", bound=Callable[..., Any])

_CALIBRATION = (
    click.option(
        "--calibration-images",
        type=PATH,
        metavar="DIR|JSON",
        help="INT8: images like those to come, a folder or a COCO JSON; the training set will do.",
    ),
    click.option(
        "--calibration-count",
        type=click.IntRange(1),
        default=300,
        help="INT8: images to draw; all where there are fewer.",
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
    decoding: "Decoding",
) -> "Int8Options":
    """Return the options as one. Raises UserError where there are no images."""
    from retinaserve.build_tools.quantize.calibrate import Int8Options

    if calibration_images is None:
        raise UserError(
            "INT8 needs --calibration-images",
            "a folder of images like those to come, or a COCO JSON: its ranges are measured on them",
            code=Exit.USAGE,
        )
    return Int8Options(
        calibration_images, calibration_count, calibrator, seed, tuple(exclude), calibration_cache, decoding
    )


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
@click.option(
    "--timing-cache", type=PATH, metavar="FILE", help="Plan: keep timings here, for quicker builds to come."
)
@click.option("--plugins", type=PATH, default=PLUGINS, help="Plan: the library of our TensorRT plugins.")
@JSON
def export(
    model: Path,
    output: Path,
    size: tuple[int, int] | None,
    flavour: "Flavour | None",
    precision: "Precision | None",
    max_detections: int | None,
    nms_iou: float | None,
    score_threshold: float | None,
    batch: tuple[int, int, int],
    timing_cache: Path | None,
    plugins: Path,
    json_path: Path | None,
    **calibration: Any,
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
            size=size,
            precision=precision or "fp32",
            flavour=flavour,
            calibration_images=int8_options(**calibration) if precision == "int8" else None,
            engine=engine,
            max_detections=max_detections,
            nms_iou=nms_iou,
            score_threshold=score_threshold,
            progress=partial(progress, title="calibrating"),
            build_progress=show,
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
        click.echo(f"{record_path(exported.path)}: the images it was calibrated with", err=True)
    rounding = Rounding.read(load_graph(exported.path))
    if rounding.values:
        report["rounding"] = asdict(rounding)
        click.echo(
            f"weights in FP16: {rounding.values} values up to {rounding.largest:.3g}, "
            f"{rounding.denormal} below 6.1e-5 with fewer digits, {rounding.zeroed} below 3e-8 became zero",
            err=True,
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
    click.echo(f"{report.layers} layers; convolutions: {kinds}; {fallen}", err=True)
    for name in report.fallen[:SHOWN]:
        click.secho(f"fell back: {name}", fg="yellow", err=True)
    for remark in built.engine.remarks:
        click.secho(remark, fg="yellow", err=True)
    found = {"plan": str(plan), "seconds": round(built.engine.seconds, 1), **asdict(report)}
    return {**found, "manifest": json.loads(manifest.to_json())}


def print_calibration(record: Mapping[str, Any]) -> None:
    """Print what an INT8 graph was made with, and which images could not be read."""
    images = record["pictures"]
    for bad in images["unreadable"][:SHOWN]:
        click.secho(f"left out: {bad['file']}: {bad['reason']}", fg="yellow", err=True)
    unreadable = len(images["unreadable"])
    if unreadable > SHOWN:
        click.secho(f"left out: {unreadable - SHOWN} more unreadable images", fg="yellow", err=True)
    excluded = record["excluded"]
    click.echo(f"{record['quantized']} layers in INT8, {len(excluded)} left in float as asked", err=True)
    click.echo(
        f"ranges: {record['calibrator']} over {images['count']} of {images['available']} images, "
        f"{unreadable} could not be read",
        err=True,
    )
    if images["count"] < FEW_IMAGES:
        click.secho(
            f"{images['count']} images are few to calibrate with: a few hundred keep points of AP; "
            "retinaserve precisions says what it costs here",
            fg="yellow",
            err=True,
        )


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
    from tqdm import tqdm

    bar: Any = None
    shown: tuple[int, str] | None = None

    def show(share: float, doing: str) -> None:
        nonlocal bar, shown
        if (int(100 * share), doing) == shown:  # it is called thousands of times
            return
        if bar is None:  # `disable=None` shows the bar on a terminal only
            bar = tqdm(total=100, unit="%", file=sys.stderr, disable=None, leave=False, dynamic_ncols=True)
        shown = int(100 * share), doing
        bar.n = shown[0]
        bar.set_description(doing)

    try:
        yield show
    finally:
        if bar is not None:
            bar.close()
