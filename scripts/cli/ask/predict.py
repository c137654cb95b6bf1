"""`predict`: detections of images or a video through a server, as JSON lines, labels of many tools or images."""

import functools
import json
import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from retinaserve.scripts.cli.options import (
    COUNT,
    FOLDER,
    PATH,
    POSITIVE,
    client_options,
    score_option,
    server_words,
    tile_options,
)
from retinaserve.scripts.cli.output import bar, caution, failure, finish, note, tiled, warn
from retinaserve.training.errors import Exit, UserError

if TYPE_CHECKING:
    from retinaserve.eval.client.transport import TlsFiles
    from retinaserve.eval.tiled import Tiling
    from retinaserve.eval.tracks import Tracker
    from retinaserve.eval.video import Video
    from retinaserve.training.detections import Detections, Detector

STYLES = ("jsonl", "coco", "geojson", "csv", "labelstudio", "yolo", "voc")
LARGEST_DRAWN = 4096  # px, the longer side of an annotated image that was read by windows
LIVE_CONCURRENCY = 2  # more would only be older when they are answered
RECENT = 1000  # answers that the delay is told of


@click.command()
@click.argument("images", nargs=-1, required=True)
@client_options
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
@score_option
@click.option("--concurrency", type=COUNT, default=8, help="Requests in flight at a time.")
@click.option("--fps", type=POSITIVE, help="Most frames a second of a video.  [default: all]")
@click.option("--track", is_flag=True, help="Number a video's objects.")
@click.option("--quiet", is_flag=True, help="Print no detections; for use with --output.")
def predict(
    images: tuple[str, ...],
    server: str,
    ensemble: str,
    output: Path | None,
    style: str,
    labels: Path | None,
    score: float,
    concurrency: int,
    tls: "TlsFiles | None",
    tiling: "Tiling | None",
    fps: float | None,
    track: bool,
    quiet: bool,
    **how: Any,
) -> None:
    """Detect objects in IMAGES (files, directories, patterns) or a video (file, rtsp://, /dev/video0).

    Prints a JSON line an image, or one file of another format. A bad image is reported on stderr and fails none
    of the others; the exit code is then 3.
    """
    from retinaserve.eval.client.client import Client
    from retinaserve.eval.video import is_live, is_video
    from retinaserve.training.images.sources import find_images

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
    with Client(server, model=ensemble, concurrency=concurrency, tls=tls, **how) as client:
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
        where = server_words(client.servers, tls=tls)
    if labels:
        note(f"labels of {len(files) - failed} images: {labels}")
    if output:
        note(f"{len(files) - failed} annotated images: {output}")
    finish(failed, len(files), f"retinaserve eval {where} --images DIR --annotations FILE.json")


def print_predictions(
    files: Sequence[Path],
    detector: "Detector",
    *,
    score: float,
    style: str,
    output: Path | None = None,
    labels: Path | None = None,
) -> int:
    """Print every answer as it comes, or write it into `labels`, draw it into `output`, report the bad; return how
    many were bad.
    """
    from retinaserve.eval.predictions import (
        Prelabels,
        annotated_paths,
        coco_results,
        csv_text,
        geojson,
        json_line,
        label_studio,
    )
    from retinaserve.eval.tiled import answers_of
    from retinaserve.training.detections import ImageError

    targets = annotated_paths(files, output) if output else [None] * len(files)
    written = Prelabels(style, labels, files, detector.class_names) if labels else None
    kept: list[tuple[Path, Detections]] = []
    failed, names = 0, detector.class_names
    json_text = functools.partial(json.dumps, ensure_ascii=False)
    whole: dict[str, Callable[[], str]] = {  # what is printed at the end
        "coco": lambda: json_text(coco_results(kept, names, detector.category_ids)),
        "geojson": lambda: json_text(geojson(kept, names)),
        "labelstudio": lambda: json_text(label_studio(kept, names)),
        "csv": lambda: csv_text(kept, names).rstrip("\n"),
    }
    for file, target, answer in zip(files, targets, answers_of(detector, files), strict=True):
        if isinstance(answer, ImageError):
            failed += 1
            failure(f"{file}: {answer.message}")
            continue
        found = answer.above(score)
        if style in whole:
            kept.append((file, found))
        if written:
            written.write(file, found)
        if style == "jsonl":
            click.echo(json_line(file, found, names))
        if target:
            _draw(file, found, names, target, getattr(detector, "value_range", None))
    if style in whole:
        click.echo(whole[style]())
    return failed


def _draw(
    file: Path,
    found: "Detections",
    class_names: Sequence[str],
    target: Path,
    value_range: tuple[int, int] | None,
) -> None:
    from retinaserve.training.images.draw import draw, open_image
    from retinaserve.training.images.raster import MOST_DECODED, open_raster

    target.parent.mkdir(parents=True, exist_ok=True)
    height, width = found.size or (0, 0)
    try:
        if height * width > MOST_DECODED:
            with open_raster(file) as raster:
                image = raster.reduced(LARGEST_DRAWN)
            found = replace(found, boxes=found.boxes * (image.width / width))
        else:
            image = open_image(file, value_range)
    except (OSError, UserError) as error:  # Pillow is stricter than the server's decoder with what is damaged
        caution(f"{file}: answered, but it can't be drawn: {error}")
        return
    draw(image, found, class_names).save(target, quality=92)


def print_video(
    source: str,
    detector: "Detector",
    *,
    fps: float | None,
    track: bool,
    score: float,
    quiet: bool,
    output: Path | None,
) -> tuple[int, int]:
    """Answer a video until it ends; return how many frames were answered, and how many were not."""
    from PIL import Image

    from retinaserve.eval.predictions import json_line
    from retinaserve.eval.tracks import Tracker
    from retinaserve.eval.video import Video, VideoWriter, detect_frames
    from retinaserve.training.detections import ImageError
    from retinaserve.training.images.draw import draw

    delays: deque[float] = deque(maxlen=RECENT)
    tracker = Tracker(score=score) if track else None
    failed = answered = 0
    with ExitStack() as stack:
        video = stack.enter_context(Video(source, fps=fps))
        writer = stack.enter_context(VideoWriter(output)) if output else None
        shown = stack.enter_context(bar(unit="frame", leave=False))
        # Registered last, so that Ctrl-C, which ends a camera, still tells how it went.
        stack.callback(lambda: _tell(video, answered, delays, tracker))
        for frame, answer in detect_frames(video, detector):
            shown.update()
            if isinstance(answer, ImageError):
                failed += 1
                failure(f"{source}, frame {frame.number}: {answer.message}")
                continue
            answered += 1
            found = tracker.update(answer, frame.time) if tracker else answer.above(score)
            if not quiet:
                line = {"frame": frame.number, "time": round(frame.time, 6)}
                click.echo(json.dumps(line | json.loads(json_line(Path(source), found, detector.class_names))))
            if writer:
                writer.write(draw(Image.fromarray(frame.pixels), found, detector.class_names), frame.time)
            delays.append(time.monotonic() - frame.arrived)
    if output:
        note(f"annotated video: {output}")
    return answered, failed


def _tell(video: "Video", answered: int, delays: "deque[float]", tracker: "Tracker | None") -> None:
    words = f"{video.decoded} frames decoded, {answered} answered"
    words += f", tracks: {tracker.count}" if tracker else ""
    if video.live:
        words += f", {video.dropped} dropped, {video.reconnected} times connected again"
    if delays:
        words += f"; from decoded to answered: median {statistics.median(delays):.2f} s, most {max(delays):.2f} s"
    note(words)
