"""What `verify` found, for people and for JSON: tables, where to look, and the worst images side by side.

print(table(result))
write_sheets(result, Path("verified"))        # 1-model.onnx-openvino.jpg, one per candidate
"""

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from retinaserve.eval.verify.compare import SOURCE, Comparison, Verification
from retinaserve.eval.verify.matching import AT_LEAST, TABLE, Side
from retinaserve.training.images.draw import contact_sheet, draw, open_image

LISTED = 8  # boxes without a counterpart that are printed, the strongest
TILE = (640, 480)
SHOWN_SCORE = 0.3  # boxes that both sides have are drawn from here on; those that differ always
CLASSES_SWAPPED = 0.5  # share of odd boxes with a twin of another class from which that is the first thing to say
HEAD_COLUMNS = ("head-max", "head-mean", "head-cosine")


def table(result: Verification) -> str:
    """Return a block a candidate and the verdict."""
    blocks = ["\n".join(_block(result, comparison)) for comparison in result.comparisons]
    verdicts = [f"{'PASS' if each.passed else 'FAIL'}  {each.candidate.title}" for each in result.comparisons]
    return "\n\n".join([*blocks, "\n".join(verdicts)])


def to_dict(result: Verification) -> dict[str, Any]:
    """Return everything for JSON; what is no finite number is null."""
    return {
        "passed": result.passed,
        "reference": {
            "model": str(result.reference.name),
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
        lines.append(f"{refused} images that the reference takes were not answered, the first: {first}")
    heads = {check.subject for check in comparison.failed if check.name in HEAD_COLUMNS}
    boxes = [check.name for check in comparison.failed if check.subject == "boxes"]
    lone = [box for box in _alone(result, comparison) if box.side == "reference" and box.other_class]
    swaps = Counter((box.class_name, box.other_class) for box in lone)
    if swaps and 2 * sum(swaps.values()) >= CLASSES_SWAPPED * comparison.unmatched:  # a swap is two lone boxes
        (one, other), count = swaps.most_common(1)[0]
        lines.append(f"the places agree, the classes do not: {one} became {other} {count} times")
    if heads:
        lines.append(f"the network differs: {_levels(heads)}; a weight, the normalisation or the precision")
    elif boxes and comparison.heads:
        lines.append("the heads are within their limits, so look behind them: decode, NMS or the letterbox")
    elif boxes and result.reference.runtime == SOURCE:
        lines.append(
            "this is not the detector that wrote the results, or not as it ran: look at what `import` assumed, "
            "anchors, pixels and resize rule first"
        )
    elif boxes:
        lines.append(
            f"{comparison.candidate.runtime} exposes no heads: compare the .onnx it was made from as well, which "
            "tells the model from what surrounds it"
        )
    if [check.name for check in comparison.failed] == ["ap-loss"]:
        lines.append("every box is within its limits, but AP is lost: look at the classes with few instances")
    return lines


def write_sheets(result: Verification, folder: Path, *, count: int = 6) -> list[Path]:
    """Write a sheet of the `count` worst images for each candidate, the reference on the left."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for number, comparison in enumerate(result.comparisons, 1):
        tiles = [tile for image in comparison.worst(count) for tile in _tiles(result, comparison, image)]
        if tiles:
            name = comparison.candidate.title.rsplit("/", 1)[-1].lower()
            path = folder / f"{number}-{re.sub(r'[^a-z0-9._]+', '-', name).strip('-')}.jpg"
            contact_sheet(tiles, columns=2, tile=TILE).save(path, quality=90)
            written.append(path)
    return written


def _block(result: Verification, comparison: Comparison) -> Iterator[str]:
    candidate, reference = comparison.candidate, result.reference
    yield f"{candidate.title}, {candidate.precision or 'precision unknown'}"
    yield (
        f"against {reference.name} ({reference.runtime}, {reference.precision or 'precision unknown'}) "
        f"on {len(comparison.answers)} images, limits of {comparison.judged_as}"
    )
    if candidate.note:
        yield candidate.note
    yield ""
    if reference.runtime != SOURCE:
        yield from _heads_table(comparison)
    yield from _boxes_table(comparison)
    yield from _unmatched_lines(result, comparison)
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
        yield f"  {tensor:<16}{_number(apart.max):>10}{_number(apart.mean):>10}{apart.cosine:>12.6f}{marks}"
    limits = [f"{comparison.limits[name]:g}" for name in HEAD_COLUMNS]
    yield f"  {'limit':<16}{limits[0]:>10}{limits[1]:>10}{'>= ' + limits[2]:>12}"
    yield ""


def _boxes_table(comparison: Comparison) -> Iterator[str]:
    yield f"  {'boxes':<16}{'reference':>10}{'candidate':>10}{'matched':>10}{'alone':>10}{'borderline':>12}"
    yield (
        f"  {'':<16}{comparison.expected_boxes:>10}{comparison.boxes:>10}{comparison.matched:>10}"
        f"{comparison.unmatched:>10}{comparison.borderline:>12}"
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
        yield f"  {'refused':<16}{len(comparison.refused):>10}{'<= 0':>12}   images without an answer   FAIL"


def _unmatched_lines(result: Verification, comparison: Comparison) -> Iterator[str]:
    strongest = sorted(_alone(result, comparison), key=lambda box: -box.score)
    for box in strongest[:LISTED]:
        place = " ".join(f"{edge:.0f}" for edge in box.box)
        twin = f", {box.other_class} on the other side" if box.other_class else ""
        yield f"  {box.file.name}: only in the {box.side}: {box.class_name} {box.score:.2f} at {place}{twin}"
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
            name: {key: _json(getattr(apart, key)) for key in ("max", "mean", "cosine")}
            for name, apart in comparison.heads.items()
        },
        "boxes": {
            "reference": comparison.expected_boxes,
            "candidate": comparison.boxes,
            "matched": comparison.matched,
            "alone": comparison.unmatched,
            "borderline": comparison.borderline,
        },
        "ap": {"reference": comparison.ap[0], "candidate": _json(comparison.ap[1])} if comparison.ap else None,
        "checks": [
            {**asdict(check), "value": _json(check.value), "passed": check.passed} for check in comparison.checks
        ],
        "alone": [
            {
                "file": str(box.file),
                "side": box.side,
                "class": box.class_name,
                "other_class": box.other_class,
                "score": _json(box.score),
                "box": [_json(edge) for edge in box.box],
            }
            for box in _alone(result, comparison)
        ],
        "refused": [
            {"file": str(result.files[image]), "kind": error.kind, "message": error.message}
            for image, error in comparison.refused.items()
        ],
    }


class _Alone(NamedTuple):
    """A box without a counterpart, as people read it."""

    file: Path
    side: Side
    class_name: str
    other_class: str | None  # of the box at the same place on the other side
    score: float
    box: list[float]


def _alone(result: Verification, comparison: Comparison) -> Iterator[_Alone]:
    names = result.reference.model.class_names
    for image, matching in comparison.matchings.items():
        for box in matching.unmatched:
            found = result.expected[image] if box.side == "reference" else comparison.answers[image]
            name, other = names[found.classes[box.index]], names[box.other_class] if box.other_class >= 0 else None
            yield _Alone(result.files[image], box.side, name, other, box.score, found.boxes[box.index].tolist())


def _levels(tensors: set[str]) -> str:
    """Name the tensors shortly: the kinds, and the levels of each."""
    levels: dict[str, list[str]] = {}
    for tensor in sorted(tensors):
        kind, _, level = tensor.rpartition("_")
        levels.setdefault(kind, []).append(level.upper())
    return ", ".join(f"{kind.replace('_', ' ')} of {' '.join(names)}" for kind, names in levels.items())


def _tiles(result: Verification, comparison: Comparison, image: int) -> Iterator[tuple[Image.Image, str]]:
    """Yield the image with the reference's boxes and with the candidate's, each with a caption.

    Drawn are what both have and, with a label that says so, what a side has alone; the rest is borderline or weak.
    """
    file, matching, names = result.files[image], comparison.matchings[image], result.reference.model.class_names
    labels: Mapping[int, str] = dict(enumerate([*names, *(f"ONLY HERE {name}" for name in names)]))
    sides = (("reference", result.expected[image]), ("candidate", comparison.answers[image]))
    for column, (side, found) in enumerate(sides):
        alone = [box.index for box in matching.unmatched if box.side == side]
        shown = [index for index in matching.pairs[:, column] if found.scores[index] >= SHOWN_SCORE]
        keep = np.array([*alone, *shown], np.int64)
        classes = found.classes[keep] + np.array([len(names)] * len(alone) + [0] * len(shown), np.int32)
        chosen = replace(found, boxes=found.boxes[keep], scores=found.scores[keep], classes=classes)
        caption = f"{side}: {file.name}, {len(found)} boxes, {len(alone)} alone"
        yield draw(open_image(file), chosen, labels, within=TILE), caption


def _number(value: float) -> str:
    return f"{value:.2e}" if 0 < abs(value) < 0.0001 else f"{value:.4f}"


def _json(value: float) -> float | None:
    return value if math.isfinite(value) else None
