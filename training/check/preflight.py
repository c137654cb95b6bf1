"""The check that a training begins with: errors end it before anything is written.

    preflight(images, annotations, val_images, val_annotations, warn=print)

A set of more pictures than `DECODED` has only its headers read here; `retinaserve data check` reads everything.
"""

from collections.abc import Callable
from pathlib import Path

from retinaserve.training.check.checks import check_data
from retinaserve.training.check.findings import Finding, Report
from retinaserve.training.check.snapshot import read_split
from retinaserve.training.errors import UserError

DECODED = 5000


def preflight(
    images: Path,
    annotations: Path,
    val_images: Path | None = None,
    val_annotations: Path | None = None,
    *,
    warn: Callable[[str], object] = lambda _: None,
) -> Report:
    """Check a data set before training; `warn` is given a line a warning. Raises UserError for errors."""
    train = read_split("train", images, annotations, decode=False)
    val = val_annotations and read_split("val", val_images or images, val_annotations, decode=False)
    if len(train.images) + (len(val.images) if val else 0) <= DECODED:
        train = read_split("train", images, annotations)
        val = val_annotations and read_split("val", val_images or images, val_annotations)
    report = check_data(train, val or None)
    refuse_errors(report)
    for finding in report.findings:
        if finding.severity == "warning":
            warn(describe(finding))
    return report


def refuse_errors(report: Report) -> None:
    """Raise a UserError that names the first error of a report and how many more there are."""
    if not report.errors:
        return
    first = report.errors[0]
    more = f"; other kinds of errors: {len(report.errors) - 1}" if len(report.errors) > 1 else ""
    where = next((summary.annotations for summary in report.splits if summary.name == first.split), first.split)
    raise UserError(
        f"{where}: {_told(first)}{more}",
        f"{first.remedy}; `retinaserve data check` tells everything",
    )


def describe(finding: Finding) -> str:
    """Return a finding in a line."""
    return f"{finding.severity}: {finding.split}: {_told(finding)}"


def _told(finding: Finding) -> str:
    rest = f" and {finding.count - 1} more" if finding.count > 1 else ""
    return f"{finding.message} [{finding.code}]: {finding.examples[0]}{rest}"
