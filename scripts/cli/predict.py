"""Click commands of this folder: `infer`, `predict`, `eval`; `verify`, `bench` and `web` from their own files.

They parse, call and print; results go to stdout, everything else to stderr. What is heavy is imported by the verb
that needs it.
"""

import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from retinaserve.scripts.cli.bench import bench
from retinaserve.scripts.cli.next_step import name_next
from retinaserve.scripts.cli.options import (
    FILE,
    FOLDER,
    json_option,
    progress,
    report_options,
    server_words,
    tls_options,
    wait_option,
    write_json,
)
from retinaserve.scripts.cli.outcome import ReportOptions, publish
from retinaserve.scripts.cli.verify import verify
from retinaserve.scripts.cli.web import web
from retinaserve.training.errors import Exit
from retinaserve.training.spec import DETECTOR

if TYPE_CHECKING:
    from retinaserve.eval.client.transport import TlsFiles
    from retinaserve.training.detections import Detections, Detector, ImageError

    Answers = Iterator[Detections | ImageError]

PROTOCOLS = click.Choice(["grpc", "http"])

server_option = click.option(
    "--server",
    metavar="HOST:PORT",
    default="localhost:8001",
    help="The Triton server: HOST:PORT, or grpc://, http://, grpcs:// or https:// before it; "
    "equal ones with commas, and one of them may die.",
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
model_option = click.option(
    "--model", "ensemble", default=DETECTOR, help="The ensemble to ask: detector, or detector_canary beside it."
)
concurrency_option = click.option(
    "--concurrency", type=click.IntRange(min=1), default=8, help="Requests in flight at a time."
)


@click.command()
@click.argument("images", nargs=-1, required=True)
@server_option
@protocol_option
@model_option
@click.option("--output", type=FOLDER, help="Write annotated pictures into this directory.")
@click.option("--format", "style", type=click.Choice(["jsonl", "coco"]), default="jsonl", help="What is printed.")
@click.option("--score", type=click.FloatRange(0, 1), default=0.3, help="Leave weaker detections out.")
@concurrency_option
@timeout_option
@wait_option
@tls_options
@click.option("--quiet", is_flag=True, help="Print no detections; for use with --output.")
def predict(
    images: tuple[str, ...],
    server: str,
    protocol: Literal["grpc", "http"] | None,
    ensemble: str,
    output: Path | None,
    style: str,
    score: float,
    concurrency: int,
    timeout: float,
    wait: float,
    tls: "TlsFiles | None",
    quiet: bool,
) -> None:
    """Detect objects in IMAGES (files, directories, patterns) through a server.

    Prints a JSON line a picture, or one COCO file. A bad picture is reported on stderr and fails none of the
    others; the exit code is then 3.
    """
    from retinaserve.eval.client.client import Client
    from retinaserve.training.images import find_images

    files = find_images(images)
    with Client(
        server, protocol=protocol, model=ensemble, timeout=timeout, wait=wait, concurrency=concurrency, tls=tls
    ) as client:
        style = "none" if quiet else style
        failed = _print_predictions(files, client, score=score, style=style, output=output)
        where = client.servers
    if output:
        click.echo(f"{len(files) - failed} annotated pictures: {output}", err=True)
    _finish(
        failed, len(files), f"retinaserve eval {server_words(where, tls=tls)} --images DIR --annotations FILE.json"
    )


@click.command("eval")
@server_option
@protocol_option
@model_option
@click.option("--images", type=FOLDER, required=True, help="Directory of the pictures.")
@click.option("--annotations", type=FILE, required=True, help="COCO annotations of the pictures.")
@click.option(
    "--concurrency",
    type=click.IntRange(min=1),
    default=16,
    help="Requests in flight at a time; enough that one step decodes a batch while another computes one.",
)
@timeout_option
@wait_option
@tls_options
@json_option
@report_options
@click.option(
    "--output", type=FOLDER, help="Write curves, a contact sheet and all detections into this directory."
)
def evaluate(
    server: str,
    protocol: Literal["grpc", "http"] | None,
    ensemble: str,
    images: Path,
    annotations: Path,
    concurrency: int,
    timeout: float,
    wait: float,
    tls: "TlsFiles | None",
    json_file: Path | None,
    output: Path | None,
    **report_choices: Any,
) -> None:
    """Score a server on a labelled set: encoded pictures in, COCO average precision out.

    --report shows the errors, the images and the threshold to choose; --baseline what changed. A picture the
    server refuses counts as one without detections; the exit code is then 3.
    """
    from retinaserve.eval.client.client import Client
    from retinaserve.eval.client.traffic import Traffic
    from retinaserve.eval.report.report import judge
    from retinaserve.training.scores import Annotations

    options = ReportOptions.of(json_file, **report_choices)
    truth = Annotations.load(annotations)
    options.read_baseline(truth)
    with Client(
        server, protocol=protocol, model=ensemble, timeout=timeout, wait=wait, concurrency=concurrency, tls=tls
    ) as client:
        where, model = client.servers, client.identity().to_dict()
        traffic = Traffic.watch(client)
        report = judge(client, truth, images, progress=progress)
        busy, latency = traffic.busy(report.seconds), traffic.latency()
    report = replace(report, model=model, latency_ms=latency, busy=busy)
    passed = publish(report, options)
    if output:
        report.write_pictures(output)
        click.echo(f"curves, contact sheet and detections: {output}", err=True)
    following = (
        f"retinaserve bench {server_words(where.split(',')[0], tls=tls)} --images {shlex.quote(str(images))}"
    )
    _finish(len(report.errors), len(report.files), following, passed=passed)


@click.command()
@click.argument("model", type=FILE)
@click.option("--images", type=FOLDER, required=True, help="Directory of the pictures.")
@click.option("--annotations", type=FILE, help="COCO annotations of the pictures; with them it scores.")
@click.option("--output", type=FILE, help="With --annotations: write all detections to this COCO result file.")
@click.option("--score", type=click.FloatRange(0, 1), default=0.3, help="Without --annotations: leave weaker out.")
@click.option("--batch", type=click.IntRange(min=1), default=8, help="Pictures in a batch.")
@click.option("--threads", type=click.IntRange(min=0), default=0, help="Threads; 0 takes all cores.")
@json_option
@report_options
def infer(
    model: Path,
    images: Path,
    annotations: Path | None,
    output: Path | None,
    score: float,
    batch: int,
    threads: int,
    json_file: Path | None,
    **report_choices: Any,
) -> None:
    """Run MODEL (.pth or .onnx) on pictures without a server.

    With --annotations it prints the scores that `eval` prints for a server, otherwise a JSON line a picture.
    """
    from retinaserve.eval.report.report import judge
    from retinaserve.eval.runtimes.detector import open_detector
    from retinaserve.training.images import find_images
    from retinaserve.training.scores import Annotations

    options = ReportOptions.of(json_file, **report_choices)
    if not annotations and (options.wanted or output):
        raise click.UsageError(
            "--json, --report, --baseline and --output need --annotations; without them, redirect what is printed"
        )
    truth = Annotations.load(annotations) if annotations else None
    if truth:
        options.read_baseline(truth)
    detector = open_detector(model, threads=threads, batch=batch)
    passed = True
    if truth:
        report = judge(detector, truth, images, progress=progress)
        passed = publish(replace(report, model=detector.identity().to_dict()), options)
        failed, count = len(report.errors), len(report.files)
        if output:
            write_json(output, report.coco_results(), indent=None)
            click.echo(f"detections: {output}", err=True)
    else:
        files = find_images([images])
        failed, count = _print_predictions(files, detector, score=score, style="jsonl"), len(files)
    quoted = shlex.quote(str(model))
    if model.suffix == ".pth":
        following = f"retinaserve export {quoted} {shlex.quote(str(model.with_suffix('.onnx')))}"
    else:
        following = f"retinaserve build {quoted} --profile cpu --output repository"
    _finish(failed, count, following, passed=passed)


def _print_predictions(
    files: Sequence[Path], detector: "Detector", *, score: float, style: str, output: Path | None = None
) -> int:
    """Print every answer as it comes, draw it into `output`, report the bad; return how many were bad."""
    from retinaserve.eval.predictions import CocoBook, annotated_paths, json_line
    from retinaserve.eval.report.report import read_files
    from retinaserve.training.detections import ImageError

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
    from retinaserve.training.draw import draw, open_picture

    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        picture = open_picture(file)
    except OSError as error:  # Pillow is stricter than the server's decoder with what is damaged
        click.secho(f"{file}: answered, but it can't be drawn: {error}", fg="yellow", err=True)
        return
    draw(picture, found, class_names).save(target, quality=92)


def _finish(failed: int, count: int, following: str, *, passed: bool = True) -> None:
    """Say how many pictures failed and what to do next, unless nothing was answered; exit with what came of it."""
    if failed:
        click.secho(f"{failed} of {count} pictures failed", fg="red", err=True)
    if failed < count or not count:
        name_next(following)
    if failed:
        sys.exit(Exit.BAD_DATA)
    if not passed:
        sys.exit(Exit.CHECK_FAILED)


VERBS: tuple[click.Command, ...] = (infer, verify, predict, evaluate, bench, web)
