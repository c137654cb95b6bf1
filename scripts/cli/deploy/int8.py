"""INT8: the options and words of calibration, and `precisions` and `sensitivity`, which say what it costs.

@calibration_options
def verb(int8: Calibration) -> None:
    int8(decoding)          # Int8Options; a UserError where there are no images to calibrate with
"""

import functools
import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import click

from retinaserve.scripts.cli.options import LABELS_HELP, PATH, also_json_option, decoding_options
from retinaserve.scripts.cli.output import caution, name_next, note
from retinaserve.training.errors import Exit, UserError
from retinaserve.training.files import write_json
from retinaserve.training.layouts import BACKBONES

if TYPE_CHECKING:
    from retinaserve.build_tools.quantize.calibrate import Int8Options
    from retinaserve.build_tools.quantize.ranges import Calibrator
    from retinaserve.training.pixels import Decoding

CALIBRATORS = ("minmax", "percentile", "entropy")  # the default first
SHOWN = 5  # names, of what there may be many
FEW_IMAGES = 100  # to calibrate with: docs/benchmarks.md has what few cost
RANDOM_SIZE, IMAGES = (640, 640), 24  # of detectors of random weights


class Calibration(Protocol):
    """The options of calibration as one, with `images` where none were named."""

    def __call__(self, decoding: "Decoding", images: Path | None = None) -> "Int8Options":
        """Raise UserError where there are no images."""


def calibration_options(verb: Callable[..., None]) -> Callable[..., None]:
    """Add the options of calibration; the verb takes them as `int8`, a Calibration."""

    @click.option(
        "--calibration-images",
        type=PATH,
        metavar="DIR|JSON",
        help="INT8: images like those to come, a folder or a COCO JSON; the training set will do.",
    )
    @click.option(
        "--calibration-count",
        type=click.IntRange(1),
        default=300,
        help="INT8: images to draw, at most.",
    )
    @click.option(
        "--calibrator",
        type=click.Choice(CALIBRATORS),
        default=CALIBRATORS[0],
        help="INT8: where ranges end: docs/export.md.",
    )
    @click.option("--seed", type=click.IntRange(0), default=0, help="INT8: of the draw.")
    @click.option(
        "--exclude",
        multiple=True,
        metavar="LAYER",
        help="INT8: a layer to leave in float, or the beginning of several names; can be repeated.",
    )
    @click.option("--calibration-cache", type=PATH, metavar="DIR", help="INT8: keep ranges here, and take them.")
    @functools.wraps(verb)
    def with_calibration(
        *,
        calibration_images: Path | None,
        calibration_count: int,
        calibrator: "Calibrator",
        seed: int,
        exclude: tuple[str, ...],
        calibration_cache: Path | None,
        **rest: Any,
    ) -> None:
        def int8(decoding: "Decoding", images: Path | None = None) -> "Int8Options":
            from retinaserve.build_tools.quantize.calibrate import Int8Options

            source = calibration_images or images
            if source is None:
                raise UserError(
                    "INT8 needs --calibration-images",
                    "a folder of images like those to come, or a COCO JSON: its ranges are measured on them",
                    code=Exit.USAGE,
                )
            return Int8Options(source, calibration_count, calibrator, seed, exclude, calibration_cache, decoding)

        verb(int8=int8, **rest)

    return with_calibration


def print_calibration(record: Mapping[str, Any]) -> None:
    """Print what an INT8 graph was made with, and which images could not be read."""
    images, excluded = record["pictures"], record["excluded"]
    for bad in images["unreadable"][:SHOWN]:
        caution(f"left out: {bad['file']}: {bad['reason']}")
    unreadable = len(images["unreadable"])
    if unreadable > SHOWN:
        caution(f"left out: {unreadable - SHOWN} more unreadable images")
    note(f"{record['quantized']} layers in INT8, {len(excluded)} left in float as asked")
    of = f"{images['count']} of {images['available']} images, {unreadable} could not be read"
    note(f"ranges: {record['calibrator']} over {of}")
    if images["count"] < FEW_IMAGES:
        caution(
            f"{images['count']} images are few to calibrate with: a few hundred keep points of AP; "
            "retinaserve precisions says what it costs here"
        )


@click.command()
@click.argument("model")
@click.option("--images", type=PATH, help="Directory of the images to score and time on.")
@click.option("--annotations", type=PATH, help=f"{LABELS_HELP[:-1]}; without them nothing is scored.")
@click.option("--output", type=PATH, default=Path("runs/precisions"), help="Where graphs and results go.")
@click.option(
    "--compare",
    "compared",
    type=click.Choice(CALIBRATORS),
    multiple=True,
    default=CALIBRATORS,
    help="A calibrator to compare; can be repeated.",
)
@click.option("--size", type=click.IntRange(min=32), nargs=2, metavar="H W", help="Input size of all of them.")
@click.option("--rounds", type=click.IntRange(0), default=3, help="Turns of timing; 0 leaves it out.")
@click.option("--seconds", type=click.FloatRange(3), default=10.0, help="Load on each server in a round.")
@calibration_options
@decoding_options
def precisions(
    model: str,
    images: Path | None,
    annotations: Path | None,
    output: Path,
    compared: tuple[Any, ...],
    size: tuple[int, int] | None,
    rounds: int,
    seconds: float,
    int8: Calibration,
    decoding: "Decoding",
) -> None:
    """Export MODEL in FP32 and INT8, serve each on Triton, and compare accuracy, size and speed in one run.

    MODEL is a checkpoint, or the name of a backbone: then the weights are random and only size and speed say
    anything. Prints a Markdown table; all numbers are in precisions.json under --output.
    """
    from retinaserve.scripts.precisions import Options, compare, markdown, random_checkpoint, to_dict
    from retinaserve.scripts.shapes.draw import draw_dataset

    output.mkdir(parents=True, exist_ok=True)
    checkpoint = Path(model)
    if model in BACKBONES:
        checkpoint = output / f"{model}.pth"
        random_checkpoint(model, checkpoint, size or RANDOM_SIZE)
        if images is None:
            drawn = output / "pictures"
            if not (drawn / "annotations.json").is_file():
                draw_dataset(drawn, images=IMAGES, seed=0)
            images = drawn / "images"
    if images is None:
        raise UserError("--images is missing", "the images that the flavours are scored and timed on")
    calibration = int8(decoding, images if model in BACKBONES else None)
    options = Options(output, images, annotations, calibration, compared, size, rounds, seconds)
    rows = compare(checkpoint, options, log=note)
    click.echo(markdown(rows))
    target = output / "precisions.json"
    write_json(target, to_dict(rows, shlex.join(sys.argv)))
    note(f"all numbers: {target}")
    if annotations:
        words = ["retinaserve", "sensitivity", model, "--images", str(images), "--annotations", str(annotations)]
        name_next(shlex.join([*words, "--calibration-images", str(calibration.images)]))


@click.command()
@click.argument("model", type=PATH)
@click.option("--images", type=PATH, required=True, help="Directory of the validation images.")
@click.option("--annotations", type=PATH, required=True, help=LABELS_HELP)
@click.option("--count", type=click.IntRange(1), default=32, help="Images to look at, spread over the set.")
@click.option("--left-out", type=click.IntRange(0), default=5, help="How many of the worst layers to leave out.")
@calibration_options
@decoding_options
@click.option("--output", type=PATH, help="Draw the worst layers into this PNG.")
@also_json_option
def sensitivity(
    model: Path,
    images: Path,
    annotations: Path,
    count: int,
    left_out: int,
    output: Path | None,
    json_path: Path | None,
    int8: Calibration,
    decoding: "Decoding",
) -> None:
    """Find the layers of the checkpoint MODEL that INT8 hurts, for `export --exclude`.

    Quantizes each layer alone, then all but the worst. Noise is what the rounding adds to the raw heads, as a
    share of their variance; AP is in points of 100, as a difference to float.
    """
    from tqdm import tqdm

    from retinaserve.eval.sensitivity import Options, analyse, plot

    options = Options(images, annotations, int8(decoding), count, left_out)
    with tqdm(file=sys.stderr, disable=None, bar_format="{desc}", dynamic_ncols=True) as doing:
        report = analyse(model, options, log=doing.set_description_str)
    click.echo(report.table())
    note(f"{report.images} images, AP in float {100 * report.float_ap:.2f}")
    if json_path:
        write_json(json_path, report.to_dict())
    if output:
        plot(report, output)
        note(f"plot: {output}")
    worst = shlex.quote(report.layers[0].name)
    name_next(f"retinaserve export {shlex.quote(str(model))} MODEL.onnx --precision int8 --exclude {worst}")
