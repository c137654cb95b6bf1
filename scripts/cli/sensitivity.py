"""`sensitivity`: which layers INT8 hurts."""

import shlex
import sys
from pathlib import Path
from typing import Any

import click

from retinaserve.scripts.cli.export import calibration_options, int8_options
from retinaserve.scripts.cli.options import LABELS_HELP, PATH, decoding_options
from retinaserve.scripts.cli.output import name_next
from retinaserve.training.files import write_json


@click.command()
@click.argument("model", type=PATH)
@click.option("--images", type=PATH, required=True, help="Directory of the validation images.")
@click.option("--annotations", type=PATH, required=True, help=LABELS_HELP)
@click.option("--count", type=click.IntRange(1), default=32, help="Images to look at, spread over the set.")
@click.option("--left-out", type=click.IntRange(0), default=5, help="How many of the worst layers to leave out.")
@calibration_options
@decoding_options
@click.option("--output", type=PATH, help="Draw the worst layers into this PNG.")
@click.option("--json", "json_path", type=PATH, help="Write the numbers to this JSON file.")
def sensitivity(
    model: Path,
    images: Path,
    annotations: Path,
    count: int,
    left_out: int,
    output: Path | None,
    json_path: Path | None,
    **calibration: Any,
) -> None:
    """Find the layers of the checkpoint MODEL that INT8 hurts, for `export --exclude`.

    Quantizes each layer alone, then all but the worst. Noise is what the rounding adds to the raw heads, as a
    share of their variance; AP is in points of 100, as a difference to float.
    """
    from tqdm import tqdm

    from retinaserve.eval.sensitivity import Options, analyse, plot

    options = Options(images, annotations, int8_options(**calibration), count, left_out)
    with tqdm(file=sys.stderr, disable=None, bar_format="{desc}", dynamic_ncols=True) as bar:
        report = analyse(model, options, log=bar.set_description_str)
    click.echo(report.table())
    click.echo(f"{report.images} images, AP in float {100 * report.float_ap:.2f}", err=True)
    if json_path:
        write_json(json_path, report.to_dict())
    if output:
        plot(report, output)
        click.echo(f"plot: {output}", err=True)
    worst = shlex.quote(report.layers[0].name)
    name_next(f"retinaserve export {shlex.quote(str(model))} MODEL.onnx --precision int8 --exclude {worst}")
