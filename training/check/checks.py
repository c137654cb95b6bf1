"""The checks: generators over snapshots, each of which knows one kind of mistake and touches no file.

    report = check_data(read_split("train", images, annotations), read_split("val", ...))
    preflight(images, annotations, warn=print)          # what a training begins with
    truth = scored_labels(annotations, images, warn=print)      # what a scoring begins with

What is wrong with the entries themselves the reader has found (check/entries.py). A check gives a find a line, led
by the code; what belongs together becomes one finding.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from retinaserve.training.check.findings import (
    Finding,
    Finds,
    Report,
    Summary,
    describe,
    refuse_errors,
    worst_first,
)
from retinaserve.training.check.snapshot import Split, read_split
from retinaserve.training.coco import Annotations
from retinaserve.training.errors import UserError
from retinaserve.training.scoring.judge import MAX_DETECTIONS

Find = tuple[Any, ...]  # code, format of an example, its values

SLACK = 2.0  # pixels over the border that are rounding
TINY = 2.0
USED = 0.3  # of the range of a format, below which a sensor's own is worth stating
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
            (finding,) = _gather(split.name, [("file-unreadable", "{}", split.problem)])
            found.append(replace(finding, remedy=split.hint or finding.remedy))
            continue
        found += [replace(finding, split=split.name) for finding in split.labels.findings]
        checks = (*CHECKS, check_classes) if split is train else CHECKS
        found += _gather(split.name, (find for check in checks for find in check(split)))
    if val is not None and not train.problem and not val.problem:
        found += _gather(f"{train.name}, {val.name}", (find for check in PAIRED for find in check(train, val)))
    return Report(tuple(_summary(split) for split in splits if not split.problem), tuple(worst_first(found)))


def preflight(
    images: Path,
    annotations: Path,
    val_images: Path | None = None,
    val_annotations: Path | None = None,
    *,
    warn: Callable[[str], object] = lambda _: None,
) -> Report:
    """Check a data set before training; `warn` gets lines on warnings and changes. Raises UserError for errors.

    Of a set of more images than `DECODED` only the headers are read; `retinaserve data check` reads everything.
    """

    def read(*, decode: bool) -> tuple[Split, Split | None]:
        train = read_split("train", images, annotations, decode=decode)
        if not val_annotations:
            return train, None
        return train, read_split("val", val_images or images, val_annotations, split="val", decode=decode)

    train, val = read(decode=False)
    if len(train.files) + (len(val.files) if val else 0) <= DECODED:
        train, val = read(decode=True)
    report = check_data(train, val)
    for split in filter(None, (train, val)):
        refuse_errors((finding for finding in report.findings if finding.split == split.name), split.path)
    refuse_errors(report.findings, annotations)
    changed = {
        "split-categories",
        *(each.code for split in (train, val) if split for each in split.labels.findings),
    }
    for finding in report.findings:
        if finding.severity == "warning" or finding.code in changed:
            warn(describe(finding))
    return report


def scored_labels(
    annotations: Path, images: Path, *, warn: Callable[[str], object] = lambda _: None
) -> Annotations:
    """Return labels to score against; `warn` is given a line for each change that scoring makes to them.

    Raises UserError for what a training on them would be refused for, with the same code. Of the images only the
    headers are read: one that can't be decoded is an image without an answer.
    """
    if not images.is_dir():
        raise UserError(f"{images}: no such directory", f"the images that {annotations} names are expected there")
    split = read_split("", images, annotations, split="val", decode=False)
    report = check_data(split)
    refuse_errors((finding for finding in report.findings if finding.code != "image-unreadable"), annotations)
    for finding in split.labels.findings:
        warn(describe(finding, "scoring"))
    return split.labels


def _gather(split: str, found: Iterable[Find]) -> list[Finding]:
    finds = Finds()
    for code, example, *values in found:
        finds.add(code, example, *values)
    return finds.findings(split)


def check_files(split: Split) -> Iterator[Find]:
    """Files that are missing, can't be read, or are of another size than listed."""
    for number, name in split.labels.images.items():
        file, listed = split.files[number], split.labels.sizes.get(number)
        if not file.exists:
            yield "image-missing", "{}", name
        elif file.size is None:
            yield "image-unreadable", "{}: {}", name, file.error
        elif listed not in (file.size, None):
            turned = file.turned and listed == file.size[::-1]
            code, what = ("image-exif", "upright") if turned else ("image-size", "is")
            yield code, "{}: listed as {} x {}, {} {} x {}", name, *listed, what, *file.size


def check_content(split: Split) -> Iterator[Find]:
    """Files that are seen in another way than somebody may think."""
    deep: list[tuple[int, int, int]] = []
    for number, name in split.labels.images.items():
        file = split.files[number]
        if file.dispute:
            yield "image-orientation", "{}: {}", name, file.dispute
        if file.refused:
            yield "image-limits", "{}: {}", name, file.refused
        if file.levels:
            deep.append((*file.levels, file.depth))
    if not deep:
        return
    low, high = min(least for least, _, _ in deep), max(most for _, most, _ in deep)
    top = 2 ** max(depth for _, _, depth in deep) - 1
    if high - low < top * USED:
        # From 0 and up to a power of two, as sensors count, unless that would waste most of it again.
        white = 2 ** high.bit_length() - 1
        black = 0 if high - low >= white * USED else low
        white = white if black == 0 else high
        example = "{} images: values of {} to {} of 0 to {}; --value-range {} {}"
        yield "image-range", example, len(deep), low, high, top, black, white


def check_repeated_images(split: Split) -> Iterator[Find]:
    """Images that are there more than once under different names."""
    names: dict[str, set[str]] = defaultdict(set)
    for number, file in split.files.items():
        if file.digest:
            names[file.digest].add(split.labels.images[number])
    yield from (("image-repeated", "{}", " = ".join(sorted(same))) for same in names.values() if len(same) > 1)


def check_categories(split: Split) -> Iterator[Find]:
    """Categories that are alike."""
    folded = defaultdict[str, set[str]](set)
    for name in split.labels.categories.values():
        folded[" ".join(name.replace("_", " ").casefold().split())].add(name)
    for same in folded.values():
        if len(same) > 1:
            yield "category-alike", "{}", " and ".join(repr(name) for name in sorted(same))


def check_boxes(split: Split) -> Iterator[Find]:
    """Boxes that can't be right, each by itself; a set in another format is one find."""
    other_format, share = _format(split)
    if other_format:
        yield other_format, share
        return
    for box in split.labels.boxes:
        x, y, w, h = box["bbox"]
        if min(w, h) < TINY:
            yield "box-tiny", "{}: {}", box["entry"], box["bbox"]
        size = split.files[box["image_id"]].size
        if size is None:
            continue
        beyond = max(-x, -y, x + w - size[0], y + h - size[1])  # pixels over the border
        if x >= size[0] or y >= size[1] or x + w <= 0 or y + h <= 0:
            yield "box-outside", "{}: {} in {} x {}", box["entry"], box["bbox"], *size
        elif beyond > SLACK:
            yield "box-overhang", "{}: {} in {} x {}", box["entry"], box["bbox"], *size


def check_repeated_boxes(split: Split) -> Iterator[Find]:
    """Boxes that are there twice."""
    seen = Counter((box["image_id"], box["category_id"], *box["bbox"]) for box in split.labels.boxes)
    for (image_id, _, *bbox), count in seen.items():
        if count > 1:
            yield "box-repeated", "image {}: {}, {} times", image_id, bbox, count


def check_balance(split: Split) -> Iterator[Find]:
    """What there is to learn beside boxes, and whether there is anything."""
    if not split.boxes_per_category.total():
        yield "no-boxes", "{} crowds", len(split.labels.boxes)
    for box in split.labels.boxes:
        if box["iscrowd"]:
            yield "crowd", "{} of image {}", box["entry"], box["image_id"]
    for name in split.empty_images:
        yield "image-empty", "{}", name
    for image_id, count in Counter(box["image_id"] for box in split.labels.boxes if not box["iscrowd"]).items():
        if count > MAX_DETECTIONS[-1]:
            yield "image-dense", "{}: {}", split.labels.images[image_id], count


def check_classes(split: Split) -> Iterator[Find]:
    """Categories of which there is too little to learn."""
    counts = split.boxes_per_category
    most = max(counts.values(), default=0)
    for number, name in split.labels.categories.items():
        count = counts[number]
        if not count:
            yield "category-unused", "{}", name
        elif count < RARE:
            yield "category-rare", "{}: {}", name, count
        if count and count * IMBALANCE <= most:
            yield "category-imbalance", "{}: {}, the commonest has {}", name, count, most


def check_leak(train: Split, val: Split) -> Iterator[Find]:
    """Images that are in both splits, byte by byte or by their looks."""
    if train.path.resolve() == val.path.resolve():
        yield "split-same", "{}", train.path
        return
    names, val_names = train.labels.images, val.labels.images
    digests = {file.digest: names[number] for number, file in train.files.items() if file.digest}
    leaked = set()
    for number, file in val.files.items():
        if file.digest in digests:
            leaked.add(number)
            yield "split-leak", "{} = {}", digests[file.digest], val_names[number]
    if max(len(names), len(val_names)) > MOST:
        return
    looks = [(file.look, names[number]) for number, file in train.files.items() if file.look is not None]
    for number, file in val.files.items():
        if file.look is None or number in leaked:
            continue
        near = min((((file.look ^ look).bit_count(), name) for look, name in looks), default=None)
        if near and near[0] <= ALIKE:
            yield "split-similar", "{} and {}", near[1], val_names[number]


def check_sizes(train: Split, val: Split) -> Iterator[Find]:
    """Splits of which the wrong one is the larger, as when the two files were given the wrong way round."""
    if len(val.files) > len(train.files):
        yield "split-larger", "{} and {}", len(train.files), len(val.files)


def check_split_categories(train: Split, val: Split) -> Iterator[Find]:
    """Categories that are numbered otherwise in the other split, are not there, or can't be learnt."""
    here, there = ({name: number for number, name in each.labels.categories.items()} for each in (train, val))
    if not here.keys() & there.keys():
        yield "split-disjoint", "{!r} and {!r}", list(here)[:5], list(there)[:5]
        return
    for name, number in here.items():
        if name not in there:
            yield "split-categories", "{!r} is not in {}", name, val.name
        elif there[name] != number:
            yield "split-categories", "{!r} is {} and {}", name, number, there[name]
    for name, number in there.items():
        count = val.boxes_per_category[number]
        if count and not (name in here and train.boxes_per_category[here[name]]):
            yield "split-unseen", "{}: {} boxes to find", name, count


CHECKS: tuple[Callable[[Split], Iterator[Find]], ...] = (
    check_files,
    check_content,
    check_repeated_images,
    check_categories,
    check_boxes,
    check_repeated_boxes,
    check_balance,
)
PAIRED: tuple[Callable[[Split, Split], Iterator[Find]], ...] = (check_leak, check_sizes, check_split_categories)


def _format(split: Split) -> tuple[str, str]:
    """Return the code of the format that nearly all boxes fit and [x, y, w, h] does not, and how many do."""
    sized = ((box["bbox"], split.files[box["image_id"]].size) for box in split.labels.boxes)
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


def _summary(split: Split) -> Summary:
    return Summary(
        split.name,
        str(split.path),
        len(split.files),
        split.boxes_per_category.total(),
        sum(box["iscrowd"] for box in split.labels.boxes),
        len(split.empty_images),
        {name: split.boxes_per_category[number] for number, name in split.labels.categories.items()},
    )
