"""The checks: generators over snapshots, each of which knows one kind of mistake and touches no file.

    report = check_data(read_split("train", images, annotations), read_split("val", ...))
    preflight(images, annotations, warn=print)          # what a training begins with

A check gives a find a line, led by the code; what belongs together becomes one finding.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from retinaserve.training.check.findings import CODES, Finding, Report, Summary, describe, refuse_errors
from retinaserve.training.check.snapshot import Split, read_split
from retinaserve.training.coco import name_of as which

T = TypeVar("T")
Find = tuple[str, str]  # code, example

SLACK = 2.0  # pixels over the border that are rounding
TINY = 2.0
RARE = 10
IMBALANCE = 100
ALIKE = 12  # of 512 signs that may differ in images that look the same
MOST = 4000  # images of a split beyond which all pairs aren't compared
DECODED = 5000  # images of a set beyond which `preflight` reads headers alone


def check_data(train: Split, val: Split | None = None) -> Report:
    """Return everything that the checks find in one split, or in two and between them."""
    splits = [train] if val is None else [train, val]
    found: list[Finding] = []
    for split in splits:
        if split.problem:
            found.append(Finding.of("file-unreadable", split.name, [f"{split.path}: {split.problem}"]))
            continue
        checks = (*CHECKS, check_classes) if split is train else CHECKS
        found += _gather(split.name, (find for check in checks for find in check(split)))
    if val is not None and not train.problem and not val.problem:
        found += _gather(f"{train.name}, {val.name}", (find for check in PAIRED for find in check(train, val)))
    rank = {severity: place for place, severity in enumerate(("error", "warning", "note"))}
    found.sort(key=lambda finding: rank[finding.severity])
    return Report(tuple(_summary(split) for split in splits if not split.problem), tuple(found))


def preflight(
    images: Path,
    annotations: Path,
    val_images: Path | None = None,
    val_annotations: Path | None = None,
    *,
    warn: Callable[[str], object] = lambda _: None,
) -> Report:
    """Check a data set before training; `warn` is given a line for each warning. Raises UserError for errors.

    Of a set of more images than `DECODED` only the headers are read; `retinaserve data check` reads everything.
    """

    def read(*, decode: bool) -> tuple[Split, Split | None]:
        train = read_split("train", images, annotations, decode=decode)
        if not val_annotations:
            return train, None
        return train, read_split("val", val_images or images, val_annotations, decode=decode)

    train, val = read(decode=False)
    if len(train.images) + (len(val.images) if val else 0) <= DECODED:
        train, val = read(decode=True)
    report = check_data(train, val)
    refuse_errors(report)
    for finding in report.findings:
        if finding.severity == "warning":
            warn(describe(finding))
    return report


def _gather(split: str, finds: Iterator[Find]) -> list[Finding]:
    lines: dict[str, list[str]] = defaultdict(list)
    for code, line in finds:
        lines[code].append(line)
    return [Finding.of(code, split, lines[code]) for code in CODES if code in lines]


def check_images(split: Split) -> Iterator[Find]:
    """Entries without an id or a name, and ids and files that are there twice."""
    ids, names = Counter[int](), Counter[str]()
    for image in split.images:
        entry = image.entry
        if entry.id is None or not entry.file_name:
            yield "image-entry", f"id {_found(entry.raw, 'id')!r}, file_name {_found(entry.raw, 'file_name')!r}"
            continue
        ids[entry.id] += 1
        names[entry.file_name] += 1
    yield from (("image-id-repeated", f"id {number}: {count} times") for number, count in _repeated(ids))
    yield from (("image-file-repeated", f"{name}: {count} times") for name, count in _repeated(names))


def check_files(split: Split) -> Iterator[Find]:
    """Files that are missing, can't be read, or are of another size than listed."""
    for image in split.images:
        size, listed = image.file.size, image.entry.listed_size
        if not image.entry.file_name:
            continue
        if not image.file.exists:
            yield "image-missing", image.name
        elif size is None:
            yield "image-unreadable", f"{image.name}: {image.file.error}"
        elif listed not in (size, (None, None)):
            as_listed, as_is = f"{image.name}: listed as {listed[0]} x {listed[1]}", f"{size[0]} x {size[1]}"
            if image.file.turned and listed == size[::-1]:
                yield "image-exif", f"{as_listed}, upright {as_is}"
            else:
                yield "image-size", f"{as_listed}, is {as_is}"


def check_repeated_images(split: Split) -> Iterator[Find]:
    """Images that are there more than once under different names."""
    names: dict[str, set[str]] = defaultdict(set)
    for image in split.images:
        if image.file.digest:
            names[image.file.digest].add(image.name)
    yield from (("image-repeated", " = ".join(sorted(same))) for same in names.values() if len(same) > 1)


def check_categories(split: Split) -> Iterator[Find]:
    """Categories without an id or a name, and those that are alike."""
    ids, names, folded = Counter[int](), Counter[str](), defaultdict[str, set[str]](set)
    for entry in split.categories:
        if entry.id is None or entry.name is None or not entry.name.strip():
            yield "category-entry", f"id {_found(entry.raw, 'id')!r}, name {_found(entry.raw, 'name')!r}"
            continue
        ids[entry.id] += 1
        names[entry.name] += 1
        folded[" ".join(entry.name.replace("_", " ").casefold().split())].add(entry.name)
    yield from (("category-repeated", f"id {number}: {count} times") for number, count in _repeated(ids))
    yield from (("category-repeated", f"{name!r}: {count} times") for name, count in _repeated(names))
    for same in folded.values():
        if len(same) > 1:
            yield "category-alike", " and ".join(repr(name) for name in sorted(same))


def check_annotations(split: Split) -> Iterator[Find]:
    """Annotations that belong to nothing."""
    for place, box in enumerate(split.boxes):
        if not isinstance(box.raw, Mapping):
            yield "annotation-entry", f"number {place}: {str(box.raw)[:40]}"
            continue
        if box.image_id not in split.image_of:
            yield "annotation-image", f"{which(box, place)}: image_id {_found(box.raw, 'image_id')!r}"
        if box.category_id not in split.name_of:
            yield "annotation-category", f"{which(box, place)}: category_id {_found(box.raw, 'category_id')!r}"
    ids = Counter(box.id for box in split.boxes if box.id is not None)
    yield from (("annotation-id-repeated", f"id {number}: {count} times") for number, count in _repeated(ids))


def check_boxes(split: Split) -> Iterator[Find]:
    """Boxes that can't be right, each by itself; a set in another format is one find."""
    other_format, share = _format(split)
    if other_format:
        yield other_format, share
    for place, box in enumerate(split.boxes):
        if not isinstance(box.raw, Mapping):
            continue
        if box.bbox is None:
            yield "box-malformed", f"{which(box, place)}: {str(_found(box.raw, 'bbox'))[:60]}"
            continue
        x, y, w, h = box.bbox
        if w <= 0 or h <= 0:
            yield "box-degenerate", f"{which(box, place)}: {list(box.bbox)}"
            continue
        if other_format:
            continue
        if min(w, h) < TINY:
            yield "box-tiny", f"{which(box, place)}: {list(box.bbox)}"
        size = _size(split, box.image_id)
        if size is None:
            continue
        beyond = (-x, -y, x + w - size[0], y + h - size[1])  # pixels over each border
        if x >= size[0] or y >= size[1] or x + w <= 0 or y + h <= 0:
            yield "box-outside", f"{which(box, place)}: {list(box.bbox)} in {size[0]} x {size[1]}"
        elif max(beyond) > SLACK:
            yield "box-overhang", f"{which(box, place)}: {list(box.bbox)} in {size[0]} x {size[1]}"


def check_repeated_boxes(split: Split) -> Iterator[Find]:
    """Boxes that are there twice; those without an area are `check_boxes`'s."""
    seen = Counter(
        (str(_found(box.raw, "image_id")), str(_found(box.raw, "category_id")), box.bbox)
        for box in split.boxes
        if box.bbox and min(box.bbox[2:]) > 0
    )
    for (image_id, _, bbox), count in _repeated(seen):
        yield "box-repeated", f"image {image_id}: {list(bbox)}, {count} times"


def check_balance(split: Split) -> Iterator[Find]:
    """What there is to learn beside boxes, and whether there is anything."""
    if not split.boxes_per_category.total():
        yield "no-boxes", f"{len(split.boxes)} annotations"
    for place, box in enumerate(split.boxes):
        if box.crowd:
            yield "crowd", f"{which(box, place)} of image {_found(box.raw, 'image_id')!r}"
    for image in split.empty_images:
        yield "image-empty", image.name


def check_classes(split: Split) -> Iterator[Find]:
    """Categories of which there is too little to learn."""
    counts = split.boxes_per_category
    most = max(counts.values(), default=0)
    for number, name in split.name_of.items():
        count = counts[number]
        if not count:
            yield "category-unused", name
        elif count < RARE:
            yield "category-rare", f"{name}: {count}"
        if count and count * IMBALANCE <= most:
            yield "category-imbalance", f"{name}: {count}, the commonest has {most}"


def check_leak(train: Split, val: Split) -> Iterator[Find]:
    """Images that are in both splits, byte by byte or by their looks."""
    if train.path.resolve() == val.path.resolve():
        yield "split-same", str(train.path)
        return
    digests = {image.file.digest: image.name for image in train.images if image.file.digest}
    leaked = set()
    for image in val.images:
        if image.file.digest in digests:
            leaked.add(image.name)
            yield "split-leak", f"{digests[image.file.digest]} = {image.name}"
    if max(len(train.images), len(val.images)) > MOST:
        return
    looks = [(image.file.look, image.name) for image in train.images if image.file.look is not None]
    for image in val.images:
        if image.file.look is None or image.name in leaked:
            continue
        near = min((((image.file.look ^ look).bit_count(), name) for look, name in looks), default=None)
        if near and near[0] <= ALIKE:
            yield "split-similar", f"{near[1]} and {image.name}"


def check_sizes(train: Split, val: Split) -> Iterator[Find]:
    """Splits of which the wrong one is the larger, as when the two files were given the wrong way round."""
    if len(val.images) > len(train.images):
        yield "split-larger", f"{len(val.images)} and {len(train.images)}"


def check_split_categories(train: Split, val: Split) -> Iterator[Find]:
    """Categories that mean another thing in the other split, or can't be learnt."""
    for number in sorted(train.name_of.keys() | val.name_of.keys()):
        here, there = train.name_of.get(number), val.name_of.get(number)
        if here != there:
            yield "split-categories", f"id {number}: {here!r} and {there!r}"
    for number, count in val.boxes_per_category.items():
        if not train.boxes_per_category[number]:
            yield "split-unseen", f"{val.name_of[number]}: {count} boxes to find"


CHECKS: tuple[Callable[[Split], Iterator[Find]], ...] = (
    check_images,
    check_files,
    check_repeated_images,
    check_categories,
    check_annotations,
    check_boxes,
    check_repeated_boxes,
    check_balance,
)
PAIRED: tuple[Callable[[Split, Split], Iterator[Find]], ...] = (check_leak, check_sizes, check_split_categories)


def _format(split: Split) -> tuple[str, str]:
    """Return the code of the format that nearly all boxes fit and [x, y, w, h] does not, and how many do."""
    sized = [(box.bbox, _size(split, box.image_id)) for box in split.boxes if box.bbox]
    rows = [(*bbox, *size) for bbox, size in sized if size]
    if not rows:
        return "", ""
    a, b, c, d, width, height = np.array(rows).T
    width, height, total = width + SLACK, height + SLACK, len(rows)
    in_corner = (a >= -SLACK) & (b >= -SLACK)
    fits = np.sum(in_corner & (a + c <= width) & (b + d <= height))
    shares = np.sum(np.abs((a, b, c, d)).max(axis=0) <= 1)
    corners = np.sum(in_corner & (c > a) & (d > b) & (c <= width) & (d <= height))
    inside = (a - c / 2 >= -SLACK) & (b - d / 2 >= -SLACK) & (a + c / 2 <= width) & (b + d / 2 <= height)
    centres = np.sum(inside & (c > 0) & (d > 0))
    if shares > 0.9 * total:
        return "box-normalised", f"{shares} of {total} boxes have no value above 1"
    if fits > 0.9 * total:
        return "", ""
    fit = f"of {total} boxes fit their images"
    if corners > 0.98 * total:
        return "box-xyxy", f"{corners} {fit} as corners, {fits} with a width and height"
    if centres > 0.98 * total:
        return "box-centre", f"{centres} {fit} around a centre, {fits} from a corner"
    return "", ""


def _size(split: Split, image_id: int | None) -> tuple[int, int] | None:
    image = split.image_of.get(image_id) if image_id is not None else None
    return image.file.size if image else None


def _found(entry: Any, key: str) -> Any:
    """Return a field as it was found, usable or not."""
    return entry.get(key) if isinstance(entry, Mapping) else None


def _repeated(counts: Counter[T]) -> Iterator[tuple[T, int]]:
    return ((item, count) for item, count in counts.items() if count > 1)


def _summary(split: Split) -> Summary:
    return Summary(
        split.name,
        str(split.path),
        len(split.images),
        split.boxes_per_category.total(),
        sum(box.crowd for box in split.boxes),
        len(split.empty_images),
        {name: split.boxes_per_category[number] for number, name in split.name_of.items()},
    )
