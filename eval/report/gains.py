"""What each kind of error costs: AP50 gained if the errors of one kind, and only those, were mended.

    gains(truth, outcomes)["localisation"]     # 0.042: AP50 would be 4.2 points higher

TIDE's oracles (Bolya et al., ECCV 2020, section 2.3): a localisation error gets the box it missed, a class error
the class of the box it found; where that box is found already, or several errors are about one box, only the best
detection of it stays. Duplicates, background and `both` errors go; a missed box is taken from the labels. The
gains do not add up, as the errors hide each other. pycocotools computes every one of these AP.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from retinaserve.eval.report.outcomes import (
    BACKGROUND,
    BOTH,
    CLASS,
    CORRECT,
    DUPLICATE,
    KINDS,
    LOCALISATION,
    NEVER,
    Outcomes,
)
from retinaserve.training.coco import Annotations
from retinaserve.training.scores import ap50

Rows = list[dict[str, Any]]


def gains(truth: Annotations, outcomes: Outcomes) -> dict[str, float | None]:
    """Return the gain in AP50 of mending each kind of error, `missed` among them; None without labelled boxes."""
    before = ap50(truth, outcomes.rows)
    if before is None:
        return dict.fromkeys(("localisation", "class", "both", "duplicate", "background", "missed"))
    mended: dict[str, Callable[[], float | None]] = {
        "localisation": lambda: ap50(truth, _moved(outcomes, LOCALISATION)),
        "class": lambda: ap50(truth, _moved(outcomes, CLASS)),
        "both": lambda: ap50(truth, _without(outcomes, BOTH)),
        "duplicate": lambda: ap50(truth, _without(outcomes, DUPLICATE)),
        "background": lambda: ap50(truth, _without(outcomes, BACKGROUND)),
        "missed": lambda: ap50(_explained(truth, outcomes), outcomes.rows),
    }
    present = {KINDS[kind] for kind in np.unique(outcomes.kind) if kind > CORRECT} | {"missed"}
    after = {name: compute() if name in present else before for name, compute in mended.items()}
    # A set whose every box is missed has no AP left without them: all of it is the gain.
    return {name: (1.0 if value is None else value) - before for name, value in after.items()}


def _moved(outcomes: Outcomes, kind: int) -> Rows:
    """Return the rows with the best error on each open box put right, and all other errors of the kind gone."""
    rows: Rows = []
    mended: set[int] = set()
    errors = np.flatnonzero(outcomes.kind == kind)
    best = errors[np.argsort(-outcomes.score[errors], kind="stable")]
    chosen = {}
    for row in best:
        target = int(outcomes.target[row])
        if outcomes.found[target] == NEVER and target not in mended:
            mended.add(target)
            chosen[int(row)] = target
    for place, row in enumerate(outcomes.rows):
        if outcomes.kind[place] != kind:
            rows.append(row)
        elif place in chosen:
            target = chosen[place]
            x1, y1, x2, y2 = outcomes.truth_boxes[target].tolist()
            category = outcomes.category_ids[outcomes.truth_category[target]]
            rows.append({**row, "category_id": category, "bbox": [x1, y1, x2 - x1, y2 - y1]})
    return rows


def _without(outcomes: Outcomes, kind: int) -> Rows:
    return [row for row, its_kind in zip(outcomes.rows, outcomes.kind, strict=True) if its_kind != kind]


def _explained(truth: Annotations, outcomes: Outcomes) -> Annotations:
    """Return the labels without the boxes that are missed."""
    missed = (outcomes.found == NEVER) & (outcomes.covered == NEVER)
    gone = set(outcomes.truth_id[missed].tolist())
    return replace(truth, boxes=tuple(box for box in truth.boxes if box["id"] not in gone))
