"""How `eval` and `infer` tell what they found: the table, the JSON file, the page, and whether the check passed.

    options = ReportOptions.of(json_file, report_file=..., baseline=..., max_drop=..., resamples=..., seed=...)
    options.read_baseline(truth)                # before the work, which a wrong file would waste
    passed = publish(report, options)

The table goes to stdout, everything else to stderr. The analysis runs only when somebody asked for its results.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Self

import click

from retinaserve.scripts.cli.options import write_json
from retinaserve.training.replacing import make_place

if TYPE_CHECKING:
    from retinaserve.eval.report.comparison import Baseline, Comparison
    from retinaserve.eval.report.report import Report
    from retinaserve.training.scores import Annotations

MOST_CLASSES = 10  # of those that changed, on the terminal


@dataclass
class ReportOptions:
    """What is to be written and compared."""

    json_file: Path | None
    report_file: Path | None
    baseline_file: Path | None
    max_drop: float | None
    resamples: int
    seed: int
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
    ) -> Self:
        """Take the options as click gives them. Raises click.UsageError for some that don't fit together, and
        UserError for a file that can't be written.
        """
        if max_drop is not None and not baseline:
            raise click.UsageError("--max-drop needs --baseline, the JSON file of the report to compare with")
        for path in filter(None, (json_file, report_file)):
            make_place(path)
        return cls(json_file, report_file, baseline, max_drop, resamples, seed)

    @property
    def wanted(self) -> bool:
        """Whether anything beyond the table is asked for."""
        return bool(self.json_file or self.report_file or self.baseline_file)

    def read_baseline(self, truth: "Annotations") -> None:
        """Read the baseline, if there is one. Raises UserError for a file that can't be compared with."""
        from retinaserve.eval.report.comparison import read_baseline

        if self.baseline_file:
            self.baseline = read_baseline(self.baseline_file, truth)


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

    from retinaserve.eval.report.summary import Analysis

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
