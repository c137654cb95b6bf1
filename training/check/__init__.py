"""What is wrong with a labelled data set, found before it is trained on.

    report = check_data(read_split("train", images, annotations), read_split("val", ...))
    refuse_errors(report)

A split is read once into a snapshot; checks are generators over it that know no files; the report is what they
found. Nothing is repaired.
"""

from retinaserve.training.check.checks import check_data
from retinaserve.training.check.findings import CODES, Finding, Report, Severity
from retinaserve.training.check.preflight import preflight, refuse_errors
from retinaserve.training.check.snapshot import Split, read_split

__all__ = [
    "CODES",
    "Finding",
    "Report",
    "Severity",
    "Split",
    "check_data",
    "preflight",
    "read_split",
    "refuse_errors",
]
