"""The evaluation report as one HTML file: numbers, charts and images, without a network or a framework.

    write_page(Analysis.of(report), Path("report.html"))

What never changes is written here as HTML; what follows the threshold (and the charts) is drawn by report.js from
counts in the page. All text from outside (class and file names, messages) is escaped here, or set as text there.
The page's Content-Security-Policy lets nothing be loaded and no other script run, should that ever fail.
"""

import base64
import datetime
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from retinaserve.eval.report.analysis import Analysis
from retinaserve.eval.report.page.images import Thumbnails, changed, worst
from retinaserve.training.files import write_text
from retinaserve.training.scoring.scores import NUMBERS

RESOURCES = files(__package__)


def write_page(analysis: Analysis, path: Path) -> None:
    """Write the page; the file appears whole or not at all."""
    write_text(path, page(analysis))


def page(analysis: Analysis) -> str:
    """Return the page."""
    style, script = (RESOURCES.joinpath(name).read_text(encoding="utf-8") for name in ("report.css", "report.js"))
    policy = {"default-src": "'none'", "img-src": "data:", "base-uri": "'none'", "form-action": "'none'"}
    policy |= {"style-src": _hash(style), "script-src": _hash(script)}
    thumbnails = Thumbnails(analysis.report.files)
    comparison = _comparison(analysis, thumbnails)  # first, so that its images are not the ones without room
    report = analysis.report
    data = json.dumps(_data(analysis), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&":  # so that it can't end its script element
        data = data.replace(character, f"\\u{ord(character):04x}")
    title = f"{Path(report.truth.path).name}: AP {_number(report.scores.ap)}"
    values = {
        "policy": "; ".join(f"{key} {value}" for key, value in policy.items()),
        "style": style,
        "script": script,
        "title": escape(title),
        "subtitle": escape(_subtitle(analysis)),
        "warning": f'<p class="notice">{escape(report.warning)}</p>' if report.warning else "",
        "cards": _cards(analysis),
        "comparison": comparison,
        "threshold": f"{round(100 * analysis.threshold)}",
        "suggested": f"{analysis.threshold:.2f}",
        "classes": _classes(analysis),
        "worst": worst(analysis, thumbnails),
        "coco": _table(
            ("number", "value", "what it counts"),
            [(name, _number(getattr(report.scores, name)), what) for name, what in NUMBERS.items()],
        ),
        "run": _run(analysis),
        "failed": _failed(analysis),
        "data": data,
    }
    template = RESOURCES.joinpath("template.html").read_text(encoding="utf-8")
    # One pass: braces in what is filled in stay what they are.
    return re.sub(r"\{\{(\w+)\}\}", lambda match: values[match[1]], template)


def _data(analysis: Analysis) -> dict[str, Any]:
    points = analysis.operating_points()
    return {
        "classes": analysis.classified.class_names,
        "threshold": round(100 * analysis.threshold),
        "best": [round(100 * point["threshold"]) for point in points],
        "table": analysis.table.to_dict(),
        "pr": analysis.pr_curves(),
        "calibration": analysis.calibration,
        "gains": analysis.gains,
        "latency": dict(analysis.report.latency_ms),
    }


def _cards(analysis: Analysis) -> str:
    scores, found = analysis.report.scores, analysis.interval
    spread = f"95 % of resamples: {found.low:.3f} to {found.high:.3f}" if found else "IoU 0.50:0.95"
    pooled = analysis.operating_points()[-1]
    error = analysis.calibration["expected_calibration_error"]
    cards = [
        ("AP", _number(scores.ap), spread),
        ("AP50", _number(scores.ap50), "IoU 0.50"),
        ("AP75", _number(scores.ap75), "IoU 0.75"),
        ("best F1", _number(pooled["f1"]), f"at a threshold of {analysis.threshold:.2f}"),
        ("calibration error", _number(error), "0 is perfect"),
        ("images", f"{scores.images}", f"{scores.instances} labelled boxes"),
    ]
    latency = analysis.report.latency_ms
    if latency:
        cards.append(("latency p50", f"{latency['p50']:.0f} ms", f"p99 {latency['p99']:.0f} ms"))
    return "".join(
        f'<div class="figure"><dt>{escape(name)}</dt><dd>{escape(value)}<small>{escape(note)}</small></dd></div>'
        for name, value, note in cards
    )


def _classes(analysis: Analysis) -> str:
    """Return the rows of the class table; the cells that follow the threshold are filled by the script."""
    rows = []
    best = analysis.operating_points()
    for place, score in enumerate(analysis.report.scores.per_class):
        if not score.instances and not score.detections:
            continue
        counts = [str(score.instances), str(score.detections)]
        averages = [_number(value) for value in (score.ap, score.ap50, score.ar)]
        suggested = f"{best[place]['threshold']:.2f}" if best[place]["f1"] else "-"
        cells = "".join(f"<td>{value}</td>" for value in (*counts, *averages, suggested))
        live = "".join(f'<td data-live="{name}"></td>' for name in ("precision", "recall", "f1"))
        rows.append(f'<tr data-class="{place}"><th scope="row">{escape(score.name)}</th>{cells}{live}</tr>')
    return "".join(rows)


def _comparison(analysis: Analysis, thumbnails: Thumbnails) -> str:
    change = analysis.comparison
    if not change:
        return ""
    spread = change.interval
    sentence = f"AP {_signed(change.difference)}"
    if spread:
        certain = spread.low > 0 or spread.high < 0
        sentence += (
            f", 95 % interval {_signed(spread.low)} to {_signed(spread.high)}"
            f" ({spread.resamples} paired resamples of the images). "
            f"{'The interval leaves out 0.' if certain else 'The interval holds 0: this may be chance.'}"
        )
    numbers = [(name, *_change(old, new)) for name, (old, new) in change.numbers.items()]
    classes = [(name, *_change(old, new)) for name, old, new in change.classes]
    head = ("before", "now", "change")
    worse, better = (changed(analysis, thumbnails, images) for images in (change.worse, change.better))
    return (
        '<section id="comparison"><h2>What changed</h2>'
        f"<p><strong>{escape(sentence)}</strong></p>"
        f"<p>Baseline: {escape(str(change.baseline.path))}. Images are compared by their errors, each model at its"
        f" own suggested threshold: {change.baseline.threshold:.2f} before, {analysis.threshold:.2f} now."
        f" {len(change.worse)} images got worse, {len(change.better)} better.</p>"
        f'<div class="columns">{_table(("class", *head), classes)}{_table(("number", *head), numbers)}</div>'
        f'<h3>Images that got worse</h3><div class="gallery wide">{worse}</div>'
        f'<h3>Images that got better</h3><div class="gallery wide">{better}</div>'
        "</section>"
    )


def _run(analysis: Analysis) -> str:
    report, model = analysis.report, analysis.report.model
    rows = [
        ("model", model.get("where", "")),
        ("run by", model.get("runtime", "")),
        ("precision", model.get("precision", "")),
        ("versions", _pairs(model.get("versions", {}))),
        ("graph SHA-256", model.get("graph_sha256", "")),
        ("checkpoint SHA-256", model.get("checkpoint_sha256", "")),
        ("labels", str(report.truth.path)),
        ("labels SHA-256", report.truth.sha256),
        ("images a second", f"{len(report.files) / report.seconds:.1f}"),
        ("latency, ms", _pairs({name: f"{value:.1f}" for name, value in report.latency_ms.items()})),
        (
            "busy share of the server's steps",
            _pairs({name: f"{value:.2f}" for name, value in report.busy.items()}),
        ),
    ]
    return _table(("of this run", "value"), [(name, value or "not known") for name, value in rows])


def _failed(analysis: Analysis) -> str:
    report = analysis.report
    if not report.errors:
        return ""
    rows = [(report.files[image_id].name, error.message) for image_id, error in report.errors.items()]
    shown = _table(("file", "reason"), rows[:100])
    more = f"<p>and {len(rows) - 100} more</p>" if len(rows) > 100 else ""
    return f"<h3>{len(rows)} images without an answer</h3>{shown}{more}"


def _subtitle(analysis: Analysis) -> str:
    model, report = analysis.report.model, analysis.report
    hashed = model.get("graph_sha256") or model.get("checkpoint_sha256") or ""
    parts = [
        model.get("where", ""),
        model.get("runtime", ""),
        hashed[:12],
        f"{len(report.files)} images",
        f"{datetime.datetime.now().astimezone():%Y-%m-%d %H:%M %Z}",
    ]
    return " · ".join(part for part in parts if part)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    body = "".join(
        f'<tr><th scope="row">{escape(first)}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in cells)}</tr>'
        for first, *cells in rows
    )
    names = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    return (
        f'<div class="scroll"><table class="sortable"><thead><tr>{names}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _change(old: float | None, new: float | None) -> tuple[str, str, str]:
    return _number(old), _number(new), _signed(None if old is None or new is None else new - old)


def _number(value: float | None) -> str:
    # Halves go up, as JavaScript's toFixed has them beside these numbers.
    return "-" if value is None else f"{value + 1e-12:.3f}"


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.3f}".replace("-", "\N{MINUS SIGN}")


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
