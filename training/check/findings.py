"""Findings: a code that stays, how bad it is, what training and scoring do with it, how often, examples, a remedy.

    finds = Finds()
    finds.add("box-outside", "annotation {}: {}", 7, [90, 5, 9, 9])
    report = Report(summaries, finds.findings("train"))
    refuse_errors(report.findings, Path("train.json"))      # raises UserError for the first error

An error would crash a training or let it learn or score the wrong thing, so every verb refuses it; a warning is
worth a look; a note is good to know.
"""

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from retinaserve.training.errors import UserError

Severity = Literal["error", "warning", "note"]
EXAMPLES = 5
REFUSED, SAME = "refused", "as listed"


@dataclass(frozen=True)
class Code:
    """What a code means, for how many of what; the remedy; what `train` and what `eval` and `infer` do with it."""

    severity: Severity
    means: str
    remedy: str
    training: str
    scoring: str


def _codes() -> dict[str, Code]:
    """Read codes.toml, which says what is left out there."""
    found = {}
    for code, (severity, means, remedy, *done) in tomllib.loads(CODES_FILE.read_text()).items():
        training = done[0] if done else REFUSED if severity == "error" else SAME
        found[code] = Code(severity, means, remedy, training, done[-1] if done else training)
    return found


CODES_FILE = Path(__file__).with_name("codes.toml")
CODES: Mapping[str, Code] = _codes()


@dataclass(frozen=True)
class Finding:
    """One code's finds in one split."""

    code: str
    severity: Severity
    split: str
    count: int
    message: str
    examples: tuple[str, ...]
    remedy: str
    training: str
    scoring: str


@dataclass
class Finds:
    """Counts what is found by its code and keeps the first examples of each."""

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, code: str, example: str, *values: object) -> None:
        """Count a find; `example` is a format of the values, made only where it will be shown."""
        count = self.counts[code] = self.counts.get(code, 0) + 1
        if count <= EXAMPLES:
            text = example.format(*values) if values else example
            self.examples.setdefault(code, []).append(text if len(text) < 200 else f"{text[:197]}...")

    @property
    def errors(self) -> list[str]:
        """The codes found that are errors."""
        return [code for code in self.counts if CODES[code].severity == "error"]

    def findings(self, split: str = "") -> list[Finding]:
        """Return them, the worst first."""
        found = [
            Finding(
                code,
                known.severity,
                split,
                self.counts[code],
                known.means,
                tuple(self.examples[code]),
                known.remedy,
                known.training,
                known.scoring,
            )
            for code, known in ((code, CODES[code]) for code in self.counts)
        ]
        return worst_first(found)


def worst_first(findings: Iterable[Finding]) -> list[Finding]:
    """Return findings by their severity, those of one as `CODES` lists them."""
    places = {code: place for place, code in enumerate(CODES)}
    ranks = ("error", "warning", "note")
    return sorted(findings, key=lambda finding: (ranks.index(finding.severity), places[finding.code]))


@dataclass(frozen=True)
class Summary:
    """What a split holds."""

    name: str
    annotations: str
    images: int
    boxes: int
    crowds: int
    empty_images: int
    boxes_per_category: Mapping[str, int]


@dataclass(frozen=True)
class Report:
    """Everything that was found, the worst first."""

    splits: tuple[Summary, ...]
    findings: tuple[Finding, ...]

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings that training would suffer from."""
        return tuple(finding for finding in self.findings if finding.severity == "error")

    def to_dict(self) -> dict[str, Any]:
        """Return the report for JSON."""
        counts = {
            f"{severity}s": sum(finding.severity == severity for finding in self.findings)
            for severity in ("error", "warning", "note")
        }
        return {**asdict(self), **counts}


def refuse_errors(findings: Iterable[Finding], path: Path) -> None:
    """Raise a UserError that names the first error among the findings on a file, and how many more there are."""
    errors = worst_first(finding for finding in findings if finding.severity == "error")
    if not errors:
        return
    first = errors[0]
    more = f"; other kinds of errors: {len(errors) - 1}" if len(errors) > 1 else ""
    if first.code == "file-unreadable":
        raise UserError(f"{path}: {first.examples[0]} [{first.code}]", first.remedy)
    raise UserError(f"{path}: {_text(first)}{more}", f"{first.remedy}; `retinaserve data check` lists everything")


def describe(finding: Finding, purpose: Literal["training", "scoring"] = "training") -> str:
    """Return a finding in a line, with what is done about it where anything is."""
    split = f"{finding.split}: " if finding.split else ""
    done = finding.training if purpose == "training" else finding.scoring
    return f"{finding.severity}: {split}{_text(finding)}{'' if done == SAME else f'; {done}'}"


def _text(finding: Finding) -> str:
    rest = f" and {finding.count - 1} more" if finding.count > 1 else ""
    return f"{finding.message} [{finding.code}]: {finding.examples[0]}{rest}"
