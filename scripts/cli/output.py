"""What verbs print while they work and at their end: progress, predictions, the report, the next command.

    options = ReportOptions.of(json_file, report_file=..., baseline=..., max_drop=..., resamples=..., seed=...)
    options.read_baseline(truth)                # before the work, which a wrong file would waste
    passed = publish(report, options)
    name_next(f"retinaserve serve {repository}")        # "next: retinaserve serve repository" on stderr

Results go to stdout, everything else to stderr. The analysis runs only when somebody asked for its results.
"""

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

import click

from retinaserve.training.errors import Exit, UserError
from retinaserve.training.files import make_place, write_json

if TYPE_CHECKING:
    from retinaserve.eval.report.analysis import Baseline, Comparison
    from retinaserve.eval.report.report import Report
    from retinaserve.eval.tiled import Sized, Tiling
    from retinaserve.training.coco import Annotations
    from retinaserve.training.detections import Detections, Detector
    from retinaserve.training.judge import JudgeName

T = TypeVar("T")

STEPS = "retinaserve.steps"  # in the `meta` of a click context: the verb is a step of another one
LARGEST_DRAWN = 4096  # px, the longer side of an annotated image that was read by windows
MOST_CLASSES = 10  # of those that changed, on the terminal


def name_next(command: str, *, where: str = "") -> None:
    """Name the next useful command on stderr; `where` says on which machine, if not on this one.

    Inside a command that runs others, such as `demo`, only the outer one knows what is left to do.
    """
    context = click.get_current_context(silent=True)
    if context and context.meta.get(STEPS):
        return
    click.secho(f"next, {where}: {command}" if where else f"next: {command}", dim=True, err=True)


def warn(text: str) -> None:
    """Print a line about the data to stderr: it is no result."""
    click.secho(text, fg="yellow" if text.startswith("warning") else None, err=True)


def progress(items: Iterable[T], total: int, title: str | None = None) -> Iterator[T]:
    """Yield the items, one per image, and show on a terminal's stderr how many there were."""
    from tqdm import tqdm

    # `disable=None` shows the bar on a terminal only.
    yield from tqdm(items, title, total, unit="image", file=sys.stderr, disable=None, dynamic_ncols=True)


@dataclass
class ReportOptions:
    """What is to be written and compared."""

    json_file: Path | None
    report_file: Path | None
    baseline_file: Path | None
    max_drop: float | None
    resamples: int
    seed: int
    judge: "JudgeName | None"
    baseline: "Baseline | None" = field(default=None, init=False)

    @classmethod
    def of(
        cls,
        json_file: Path | None,
        *,
        report_file: Path | None,
        baseline: Path | None,
        max_drop: float | None,
        resamples: int,
        seed: int,
        judge: "JudgeName | None",
    ) -> Self:
        """Take the options as click gives them. Raises click.UsageError for some that don't fit together, and
        UserError for a file that can't be written.
        """
        if max_drop is not None and not baseline:
            raise click.UsageError("--max-drop needs --baseline, the JSON file of the report to compare with")
        for path in filter(None, (json_file, report_file)):
            make_place(path)
        return cls(json_file, report_file, baseline, max_drop, resamples, seed, judge)

    @property
    def wanted(self) -> bool:
        """Whether anything beyond the table is asked for."""
        return bool(self.json_file or self.report_file or self.baseline_file)

    def read_baseline(self, truth: "Annotations") -> None:
        """Read the baseline, if there is one. Raises UserError for a file that can't be compared with."""
        from retinaserve.eval.report.analysis import read_baseline

        if self.baseline_file:
            self.baseline = read_baseline(self.baseline_file, truth, judge=self.judge)


def publish(report: "Report", options: ReportOptions) -> bool:
    """Print a report, write what was asked for, and return whether AP fell by no more than was allowed."""
    if report.warning:
        click.secho(f"warning: {report.warning}", fg="yellow", err=True)
    for image_id, error in report.errors.items():
        click.secho(f"{report.files[image_id]}: {error.message}", fg="red", err=True)
    click.echo(report.table())
    click.echo(
        f"{len(report.files)} images, {report.scores.detections} detections in {report.seconds:.1f} s", err=True
    )
    if report.latency_ms:
        latency = ", ".join(f"{name} {value:.0f}" for name, value in report.latency_ms.items())
        click.echo(f"latency of an answer, ms: {latency}", err=True)
    if report.busy:
        shares = ", ".join(f"{name} {100 * share:.0f} %" for name, share in report.busy.items())
        click.echo(f"the server's steps were busy: {shares}", err=True)
    if not options.wanted:
        return True

    from retinaserve.eval.report.analysis import Analysis

    click.echo("sorting the errors and resampling ...", err=True)
    analysis = Analysis.of(report, options.baseline, resamples=options.resamples, seed=options.seed)
    change = analysis.comparison
    if change:
        _print_change(change)
    point = analysis.operating_points()[-1]
    if point["f1"] is not None:
        click.echo(
            f"suggested threshold {point['threshold']:.2f}: F1 {point['f1']:.3f}, "
            f"precision {point['precision'] or 0:.3f}, recall {point['recall']:.3f}",
            err=True,
        )
    if options.json_file:
        write_json(options.json_file, analysis.to_dict())
    if options.report_file:
        from retinaserve.eval.report.page.page import write_page

        write_page(analysis, options.report_file)
        click.echo(f"report: {options.report_file}", err=True)
    if change is None or options.max_drop is None:
        return True
    passed = change.drop() <= options.max_drop
    if not passed:
        message = f"AP fell by {change.drop():.4f}, more than --max-drop {options.max_drop:g} allows"
        click.secho(message, fg="red", err=True)
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


def tiled(detector: "Sized", tiling: "Tiling | None") -> "Detector":
    """Return the detector, or that of its tiles with their number shown on a terminal."""
    if tiling is None:
        return detector

    from tqdm import tqdm

    from retinaserve.eval.tiled import TiledDetector

    bar = tqdm(unit="tile", file=sys.stderr, disable=None, dynamic_ncols=True, leave=False)

    def show(answered: int, known: int) -> None:
        bar.total = known
        bar.update(answered - bar.n)

    return TiledDetector(detector, tiling, on_tile=show)


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
    from retinaserve.eval.predictions import annotated_paths, coco_results, geojson, json_line
    from retinaserve.eval.prelabels import Prelabels, csv_text, label_studio
    from retinaserve.eval.tiled import answers_of
    from retinaserve.training.detections import ImageError

    targets = annotated_paths(files, output) if output else [None] * len(files)
    written = Prelabels(style, labels, files, detector.class_names) if labels else None
    kept: list[tuple[Path, Detections]] = []
    failed, names = 0, detector.class_names
    whole: dict[str, Callable[[], str]] = {  # what is printed at the end
        "coco": lambda: _json(coco_results(kept, names, detector.category_ids)),
        "geojson": lambda: _json(geojson(kept, names)),
        "labelstudio": lambda: _json(label_studio(kept, names)),
        "csv": lambda: csv_text(kept, names).rstrip("\n"),
    }
    for file, target, answer in zip(files, targets, answers_of(detector, files), strict=True):
        if isinstance(answer, ImageError):
            failed += 1
            click.secho(f"{file}: {answer.message}", fg="red", err=True)
            continue
        found = answer.above(score)
        if style in whole:
            kept.append((file, found))
        if written:
            written.write(file, found)
        if style == "jsonl":
            click.echo(json_line(file, found, detector.class_names))
        if target:
            _draw(file, found, detector.class_names, target, getattr(detector, "value_range", None))
    if style in whole:
        click.echo(whole[style]())
    return failed


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _draw(
    file: Path,
    found: "Detections",
    class_names: Sequence[str],
    target: Path,
    value_range: tuple[int, int] | None,
) -> None:
    from retinaserve.training.draw import draw, open_image
    from retinaserve.training.raster import MOST_DECODED, open_raster

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
        click.secho(f"{file}: answered, but it can't be drawn: {error}", fg="yellow", err=True)
        return
    draw(image, found, class_names).save(target, quality=92)


def finish(failed: int, count: int, following: str, *, passed: bool = True) -> None:
    """Say how many images failed and what to do next, unless nothing was answered; exit with what came of it."""
    if failed:
        click.secho(f"{failed} of {count} images failed", fg="red", err=True)
    if failed < count or not count:
        name_next(following)
    if failed:
        sys.exit(Exit.BAD_DATA)
    if not passed:
        sys.exit(Exit.CHECK_FAILED)
