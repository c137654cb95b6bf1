"""Click commands of this folder: `infer`, `predict`, `eval`; `verify` and `bench` from their own files.

They parse, call and print; results go to stdout, everything else to stderr. What is heavy is imported by the verb
that needs it.
"""

import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from eval.bench_command import bench
from eval.options import FILE, FOLDER, json_option, name_next, progress, wait_option, write_json
from eval.verify_command import verify
from training.errors import Exit

if TYPE_CHECKING:
    from eval.detections import Detections, Detector, ImageError
    from eval.report import Report

    Answers = Iterator[Detections | ImageError]

PROTOCOLS = click.Choice(["grpc", "http"])

server_option = click.option(
    "--server",
    metavar="HOST:PORT",
    default="localhost:8001",
    help="The Triton server: HOST:PORT, grpc://HOST:PORT or http://HOST:PORT.",
)
protocol_option = click.option(
    "--protocol", type=PROTOCOLS, help="What HOST:PORT speaks where --server does not say it: gRPC, or HTTP."
)
timeout_option = click.option(
    "--timeout",
    type=click.FloatRange(min=0.001),
    default=60.0,
    help="Seconds a picture may take, queueing included.",
)
concurrency_option = click.option(
    "--concurrency", type=click.IntRange(min=1), default=8, help="Requests in flight at a time."
)


@click.command()
@click.argument("images", nargs=-1, required=True)
@server_option
@protocol_option
@click.option("--output", type=FOLDER, help="Write annotated pictures into this directory.")
@click.option("--format", "style", type=click.Choice(["jsonl", "coco"]), default="jsonl", help="What is printed.")
@click.option("--score", type=click.FloatRange(0, 1), default=0.3, help="Leave weaker detections out.")
@concurrency_option
@timeout_option
@wait_option
@click.option("--quiet", is_flag=True, help="Print no detections; for use with --output.")
def predict(
    images: tuple[str, ...],
    server: str,
    protocol: Literal["grpc", "http"] | None,
    output: Path | None,
    style: str,
    score: float,
    concurrency: int,
    timeout: float,
    wait: float,
    quiet: bool,
) -> None:
    """Detect objects in IMAGES (files, directories, patterns) through a server.

    Prints a JSON line a picture, or one COCO file. A bad picture is reported on stderr and fails none of the
    others; the exit code is then 3.
    """
    from eval.client import Client
    from eval.images import find_images

    files = find_images(images)
    with Client(server, protocol=protocol, timeout=timeout, wait=wait, concurrency=concurrency) as client:
        style = "none" if quiet else style
        failed = _print_predictions(files, client, score=score, style=style, output=output)
        where = str(client.endpoint)
    if output:
        click.echo(f"{len(files) - failed} annotated pictures: {output}", err=True)
    name_next(f"retinaserve eval --server {where} --images DIR --annotations FILE.json")
    _exit_if(failed, len(files))


@click.command("eval")
@server_option
@protocol_option
@click.option("--images", type=FOLDER, required=True, help="Directory of the pictures.")
@click.option("--annotations", type=FILE, required=True, help="COCO annotations of the pictures.")
@concurrency_option
@timeout_option
@wait_option
@json_option
@click.option(
    "--output", type=FOLDER, help="Write curves, a contact sheet and all detections into this directory."
)
def evaluate(
    server: str,
    protocol: Literal["grpc", "http"] | None,
    images: Path,
    annotations: Path,
    concurrency: int,
    timeout: float,
    wait: float,
    json_file: Path | None,
    output: Path | None,
) -> None:
    """Score a server on a labelled set: encoded pictures in, COCO average precision out.

    A picture the server refuses counts as one without detections; the exit code is then 3.
    """
    from eval.client import Client
    from eval.coco import Annotations
    from eval.report import judge

    truth = Annotations.load(annotations)
    with Client(server, protocol=protocol, timeout=timeout, wait=wait, concurrency=concurrency) as client:
        report = judge(client, truth, images, progress=progress)
        where = str(client.endpoint)
    _print_report(report, json_file)
    if output:
        report.write_pictures(output)
        click.echo(f"curves, contact sheet and detections: {output}", err=True)
    name_next(f"retinaserve bench --server {where} --images {shlex.quote(str(images))}")
    _exit_if(len(report.errors), len(report.files))


@click.command()
@click.argument("model", type=FILE)
@click.option("--images", type=FOLDER, required=True, help="Directory of the pictures.")
@click.option("--annotations", type=FILE, help="COCO annotations of the pictures; with them it scores.")
@click.option("--output", type=FILE, help="With --annotations: write all detections to this COCO result file.")
@click.option("--score", type=click.FloatRange(0, 1), default=0.3, help="Without --annotations: leave weaker out.")
@click.option("--batch", type=click.IntRange(min=1), default=8, help="Pictures in a batch.")
@click.option("--threads", type=click.IntRange(min=0), default=0, help="Threads; 0 takes all cores.")
@json_option
def infer(
    model: Path,
    images: Path,
    annotations: Path | None,
    output: Path | None,
    score: float,
    batch: int,
    threads: int,
    json_file: Path | None,
) -> None:
    """Run MODEL (.pth or .onnx) on pictures without a server.

    With --annotations it prints the scores that `eval` prints for a server, otherwise a JSON line a picture.
    """
    from eval.coco import Annotations
    from eval.detectors import open_detector
    from eval.images import find_images
    from eval.report import judge

    if not annotations and (json_file or output):
        raise click.UsageError("--json and --output need --annotations; without them, redirect what is printed")
    truth = Annotations.load(annotations) if annotations else None
    detector = open_detector(model, threads=threads, batch=batch)
    if truth:
        report = judge(detector, truth, images, progress=progress)
        _print_report(report, json_file)
        failed, count = len(report.errors), len(report.files)
        if output:
            write_json(output, report.coco_results(), indent=None)
            click.echo(f"detections: {output}", err=True)
    else:
        files = find_images([images])
        failed, count = _print_predictions(files, detector, score=score, style="jsonl"), len(files)
    quoted = shlex.quote(str(model))
    if model.suffix == ".pth":
        name_next(f"retinaserve export {quoted} {shlex.quote(str(model.with_suffix('.onnx')))}")
    else:
        name_next(f"retinaserve build {quoted} --profile cpu --output REPO")
    _exit_if(failed, count)


def _print_predictions(
    files: Sequence[Path], detector: "Detector", *, score: float, style: str, output: Path | None = None
) -> int:
    """Print every answer as it comes, draw it into `output`, report the bad; return how many were bad."""
    from eval.detections import ImageError
    from eval.predictions import CocoBook, annotated_paths, json_line
    from eval.report import read_files

    targets = annotated_paths(files, output) if output else [None] * len(files)
    book, failed = CocoBook(detector.class_names, detector.category_ids), 0
    for file, target, answer in zip(files, targets, detector.predict_many(read_files(files)), strict=True):
        if isinstance(answer, ImageError):
            failed += 1
            click.secho(f"{file}: {answer.message}", fg="red", err=True)
            continue
        found = answer.above(score)
        book.add(file, found)
        if style == "jsonl":
            click.echo(json_line(file, found, detector.class_names))
        if target:
            _draw(file, found, detector.class_names, target)
    if style == "coco":
        click.echo(json.dumps(book.to_dict(), ensure_ascii=False))
    return failed


def _draw(file: Path, found: "Detections", class_names: Sequence[str], target: Path) -> None:
    from eval.draw import draw, open_picture

    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        picture = open_picture(file)
    except OSError as error:  # Pillow is stricter than the server's decoder with what is damaged
        click.secho(f"{file}: answered, but it can't be drawn: {error}", fg="yellow", err=True)
        return
    draw(picture, found, class_names).save(target, quality=92)


def _print_report(report: "Report", json_file: Path | None) -> None:
    if report.warning:
        click.secho(f"warning: {report.warning}", fg="yellow", err=True)
    for image_id, error in report.errors.items():
        click.secho(f"{report.files[image_id]}: {error.message}", fg="red", err=True)
    click.echo(report.table())
    click.echo(
        f"{len(report.files)} images, {report.scores.detections} detections in {report.seconds:.1f} s", err=True
    )
    if json_file:
        write_json(json_file, report.to_dict())


def _exit_if(failed: int, count: int) -> None:
    if failed:
        click.secho(f"{failed} of {count} pictures failed", fg="red", err=True)
        sys.exit(Exit.BAD_DATA)


VERBS: tuple[click.Command, ...] = (infer, verify, predict, evaluate, bench)
