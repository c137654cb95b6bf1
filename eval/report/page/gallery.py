"""The images of a report, truth and answers side by side: the worst, and those that a new model changed.

    worst(analysis, album, count=24)          # HTML

Boxes say what became of them at the threshold the page is set to; which ones are worst was decided at the
suggested one.
"""

from html import escape

import numpy as np

from retinaserve.eval.report.analysis import Analysis
from retinaserve.eval.report.comparison import ImageChange
from retinaserve.eval.report.outcomes import CORRECT, KINDS, Outcomes
from retinaserve.eval.report.page.pictures import Album, Box, panel
from retinaserve.eval.report.thresholds import steps

WORST, CHANGED = 24, 8
LOWEST_SHOWN = 0.1  # weaker detections are not in the pictures
MOST_BOXES = 60  # of an image


def worst(analysis: Analysis, album: Album, count: int = WORST) -> str:
    """Return the images with the most errors: what is labelled beside what was found."""
    parts = []
    for image_id, errors in analysis.worst_images(count):
        parts.append(_card(analysis, album, image_id, _errors(errors), []))
    return "".join(parts) or "<p>No image has an error at the suggested threshold.</p>"


def changed(analysis: Analysis, album: Album, changes: tuple[ImageChange, ...], count: int = CHANGED) -> str:
    """Return the most changed images: labelled, found before, found now."""
    assert analysis.comparison
    baseline = analysis.comparison.baseline
    parts = []
    for change in changes[:count]:
        title = f"{_errors(change.before)} before, {change.now} now"
        before = (baseline.outcomes, baseline.threshold)
        parts.append(_card(analysis, album, change.image_id, title, [before]))
    return "".join(parts) or "<p>None.</p>"


def _card(
    analysis: Analysis, album: Album, image_id: int, title: str, before: list[tuple[Outcomes, float]]
) -> str:
    name = analysis.report.truth.images[image_id]
    error = analysis.report.errors.get(image_id)
    heading = f"<h4>{escape(name)} <small>{escape(title)}</small></h4>"
    if error:
        heading += f'<p class="bad">not answered: {escape(error.message)}</p>'
    panels = []
    sides = [
        ("labelled", _truth(analysis.outcomes, image_id)),
        *((f"before, from {low:.2f}", _said(found, image_id, low)) for found, low in before),
        ("now" if before else "found", _said(analysis.outcomes, image_id, None)),
    ]
    for caption, boxes in sides:
        copy = album.use(image_id)
        if copy is None:
            return f'<article class="card">{heading}<p>The picture can\'t be shown here.</p></article>'
        panels.append(panel(copy, boxes, caption=caption))
    return f'<article class="card">{heading}<div class="panels">{"".join(panels)}</div></article>'


def _truth(outcomes: Outcomes, image_id: int) -> list[Box]:
    mine = np.flatnonzero(outcomes.truth_image == outcomes.image_ids.index(image_id))
    return [
        Box(
            outcomes.truth_boxes[place],
            outcomes.class_names[outcomes.truth_category[place]],
            f"found at {outcomes.found[place]:.2f}" if outcomes.found[place] >= 0 else "never found",
            "truth",
            wrong=False,
            step=int(steps(outcomes.found[place : place + 1])[0]),
        )
        for place in mine
    ]


def _said(outcomes: Outcomes, image_id: int, fixed: float | None) -> list[Box]:
    """Return the detections; those of a `fixed` threshold stay whatever the page is set to."""
    lowest = LOWEST_SHOWN if fixed is None else fixed
    place = outcomes.image_ids.index(image_id)
    mine = np.flatnonzero((outcomes.image == place) & (outcomes.score >= lowest) & (outcomes.kind >= 0))
    mine = mine[np.argsort(-outcomes.score[mine], kind="stable")][:MOST_BOXES]
    return [
        Box(
            outcomes.boxes[row],
            outcomes.class_names[outcomes.category[row]],
            f"{KINDS[outcomes.kind[row]]} {outcomes.score[row]:.2f}",
            "said",
            wrong=bool(outcomes.kind[row] != CORRECT),
            step=int(steps(outcomes.score[row : row + 1])[0]) if fixed is None else 100,
        )
        for row in mine
    ]


def _errors(count: int) -> str:
    return f"{count} error{'' if count == 1 else 's'}"
