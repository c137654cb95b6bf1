"""The checks: generators over snapshots, each of which knows one kind of mistake and touches no file.

    report = check_data(train, val)

A check gives a find a line, led by the code; what belongs together becomes one finding.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from retinaserve.training.check.findings import CODES, Finding, Report, Summary
from retinaserve.training.check.snapshot import ImageEntry, Split, entries_of, is_id

Find = tuple[str, str]  # code, example
Box = tuple[float, float, float, float]

SLACK = 2.0  # pixels over the border that are rounding
TINY = 2.0
RARE = 10
IMBALANCE = 100
ALIKE = 12  # of 512 signs that may differ in pictures that look the same
MOST = 4000  # pictures a split beyond which all pairs aren't compared


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


def _gather(split: str, finds: Iterator[Find]) -> list[Finding]:
    lines: dict[str, list[str]] = defaultdict(list)
    for code, line in finds:
        lines[code].append(line)
    return [Finding.of(code, split, lines[code]) for code in CODES if code in lines]


def check_images(split: Split) -> Iterator[Find]:
    """Entries without an id or a name, and ids and files that are there twice."""
    ids, names = Counter[int](), Counter[str]()
    for image in split.images:
        if not is_id(image.id) or not isinstance(image.name, str) or not image.name:
            yield "image-entry", f"id {image.id!r}, file_name {image.name!r}"
            continue
        ids[image.id] += 1
        names[image.name] += 1
    yield from (("image-id-repeated", f"id {number}: {count} times") for number, count in ids.items() if count > 1)
    yield from (("image-file-repeated", f"{name}: {count} times") for name, count in names.items() if count > 1)


def check_files(split: Split) -> Iterator[Find]:
    """Files that are missing, can't be read, or are of another size than listed."""
    for image in split.images:
        if not isinstance(image.name, str) or not image.name:
            continue
        if not image.file.exists:
            yield "image-missing", image.name
        elif image.file.size is None:
            yield "image-unreadable", f"{image.name}: {image.file.error}"
        elif image.listed_size != image.file.size and image.listed_size != (None, None):
            width, height = image.file.size
            listed = f"{image.listed_size[0]} x {image.listed_size[1]}"
            if image.file.turned and image.listed_size == (height, width):
                yield "image-exif", f"{image.name}: listed as {listed}, upright {width} x {height}"
            else:
                yield "image-size", f"{image.name}: listed as {listed}, is {width} x {height}"


def check_repeated_images(split: Split) -> Iterator[Find]:
    """Pictures that are there more than once under different names."""
    names: dict[str, set[str]] = defaultdict(set)
    for image in split.images:
        if image.file.digest:
            names[image.file.digest].add(str(image.name))
    yield from (("image-repeated", " = ".join(sorted(same))) for same in names.values() if len(same) > 1)


def check_categories(split: Split) -> Iterator[Find]:
    """Categories without an id or a name, and those that are alike."""
    ids, names, folded = Counter[int](), Counter[str](), defaultdict[str, set[str]](set)
    for entry in split.categories:
        number, name = (entry.get("id"), entry.get("name")) if isinstance(entry, Mapping) else (None, None)
        if not isinstance(number, int) or not is_id(number) or not isinstance(name, str) or not name.strip():
            yield "category-entry", f"id {number!r}, name {name!r}"
            continue
        ids[number] += 1
        names[name] += 1
        folded[" ".join(name.replace("_", " ").casefold().split())].add(name)
    yield from (("category-repeated", f"id {number}: {count} times") for number, count in ids.items() if count > 1)
    yield from (("category-repeated", f"{name!r}: {count} times") for name, count in names.items() if count > 1)
    for same in folded.values():
        if len(same) > 1:
            yield "category-alike", " and ".join(repr(name) for name in sorted(same))


def check_annotations(split: Split) -> Iterator[Find]:
    """Annotations that belong to nothing."""
    ids = Counter[Any]()
    for place, entry in enumerate(split.annotations):
        if not isinstance(entry, Mapping):
            yield "annotation-entry", f"number {place}: {str(entry)[:40]}"
            continue
        if is_id(entry.get("id")):
            ids[entry["id"]] += 1
        image, category = entry.get("image_id"), entry.get("category_id")
        if not is_id(image) or image not in split.image_of:
            yield "annotation-image", f"{_which(entry, place)}: image_id {image!r}"
        if not is_id(category) or category not in split.name_of:
            yield "annotation-category", f"{_which(entry, place)}: category_id {category!r}"
    yield from (
        ("annotation-id-repeated", f"id {number}: {count} times") for number, count in ids.items() if count > 1
    )


def check_boxes(split: Split) -> Iterator[Find]:
    """Boxes that can't be right, each by itself; those of a set in another format are told once, as such."""
    code, share = _format(split)
    if code:
        yield code, share
    seen = Counter[tuple[Any, Any, Box]]()
    for place, entry in enumerate(split.annotations):
        if not isinstance(entry, Mapping):
            continue
        box = _box(entry)
        if box is None:
            yield "box-malformed", f"{_which(entry, place)}: {str(entry.get('bbox'))[:60]}"
            continue
        x, y, w, h = box
        where = f"{_which(entry, place)}: {list(box)}"
        if w <= 0 or h <= 0:
            yield "box-degenerate", where
            continue
        seen[entry.get("image_id"), entry.get("category_id"), box] += 1
        if code:
            continue
        if min(w, h) < TINY:
            yield "box-tiny", where
        image = _image(split, entry)
        if image is None or image.file.size is None:
            continue
        width, height = image.file.size
        if x >= width or y >= height or x + w <= 0 or y + h <= 0:
            yield "box-outside", f"{where} in {width} x {height}"
        elif min(x, y) < -SLACK or x + w > width + SLACK or y + h > height + SLACK:
            yield "box-overhang", f"{where} in {width} x {height}"
    for (image_id, _, box), count in seen.items():
        if count > 1:
            yield "box-repeated", f"image {image_id}: {list(box)}, {count} times"


def check_balance(split: Split) -> Iterator[Find]:
    """What there is to learn beside boxes, and whether there is anything."""
    counts = _boxes_per_category(split)
    learnable = sum(counts.values())
    if not learnable:
        yield "no-boxes", f"{len(split.annotations)} annotations"
    for place, entry in enumerate(split.annotations):
        if isinstance(entry, Mapping) and entry.get("iscrowd"):
            yield "crowd", f"{_which(entry, place)} of image {entry.get('image_id')!r}"
    with_boxes = {entry["image_id"] for entry in entries_of(split.annotations) if is_id(entry.get("image_id"))}
    for image in split.images:
        if is_id(image.id) and image.id not in with_boxes:
            yield "image-empty", str(image.name)


def check_classes(split: Split) -> Iterator[Find]:
    """Categories of which there is too little to learn."""
    counts = _boxes_per_category(split)
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
    """Pictures that are in both splits, byte by byte or by their looks."""
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
        near = min(((image.file.look ^ look).bit_count(), str(name)) for look, name in looks) if looks else None
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
    learnt, asked = _boxes_per_category(train), _boxes_per_category(val)
    for number, count in asked.items():
        if not learnt[number]:
            yield "split-unseen", f"{val.name_of[number]}: {count} boxes to find"


CHECKS: tuple[Callable[[Split], Iterator[Find]], ...] = (
    check_images,
    check_files,
    check_repeated_images,
    check_categories,
    check_annotations,
    check_boxes,
    check_balance,
)
PAIRED: tuple[Callable[[Split, Split], Iterator[Find]], ...] = (check_leak, check_sizes, check_split_categories)


def _format(split: Split) -> tuple[str, str]:
    """Return the code of the format that nearly all boxes fit and [x, y, w, h] does not, and how many do."""
    total = fits = shares = corners = centres = 0
    for entry in entries_of(split.annotations):
        box, image = _box(entry), _image(split, entry)
        if box is None or image is None or image.file.size is None:
            continue
        total += 1
        a, b, c, d = box
        width, height = (side + SLACK for side in image.file.size)
        fits += a >= -SLACK and b >= -SLACK and a + c <= width and b + d <= height
        shares += max(abs(value) for value in box) <= 1
        corners += c > a >= -SLACK and d > b >= -SLACK and c <= width and d <= height
        inside = a - c / 2 >= -SLACK and b - d / 2 >= -SLACK and a + c / 2 <= width and b + d / 2 <= height
        centres += inside and c > 0 and d > 0
    if not total:
        return "", ""
    if shares > 0.9 * total:
        return "box-normalised", f"{shares} of {total} boxes have no value above 1"
    if fits > 0.9 * total:
        return "", ""
    if corners > 0.98 * total:
        return (
            "box-xyxy",
            f"{corners} of {total} boxes fit their pictures as corners, {fits} with a width and height",
        )
    if centres > 0.98 * total:
        return "box-centre", f"{centres} of {total} boxes fit their pictures around a centre, {fits} from a corner"
    return "", ""


def _box(entry: Mapping[str, Any]) -> Box | None:
    bbox = entry.get("bbox")
    if not isinstance(bbox, list) or len(bbox) != 4:
        return None
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in bbox):
        return None
    x, y, w, h = (float(value) for value in bbox)
    return (x, y, w, h) if all(math.isfinite(value) for value in (x, y, w, h)) else None


def _image(split: Split, entry: Mapping[str, Any]) -> ImageEntry | None:
    number = entry.get("image_id")
    return split.image_of.get(number) if is_id(number) else None


def _which(entry: Mapping[str, Any], place: int) -> str:
    return f"annotation {entry['id']}" if "id" in entry else f"annotation number {place}"


def _boxes_per_category(split: Split) -> Counter[int]:
    """Count the boxes that can be learnt: those with an area, crowds apart."""
    counts = Counter[int]()
    for entry in entries_of(split.annotations):
        box, number = _box(entry), entry.get("category_id")
        if box and min(box[2:]) > 0 and not entry.get("iscrowd") and isinstance(number, int):
            counts[number] += is_id(number) and number in split.name_of
    return counts


def _summary(split: Split) -> Summary:
    counts = _boxes_per_category(split)
    entries = entries_of(split.annotations)
    labelled = {entry["image_id"] for entry in entries if is_id(entry.get("image_id"))}
    return Summary(
        split.name,
        str(split.path),
        len(split.images),
        sum(counts.values()),
        sum(bool(entry.get("iscrowd")) for entry in entries),
        sum(is_id(image.id) and image.id not in labelled for image in split.images),
        {name: counts[number] for number, name in split.name_of.items()},
    )
