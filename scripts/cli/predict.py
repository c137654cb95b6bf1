"""`predict`: detections of images through a server, as JSON lines, labels of many tools or annotated images."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from retinaserve.scripts.cli.options import (
    COUNT,
    FOLDER,
    Protocol,
    model_option,
    protocol_option,
    server_option,
    server_words,
    tile_options,
    timeout_option,
    tls_options,
    wait_option,
)
from retinaserve.scripts.cli.output import finish, print_predictions, tiled, warn

if TYPE_CHECKING:
    from retinaserve.eval.client.transport import TlsFiles
    from retinaserve.eval.tiled import Tiling

STYLES = ("jsonl", "coco", "geojson", "csv", "labelstudio", "yolo", "voc")


@click.command()
@click.argument("images", nargs=-1, required=True)
@server_option
@protocol_option
@model_option
@click.option("--output", type=FOLDER, help="Write annotated images into this directory.")
@click.option(
    "--format",
    "style",
    type=click.Choice(STYLES),
    default="jsonl",
    help="What is printed; yolo and voc are written into --labels.",
)
@click.option("--labels", type=FOLDER, help="For yolo and voc: a folder for a file an image, to label on from.")
@tile_options
@click.option("--score", type=click.FloatRange(0, 1), default=0.3, help="Leave weaker detections out.")
@click.option("--concurrency", type=COUNT, default=8, help="Requests in flight at a time.")
@timeout_option
@wait_option
@tls_options
@click.option("--quiet", is_flag=True, help="Print no detections; for use with --output.")
def predict(
    images: tuple[str, ...],
    server: str,
    protocol: Protocol | None,
    ensemble: str,
    output: Path | None,
    style: str,
    labels: Path | None,
    score: float,
    concurrency: int,
    timeout: float,
    wait: float,
    tls: "TlsFiles | None",
    tiling: "Tiling | None",
    quiet: bool,
) -> None:
    """Detect objects in IMAGES (files, directories, patterns) through a server.

    Prints a JSON line an image, or one file of another format. A bad image is reported on stderr and fails none
    of the others; the exit code is then 3.
    """
    from retinaserve.eval.client.client import Client
    from retinaserve.training.images import find_images

    if (labels is not None) != (style in ("yolo", "voc")):
        raise click.UsageError(
            "--format yolo and voc go with --labels DIR, a file an image; the others are printed"
        )
    files = find_images(images, left_out=warn)
    with Client(
        server, protocol=protocol, model=ensemble, timeout=timeout, wait=wait, concurrency=concurrency, tls=tls
    ) as client:
        style = "none" if quiet else style
        failed = print_predictions(
            files, tiled(client, tiling), score=score, style=style, output=output, labels=labels
        )
        where = client.servers
    if labels:
        click.echo(f"labels of {len(files) - failed} images: {labels}", err=True)
    if output:
        click.echo(f"{len(files) - failed} annotated images: {output}", err=True)
    finish(
        failed, len(files), f"retinaserve eval {server_words(where, tls=tls)} --images DIR --annotations FILE.json"
    )
