"""`infer`: detections and scores of a model file, without a server."""

import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from retinaserve.scripts.cli.options import (
    FILE,
    LABELS_HELP,
    PATH,
    batch_option,
    decoding_options,
    images_option,
    json_option,
    report_options,
    threads_option,
    tile_options,
)
from retinaserve.scripts.cli.output import (
    ReportOptions,
    finish,
    print_predictions,
    progress,
    publish,
    tiled,
    warn,
)
from retinaserve.training.files import write_json

if TYPE_CHECKING:
    from retinaserve.eval.tiled import Tiling
    from retinaserve.training.pixels import Decoding


@click.command()
@click.argument("model", type=FILE)
@images_option
@click.option("--annotations", type=PATH, help=f"{LABELS_HELP[:-1]}; with them it scores.")
@click.option("--output", type=FILE, help="With --annotations: write all detections to this COCO result file.")
@click.option("--score", type=click.FloatRange(0, 1), default=0.3, help="Without --annotations: leave weaker out.")
@tile_options
@batch_option
@threads_option
@decoding_options
@json_option
@report_options
def infer(
    model: Path,
    images: Path,
    annotations: Path | None,
    output: Path | None,
    score: float,
    tiling: "Tiling | None",
    batch: int,
    threads: int,
    decoding: "Decoding",
    json_file: Path | None,
    **report_choices: Any,
) -> None:
    """Run MODEL (.pth or .onnx) on images without a server.

    With --annotations it prints the scores that `eval` prints for a server, otherwise a JSON line an image.
    """
    from retinaserve.eval.report.report import evaluate_detector
    from retinaserve.eval.runtimes.detector import open_detector
    from retinaserve.training.check.checks import scored_labels
    from retinaserve.training.images import find_images

    options = ReportOptions.of(json_file, **report_choices)
    if not annotations and (options.wanted or output):
        raise click.UsageError(
            "--json, --report, --baseline and --output need --annotations; without them, redirect what is printed"
        )
    truth = scored_labels(annotations, images, warn=warn) if annotations else None
    if truth:
        options.read_baseline(truth)
    detector = open_detector(model, threads=threads, batch=batch, decoding=decoding)
    passed = True
    if truth:
        report = evaluate_detector(tiled(detector, tiling), truth, images, progress=progress, judge=options.judge)
        passed = publish(replace(report, model=detector.identity().to_dict()), options)
        failed, count = len(report.errors), len(report.files)
        if output:
            write_json(output, report.coco_results(), indent=None)
            click.echo(f"detections: {output}", err=True)
    else:
        files = find_images([images], left_out=warn)
        failed, count = print_predictions(files, tiled(detector, tiling), score=score, style="jsonl"), len(files)
    quoted = shlex.quote(str(model))
    if model.suffix == ".pth":
        following = f"retinaserve export {quoted} {shlex.quote(str(model.with_suffix('.onnx')))}"
    else:
        following = f"retinaserve build {quoted} --profile cpu --output repository"
    finish(failed, count, following, passed=passed)
