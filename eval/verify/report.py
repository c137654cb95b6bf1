"""What `verify` found, for people and for JSON: tables, where to look, and the worst pictures side by side.

    print(table(result))
    write_pictures(result, Path("verified"))        # 1-model.onnx-openvino.jpg, one a candidate

It judges nothing (eval/verify/verify.py does).
"""

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from retinaserve.eval.verify.matching import Odd, Side
from retinaserve.eval.verify.tolerances import AT_LEAST, TABLE
from retinaserve.eval.verify.verify import Comparison, Verification
from retinaserve.training.detections import Detections
from retinaserve.training.draw import contact_sheet, draw, open_picture

LISTED = 8  # boxes without a counterpart that are printed, the strongest
TILE = (640, 480)
SHOWN_SCORE = 0.3  # boxes that both sides have are drawn from here on; those that differ always
CLASSES_SWAPPED = 0.5  # share of odd boxes with a twin of another class from which that is the first thing to say
HEAD_COLUMNS = ("head-max", "head-mean", "head-cosine")


def table(result: Verification) -> str:
    """Return a block a candidate and the verdict."""
    blocks = ["\n".join(_block(result, comparison)) for comparison in result.comparisons]
    verdicts = [
        f"{'PASS' if comparison.passed else 'FAIL'}  {comparison.candidate.title}"
        for comparison in result.comparisons
    ]
    return "\n\n".join([*blocks, "\n".join(verdicts)])


def to_dict(result: Verification) -> dict[str, Any]:
    """Return everything for JSON; what is no finite number is null."""
    return {
        "passed": result.passed,
        "reference": {
            "model": str(result.reference.path),
            "runtime": result.reference.runtime,
            "precision": result.reference.precision,
        },
        "images": len(result.expected),
        "failed_images": [
            {"file": str(result.files[image]), "message": error.message} for image, error in result.errors.items()
        ],
        "warning": result.warning,
        "candidates": [_comparison_dict(result, comparison) for comparison in result.comparisons],
    }


def advice(result: Verification, comparison: Comparison) -> list[str]:
    """Return what the failed checks point at, most telling first."""
    lines = []
    refused = len(comparison.refused)
    if refused:
        first = next(iter(comparison.refused.values())).message
        lines.append(f"{refused} pictures that the reference takes were not answered, the first: {first}")
    heads = {check.subject for check in comparison.failed if check.name in HEAD_COLUMNS}
    boxes = [check.name for check in comparison.failed if check.subject == "boxes"]
    swaps = Counter(_swaps(result, comparison))
    if swaps and 2 * sum(swaps.values()) >= CLASSES_SWAPPED * comparison.odd:  # a swap is two lone boxes
        (one, other), count = swaps.most_common(1)[0]
        lines.append(f"the places agree, the classes do not: {one} became {other} {count} times")
    if heads:
        lines.append(f"the network differs: {_levels(heads)}; a weight, the normalisation or the precision")
    elif boxes and comparison.heads:
        lines.append("the heads are within their limits, so look behind them: decode, NMS or the letterbox")
    elif boxes:
        lines.append(
            f"{comparison.candidate.runtime} exposes no heads: compare the .onnx it was made from as well, which "
            "tells the model from what surrounds it"
        )
    if [check.name for check in comparison.failed] == ["ap-loss"]:
        lines.append("every box is within its limits, but AP is lost: look at the classes with few instances")
    return lines


def write_pictures(result: Verification, folder: Path, *, count: int = 6) -> list[Path]:
    """Write a sheet of the `count` worst pictures for each candidate, the reference on the left."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for number, comparison in enumerate(result.comparisons, 1):
        pictures = []
        for image in comparison.worst(count):
            pairs = comparison.pairs[image]
            sides: tuple[tuple[Side, Detections, int], ...] = (
                ("reference", result.expected[image], 0),
                ("candidate", comparison.answers[image], 1),
            )
            for side, found, column in sides:
                picture = _drawn(result, image, found, side, pairs.odd, pairs.rows[:, column])
                alone = sum(odd.side == side for odd in pairs.odd)
                pictures.append(
                    (picture, f"{side}: {result.files[image].name}, {len(found)} boxes, {alone} alone")
                )
        if pictures:
            path = folder / f"{number}-{_slug(comparison.candidate.title)}.jpg"
            contact_sheet(pictures, columns=2, tile=TILE).save(path, quality=90)
            written.append(path)
    return written


def _block(result: Verification, comparison: Comparison) -> Iterator[str]:
    candidate, reference = comparison.candidate, result.reference
    yield f"{candidate.title}, {candidate.precision or 'precision unknown'}"
    yield (
        f"against {reference.path} ({reference.runtime}, {reference.precision or 'precision unknown'}) "
        f"on {len(comparison.answers)} pictures, limits of {comparison.judged_as}"
    )
    if candidate.note:
        yield candidate.note
    yield ""
    yield from _heads_table(comparison)
    yield from _boxes_table(comparison)
    yield from _odd_lines(result, comparison)
    for line in advice(result, comparison):
        yield f"  -> {line}"


def _heads_table(comparison: Comparison) -> Iterator[str]:
    if not comparison.heads:
        yield "  exposes no heads"
        yield ""
        return
    yield f"  {'tensor':<16}{'max':>10}{'mean':>10}{'cosine':>12}"
    for tensor, apart in comparison.heads.items():
        failed = [check.name for check in comparison.failed if check.subject == tensor]
        marks = f"   FAIL {' '.join(failed)}" if failed else ""
        yield f"  {tensor:<16}{_number(apart.max):>10}{_number(apart.mean):>10}{_cosine(apart.cosine):>12}{marks}"
    limits = [f"{comparison.limits[name]:g}" for name in HEAD_COLUMNS]
    yield f"  {'limit':<16}{limits[0]:>10}{limits[1]:>10}{'>= ' + limits[2]:>12}"
    yield ""


def _boxes_table(comparison: Comparison) -> Iterator[str]:
    yield f"  {'boxes':<16}{'reference':>10}{'candidate':>10}{'matched':>10}{'alone':>10}{'borderline':>12}"
    yield (
        f"  {'':<16}{comparison.expected_boxes:>10}{comparison.boxes:>10}{comparison.matched:>10}"
        f"{comparison.odd:>10}{comparison.borderline:>12}"
    )
    for check in comparison.checks:
        if check.name in HEAD_COLUMNS:
            continue
        limit = f"{'>=' if check.name in AT_LEAST else '<='} {check.limit:g}"
        more = ""
        if check.name == "ap-loss" and comparison.ap:
            more = f"   AP {comparison.ap[0]:.4f} -> {comparison.ap[1]:.4f}"
        mark = "" if check.passed else "   FAIL"
        yield f"  {check.name:<16}{_number(check.value):>10}{limit:>12}   {TABLE[check.name][0]}{more}{mark}"
    if comparison.refused:
        yield f"  {'refused':<16}{len(comparison.refused):>10}{'<= 0':>12}   pictures without an answer   FAIL"


def _odd_lines(result: Verification, comparison: Comparison) -> Iterator[str]:
    names = result.reference.class_names
    every = [(image, odd) for image, pairs in comparison.pairs.items() for odd in pairs.odd]
    strongest = sorted(every, key=lambda item: -item[1].score)
    for image, odd in strongest[:LISTED]:
        found = _side(result, comparison, image, odd.side)
        place = " ".join(f"{edge:.0f}" for edge in found.boxes[odd.index])
        name = names[int(found.classes[odd.index])]
        twin = f", {names[odd.other_class]} on the other side" if odd.other_class >= 0 else ""
        yield f"  {result.files[image].name}: only in the {odd.side}: {name} {odd.score:.2f} at {place}{twin}"
    if len(strongest) > LISTED:
        yield f"  and {len(strongest) - LISTED} more, all in --json"


def _comparison_dict(result: Verification, comparison: Comparison) -> dict[str, Any]:
    candidate = comparison.candidate
    return {
        "model": candidate.name,
        "runtime": candidate.runtime,
        "precision": candidate.precision,
        "judged_as": comparison.judged_as,
        "passed": comparison.passed,
        "advice": advice(result, comparison),
        "heads": {
            name: {"max": _json(apart.max), "mean": _json(apart.mean), "cosine": _json(apart.cosine)}
            for name, apart in comparison.heads.items()
        },
        "boxes": {
            "reference": comparison.expected_boxes,
            "candidate": comparison.boxes,
            "matched": comparison.matched,
            "alone": comparison.odd,
            "borderline": comparison.borderline,
        },
        "ap": {"reference": comparison.ap[0], "candidate": _json(comparison.ap[1])} if comparison.ap else None,
        "checks": [
            {
                "name": check.name,
                "subject": check.subject,
                "value": _json(check.value),
                "limit": check.limit,
                "passed": check.passed,
            }
            for check in comparison.checks
        ],
        "alone": [
            _odd_dict(result, comparison, image, odd)
            for image, pairs in comparison.pairs.items()
            for odd in pairs.odd
        ],
        "refused": [
            {"file": str(result.files[image]), "kind": error.kind, "message": error.message}
            for image, error in comparison.refused.items()
        ],
    }


def _odd_dict(result: Verification, comparison: Comparison, image: int, odd: Odd) -> dict[str, Any]:
    found, names = _side(result, comparison, image, odd.side), result.reference.class_names
    return {
        "file": str(result.files[image]),
        "side": odd.side,
        "class": names[int(found.classes[odd.index])],
        "other_class": names[odd.other_class] if odd.other_class >= 0 else None,
        "score": _json(odd.score),
        "box": [_json(float(edge)) for edge in found.boxes[odd.index]],
    }


def _side(result: Verification, comparison: Comparison, image: int, side: Side) -> Detections:
    return result.expected[image] if side == "reference" else comparison.answers[image]


def _swaps(result: Verification, comparison: Comparison) -> Iterator[tuple[str, str]]:
    """Yield (class, class on the other side) of the reference's lone boxes whose place the candidate has too."""
    names = result.reference.class_names
    for image, pairs in comparison.pairs.items():
        for odd in pairs.odd:
            if odd.side == "reference" and odd.other_class >= 0:
                yield names[int(result.expected[image].classes[odd.index])], names[odd.other_class]


def _levels(tensors: set[str]) -> str:
    """Name the tensors shortly: the kinds, and the levels of each."""
    levels: dict[str, list[str]] = {}
    for tensor in sorted(tensors):
        kind, _, level = tensor.rpartition("_")
        levels.setdefault(kind, []).append(level.upper())
    return ", ".join(f"{kind.replace('_', ' ')} of {' '.join(names)}" for kind, names in levels.items())


def _drawn(
    result: Verification, image: int, found: Detections, side: Side, odds: tuple[Odd, ...], matched: Any
) -> Any:
    """Draw what both have and, said so in its label, what this side has alone; the rest is borderline or weak."""
    names, count = result.reference.class_names, len(result.reference.class_names)
    alone = [odd.index for odd in odds if odd.side == side]
    shown = [index for index in matched if found.scores[index] >= SHOWN_SCORE]
    keep = np.array([*alone, *shown], np.int64)
    classes = found.classes[keep] + np.array([count] * len(alone) + [0] * len(shown), np.int32)
    labels: Mapping[int, str] = dict(enumerate([*names, *(f"ONLY HERE {name}" for name in names)]))
    chosen = replace(found, boxes=found.boxes[keep], scores=found.scores[keep], classes=classes)
    return draw(open_picture(result.files[image]), chosen, labels, within=TILE)


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9._]+", "-", text.rsplit("/", 1)[-1].lower()).strip("-")


def _number(value: float) -> str:
    return f"{value:.2e}" if 0 < abs(value) < 0.0001 else f"{value:.4f}"


def _cosine(value: float) -> str:
    return f"{value:.6f}"


def _json(value: float) -> float | None:
    return value if math.isfinite(value) else None
