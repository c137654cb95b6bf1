"""`precisions`: what INT8 costs in accuracy and brings in speed, on your data."""

import shlex
import sys
from pathlib import Path
from typing import Any

import click

from retinaserve.scripts.cli.export import CALIBRATORS, calibration_options, int8_options
from retinaserve.scripts.cli.options import LABELS_HELP, PATH, decoding_options
from retinaserve.scripts.cli.output import name_next
from retinaserve.training.errors import UserError
from retinaserve.training.files import write_json
from retinaserve.training.layouts import BACKBONES

RANDOM_SIZE = (640, 640)
IMAGES = 24


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
    **calibration: Any,
) -> None:
    """Export MODEL in FP32 and INT8, serve each on Triton, and compare accuracy, size and speed in one run.

    MODEL is a checkpoint, or the name of a backbone: then the weights are random and only size and speed say
    anything. Prints a Markdown table; all numbers are in precisions.json under --output.
    """
    from retinaserve.scripts.precisions import Options, compare, markdown, random_checkpoint, to_dict

    output.mkdir(parents=True, exist_ok=True)
    checkpoint = Path(model)
    if model in BACKBONES:
        checkpoint = output / f"{model}.pth"
        random_checkpoint(model, checkpoint, size or RANDOM_SIZE)
        if images is None:
            images = _drawn(output / "pictures")
        calibration["calibration_images"] = calibration["calibration_images"] or images
    if images is None:
        raise UserError("--images is missing", "the images that the flavours are scored and timed on")
    options = Options(output, images, annotations, int8_options(**calibration), compared, size, rounds, seconds)
    rows = compare(checkpoint, options, log=lambda text: click.echo(text, err=True))
    click.echo(markdown(rows))
    target = output / "precisions.json"
    write_json(target, to_dict(rows, shlex.join(sys.argv)))
    click.echo(f"all numbers: {target}", err=True)
    if annotations:
        words = ["retinaserve", "sensitivity", model, "--images", str(images), "--annotations", str(annotations)]
        name_next(f"{shlex.join([*words, '--calibration-images', str(options.int8.images)])}")


def _drawn(folder: Path) -> Path:
    from retinaserve.scripts.shapes.draw import draw_dataset

    if not (folder / "annotations.json").is_file():
        draw_dataset(folder, images=IMAGES, seed=0)
    return folder / "images"
