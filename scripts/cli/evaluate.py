"""`eval`: COCO average precision through a server."""

import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from retinaserve.scripts.cli.options import (
    COUNT,
    FOLDER,
    LABELS_HELP,
    PATH,
    Protocol,
    images_option,
    json_option,
    model_option,
    protocol_option,
    report_options,
    server_option,
    server_words,
    tile_options,
    timeout_option,
    tls_options,
    wait_option,
)
from retinaserve.scripts.cli.output import ReportOptions, finish, progress, publish, tiled, warn

if TYPE_CHECKING:
    from retinaserve.eval.client.transport import TlsFiles
    from retinaserve.eval.tiled import Tiling


@click.command("eval")
@server_option
@protocol_option
@model_option
@images_option
@click.option("--annotations", type=PATH, required=True, help=LABELS_HELP)
@click.option("--predictions", metavar="ADDRESS", help="Score what `batch` wrote, instead of asking a server.")
@click.option(
    "--concurrency",
    type=COUNT,
    default=16,
    help="Requests in flight at a time; enough that one step decodes a batch while another computes one.",
)
@tile_options
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
    protocol: Protocol | None,
    ensemble: str,
    images: Path,
    annotations: Path,
    predictions: str | None,
    concurrency: int,
    timeout: float,
    wait: float,
    tls: "TlsFiles | None",
    tiling: "Tiling | None",
    json_file: Path | None,
    output: Path | None,
    **report_choices: Any,
) -> None:
    """Score a server on a labelled set: encoded images in, COCO average precision out.

    --report shows the errors, the images and the threshold to choose; --baseline what changed. An image the
    server refuses counts as one without detections; the exit code is then 3.
    """
    from retinaserve.eval.client.client import Client
    from retinaserve.eval.client.traffic import Traffic
    from retinaserve.eval.report.report import evaluate_detector
    from retinaserve.training.check.checks import scored_labels

    options = ReportOptions.of(json_file, **report_choices)
    truth = scored_labels(annotations, images, warn=warn)
    options.read_baseline(truth)
    if predictions:
        from retinaserve.eval.recorded import Recorded

        where = server
        report = evaluate_detector(Recorded.read(predictions), truth, images, judge=options.judge)
    else:
        with Client(
            server, protocol=protocol, model=ensemble, timeout=timeout, wait=wait, concurrency=concurrency, tls=tls
        ) as client:
            where, model = client.servers, client.identity().to_dict()
            traffic = Traffic.watch(client)
            report = evaluate_detector(
                tiled(client, tiling), truth, images, progress=progress, judge=options.judge
            )
            busy, latency = traffic.busy(report.seconds), traffic.latency()
        report = replace(report, model=model, latency_ms=latency, busy=busy)
    passed = publish(report, options)
    if output:
        report.write_images(output)
        click.echo(f"curves, contact sheet and detections: {output}", err=True)
    following = (
        f"retinaserve bench {server_words(where.split(',')[0], tls=tls)} --images {shlex.quote(str(images))}"
    )
    finish(len(report.errors), len(report.files), following, passed=passed)
