"""`predict`: detections of images through a server, as JSON lines, labels of many tools or annotated images."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from retinaserve.scripts.cli.options import (
    COUNT,
    FOLDER,
    PATH,
    POSITIVE,
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
from retinaserve.training.errors import Exit, UserError

if TYPE_CHECKING:
    from retinaserve.eval.client.transport import TlsFiles
    from retinaserve.eval.tiled import Tiling

STYLES = ("jsonl", "coco", "geojson", "csv", "labelstudio", "yolo", "voc")


@click.command()
@click.argument("images", nargs=-1, required=True)
@server_option
@protocol_option
@model_option
@click.option("--output", type=PATH, help="Directory of annotated images; a file of a video.")
@click.option(
    "--format",
    "style",
    type=click.Choice(STYLES),
    default="jsonl",
    metavar="NAME",
    help="jsonl, coco, geojson, csv, labelstudio; yolo and voc: files in --labels.",
)
@click.option("--labels", type=FOLDER, help="Folder of yolo and voc, to label on from.")
@tile_options
@click.option("--score", type=click.FloatRange(0, 1), default=0.3, help="Leave weaker detections out.")
@click.option("--concurrency", type=COUNT, default=8, help="Requests in flight at a time.")
@timeout_option
@wait_option
@tls_options
@click.option("--fps", type=POSITIVE, help="Most frames a second of a video.  [default: all]")
@click.option("--track", is_flag=True, help="Number a video's objects.")
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
    fps: float | None,
    track: bool,
    quiet: bool,
) -> None:
    """Detect objects in IMAGES (files, directories, patterns) or a video (file, rtsp://, /dev/video0).

    Prints a JSON line an image, or one file of another format. A bad image is reported on stderr and fails none
    of the others; the exit code is then 3.
    """
    from retinaserve.eval.client.client import Client
    from retinaserve.eval.video import is_live, is_video
    from retinaserve.scripts.cli.video import LIVE_CONCURRENCY, print_video
    from retinaserve.training.images import find_images

    if (labels is not None) != (style in ("yolo", "voc")):
        raise click.UsageError(
            "--format yolo and voc go with --labels DIR, a file an image; the others are printed"
        )
    video = images[0] if is_video(images[0]) else ""
    if any(map(is_video, images[1:])) or (video and (len(images) > 1 or style != "jsonl")):
        raise click.UsageError("a video is predicted alone, with --format jsonl")
    if (fps or track) and not video:
        raise click.UsageError("--fps and --track are for a video")
    if video and not is_live(video) and not Path(video).is_file():
        raise UserError(f"{video}: no such file")
    if video and output and not is_video(output.name):
        output = output / f"{Path(video).stem}.mp4"
    if video and output and output.exists() and Path(video).exists() and output.samefile(video):
        raise UserError(f"{output} would be overwritten", "name another file with --output", code=Exit.USAGE)
    if output and not video and output.is_file():
        raise click.UsageError(f"--output {output} is a file, and annotated images go into a directory")
    files = [] if video else find_images(images, left_out=warn)
    concurrency = min(concurrency, LIVE_CONCURRENCY) if is_live(video) else concurrency
    with Client(
        server, protocol=protocol, model=ensemble, timeout=timeout, wait=wait, concurrency=concurrency, tls=tls
    ) as client:
        if video:
            answered, failed = print_video(
                video, tiled(client, tiling), fps=fps, track=track, score=score, quiet=quiet, output=output
            )
            finish(failed, answered + failed, f"retinaserve web {server_words(client.servers, tls=tls)}")
            return
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
