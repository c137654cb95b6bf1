"""`eval` and `infer`: COCO average precision and a report, through a server or of a model file alone.

The analysis runs only when somebody asked for its results.
"""

import shlex
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from retinaserve.scripts.cli.ask.predict import print_predictions
from retinaserve.scripts.cli.options import (
    COUNT,
    FILE,
    FOLDER,
    LABELS_HELP,
    PATH,
    batch_option,
    client_options,
    decoding_options,
    images_option,
    json_option,
    server_words,
    threads_option,
    tile_options,
    together,
)
from retinaserve.scripts.cli.output import caution, failure, finish, note, progress, tiled, warn
from retinaserve.training.files import make_place, write_json

if TYPE_CHECKING:
    from retinaserve.eval.client.transport import TlsFiles
    from retinaserve.eval.report.analysis import Baseline, Comparison
    from retinaserve.eval.report.report import Report
    from retinaserve.eval.tiled import Tiling
    from retinaserve.training.coco import Annotations
    from retinaserve.training.pixels import Decoding
    from retinaserve.training.scoring.judge import JudgeName

MOST_CLASSES = 10  # of those that changed, on the terminal

report_options = together(  # `ReportOptions` takes them
    click.option("--report", "report_file", type=FILE, help="Write the report to this HTML file."),
    click.option("--baseline", type=FILE, help="Compare with the --json FILE of an earlier report."),
    click.option(
        "--max-drop",
        type=click.FloatRange(min=0),
        help="With --baseline: exit with 1 if AP fell by more, such as 0.01. [default: only tell]",
    ),
    click.option(
        "--resamples",
        type=click.IntRange(min=10),
        default=1000,
        help="Bootstrap draws of the images behind each interval.",
    ),
    click.option("--seed", type=click.IntRange(min=0), default=0, help="Of the bootstrap."),
    click.option(
        "--judge",
        type=click.Choice(["hotcoco", "pycocotools"]),
        show_default="hotcoco where it is installed",
        help="What decides which box was found; the numbers are the same, pycocotools is slow on large sets.",
    ),
)


@click.command("eval")
@client_options
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
@json_option
@report_options
@click.option("--output", type=FOLDER, help="Write curves, a contact sheet and all detections into this folder.")
def evaluate(
    server: str,
    ensemble: str,
    images: Path,
    annotations: Path,
    predictions: str | None,
    tls: "TlsFiles | None",
    tiling: "Tiling | None",
    output: Path | None,
    protocol: Any,
    timeout: float,
    wait: float,
    concurrency: int,
    **report_choices: Any,
) -> None:
    """Score a server on a labelled set: encoded images in, COCO average precision out.

    --report shows the errors, the images and the threshold to choose; --baseline what changed. An image the
    server refuses counts as one without detections; the exit code is then 3.
    """
    from retinaserve.eval.client.client import Client
    from retinaserve.eval.report.report import Traffic, evaluate_detector
    from retinaserve.training.check.checks import scored_labels

    options = ReportOptions(**report_choices)
    truth = scored_labels(annotations, images, warn=warn)
    options.read_baseline(truth)
    if predictions:
        from retinaserve.eval.batch import Recorded

        report = evaluate_detector(Recorded.read(predictions), truth, images, judge=options.judge)
    else:
        how = {"protocol": protocol, "timeout": timeout, "wait": wait, "concurrency": concurrency}
        with Client(server, model=ensemble, tls=tls, **how) as client:
            server, model = client.servers, client.identity().to_dict()
            traffic = Traffic.watch(client)
            report = evaluate_detector(
                tiled(client, tiling), truth, images, progress=progress, judge=options.judge
            )
            busy, latency = traffic.busy(report.seconds), traffic.latency()
        report = replace(report, model=model, latency_ms=latency, busy=busy)
    passed = publish(report, options)
    if output:
        report.write_images(output)
        note(f"curves, contact sheet and detections: {output}")
    where = server_words(server.split(",")[0], tls=tls)
    following = f"retinaserve bench {where} --images {shlex.quote(str(images))}"
    finish(len(report.errors), len(report.files), following, passed=passed)


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
    **report_choices: Any,
) -> None:
    """Run MODEL (.pth or .onnx) on images without a server.

    With --annotations it prints the scores that `eval` prints for a server, otherwise a JSON line an image.
    """
    from retinaserve.eval.report.report import evaluate_detector
    from retinaserve.eval.runtimes.detector import open_detector
    from retinaserve.training.check.checks import scored_labels
    from retinaserve.training.images.sources import find_images

    options = ReportOptions(**report_choices)
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
            note(f"detections: {output}")
    else:
        files = find_images([images], left_out=warn)
        failed, count = print_predictions(files, tiled(detector, tiling), score=score, style="jsonl"), len(files)
    quoted = shlex.quote(str(model))
    if model.suffix == ".pth":
        following = f"retinaserve export {quoted} {shlex.quote(str(model.with_suffix('.onnx')))}"
    else:
        following = f"retinaserve build {quoted} --profile cpu --output repository"
    finish(failed, count, following, passed=passed)


@dataclass
class ReportOptions:
    """What is to be written and compared, as click gives it.

    Raises click.UsageError for options that don't fit together, and UserError for a file that can't be written.
    """

    json_file: Path | None
    report_file: Path | None
    baseline: Path | None
    max_drop: float | None
    resamples: int
    seed: int
    judge: "JudgeName | None"
    earlier: "Baseline | None" = field(default=None, init=False)

    def __post_init__(self) -> None:
        if self.max_drop is not None and not self.baseline:
            raise click.UsageError("--max-drop needs --baseline, the JSON file of the report to compare with")
        for path in filter(None, (self.json_file, self.report_file)):
            make_place(path)

    @property
    def wanted(self) -> bool:
        """Whether anything beyond the table is asked for."""
        return bool(self.json_file or self.report_file or self.baseline)

    def read_baseline(self, truth: "Annotations") -> None:
        """Read the baseline, if there is one. Raises UserError for a file that can't be compared with."""
        from retinaserve.eval.report.analysis import read_baseline

        if self.baseline:
            self.earlier = read_baseline(self.baseline, truth, judge=self.judge)


def publish(report: "Report", options: ReportOptions) -> bool:
    """Print a report, write what was asked for, and return whether AP fell by no more than was allowed."""
    if report.warning:
        caution(f"warning: {report.warning}")
    for image_id, error in report.errors.items():
        failure(f"{report.files[image_id]}: {error.message}")
    click.echo(report.table())
    note(f"{len(report.files)} images, {report.scores.detections} detections in {report.seconds:.1f} s")
    if report.latency_ms:
        latency = ", ".join(f"{name} {value:.0f}" for name, value in report.latency_ms.items())
        note(f"latency of an answer, ms: {latency}")
    if report.busy:
        shares = ", ".join(f"{name} {100 * share:.0f} %" for name, share in report.busy.items())
        note(f"the server's steps were busy: {shares}")
    if not options.wanted:
        return True

    from retinaserve.eval.report.analysis import Analysis

    note("sorting the errors and resampling ...")
    analysis = Analysis.of(report, options.earlier, resamples=options.resamples, seed=options.seed)
    change = analysis.comparison
    if change:
        _print_change(change)
    point = analysis.operating_points()[-1]
    if point["f1"] is not None:
        rates = f"precision {point['precision'] or 0:.3f}, recall {point['recall']:.3f}"
        note(f"suggested threshold {point['threshold']:.2f}: F1 {point['f1']:.3f}, {rates}")
    if options.json_file:
        write_json(options.json_file, analysis.to_dict())
    if options.report_file:
        from retinaserve.eval.report.page.page import write_page

        write_page(analysis, options.report_file)
        note(f"report: {options.report_file}")
    if change is None or options.max_drop is None:
        return True
    passed = change.drop() <= options.max_drop
    if not passed:
        failure(f"AP fell by {change.drop():.4f}, more than --max-drop {options.max_drop:g} allows")
    return passed


def _print_change(change: "Comparison") -> None:
    """Print what changed since the baseline, to stdout: it is a result."""
    old, new = change.numbers["ap"]
    click.echo(f"\nagainst {change.baseline.path}")
    click.echo(f"ap         {_number(old)} -> {_number(new)}   {_signed(change.difference)}")
    if change.interval:
        click.echo(
            f"           95 % interval {_signed(change.interval.low)} to {_signed(change.interval.high)}, "
            f"{change.interval.resamples} paired resamples of the images in {change.seconds:.1f} s"
        )
    known = [(name, before, now) for name, before, now in change.classes if before is not None and now is not None]
    known.sort(key=lambda item: item[2] - item[1])
    width = max([len(name) for name, _, _ in known] + [5])
    click.echo(f"{'class':<{width}}  before     now   change")
    half = MOST_CLASSES // 2
    shown = known if len(known) <= MOST_CLASSES else [*known[:half], *known[-half:]]
    for name, before, now in shown:
        click.echo(f"{name:<{width}}  {_number(before):>6}  {_number(now):>6}  {_signed(now - before):>7}")
    if len(shown) < len(known):
        click.echo(f"the {half} that fell and rose most of {len(known)}")
    click.echo(f"images: {len(change.worse)} worse, {len(change.better)} better")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.4f}"
