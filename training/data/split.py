"""A data set in parts, so that no image has its look-alike in another part and each part shows every class.

    parts = split(read_split("all", images, labels), {"train": 0.8, "val": 0.2}, seed=0)
    parts.images["val"], parts.closest[0]

Groups are what must stay together: images of the same bytes, images that look almost the same (as `data check` has
it), and those of one key, such as a folder or what a pattern takes out of their names; also through others. They
are dealt by iterative stratification (Sechidis, Tsoumakas and Vlahavas, "On the Stratification of Multi-Label
Data", ECML 2011, figure 1): the rarest class first, each group to the part that lacks that class most.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from retinaserve.training.check.checks import ALIKE
from retinaserve.training.check.snapshot import Split
from retinaserve.training.coco import Annotations
from retinaserve.training.errors import Exit, UserError

BITS = 512  # of a look
NEAR = 20  # of them that differ in what a person should look at
SHOWN = 5

POPULATION = np.array([number.bit_count() for number in range(256)], np.uint16)

Words = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Pair:
    """Two images that were parted and look rather the same: file names, and how many of 512 signs differ."""

    one: str
    other: str
    differs: int


@dataclass(frozen=True)
class Parts:
    """What goes where: ids of images by part, and what was seen on the way."""

    images: Mapping[str, tuple[int, ...]]
    groups: int  # of more than one image
    grouped: int  # images in them
    largest: tuple[str, ...]  # file names of the largest group
    torn: int  # images that would have a look-alike in another part, had images been dealt one by one
    closest: tuple[Pair, ...]  # that were parted

    def to_dict(self, labels: Annotations) -> dict[str, Any]:
        """Return the parts for JSON: images and boxes of each, images that show each class, what looks alike."""
        part_of = {image_id: name for name, ids in self.images.items() for image_id in ids}
        boxes = Counter(part_of[box["image_id"]] for box in labels.boxes)
        shown = {(box["image_id"], box["category_id"]) for box in labels.boxes if not box["iscrowd"]}
        counts = Counter((part_of[image_id], kind) for image_id, kind in shown)
        return {
            "parts": {name: {"images": len(ids), "boxes": boxes[name]} for name, ids in self.images.items()},
            "classes": {
                name: [counts[part, kind] for part in self.images] for kind, name in labels.categories.items()
            },
            "alike": {
                "groups": self.groups,
                "images": self.grouped,
                "torn": self.torn,
                "largest": self.largest,
                "closest": [asdict(pair) for pair in self.closest],
            },
        }


def key_of(pattern: str | None) -> Callable[[str], str | None]:
    """Return what keeps images together by their names: `folder`, or a regular expression's match or first group.

    Raises UserError for what is no expression.
    """
    if pattern == "folder":
        return lambda name: name.rpartition("/")[0] or None
    try:
        expression = re.compile(pattern or "")
    except re.error as error:
        problem = f"--group {pattern}: {error}"
        raise UserError(problem, "a regular expression, or folder", code=Exit.USAGE) from None

    def matched(name: str) -> str | None:
        found = expression.search(name) if pattern else None
        return found and (found[1] if expression.groups else found[0])

    return matched


def split(
    data: Split,
    shares: Mapping[str, float],
    *,
    seed: int = 0,
    key: Callable[[str], str | None] = lambda name: None,
) -> Parts:
    """Deal images to parts, whose shares add up to 1; `key` of a file name is what must not be parted, or None."""
    names = data.labels.images
    ids = list(names)
    place = {image_id: number for number, image_id in enumerate(ids)}
    looks = _looks([data.files[image_id].look for image_id in ids])
    near = near_pairs(looks, NEAR)
    forest = _Forest(len(ids))
    first: dict[tuple[str, str], int] = {}
    for number, image_id in enumerate(ids):
        for kind, value in (("bytes", data.files[image_id].digest or None), ("key", key(names[image_id]))):
            if value is not None:
                forest.join(number, first.setdefault((kind, value), number))
    alike = [(one, other) for one, other, differs in near if differs <= ALIKE]
    for one, other in alike:
        forest.join(one, other)
    groups = forest.groups()

    shown = defaultdict[int, set[int]](set)
    for box in data.labels.boxes:
        if not box["iscrowd"]:
            shown[place[box["image_id"]]].add(box["category_id"])
    dealt = deal(groups, shown, list(shares.values()), seed)
    part = np.empty(len(ids), np.int64)
    for group, number in zip(groups, dealt, strict=True):
        part[group] = number
    several = [group for group in groups if len(group) > 1]
    largest = max(several, key=len, default=[])
    loose = np.random.default_rng(seed).permutation(part)  # as many in each part, one by one
    torn = {image for pair in alike for image in pair if loose[pair[0]] != loose[pair[1]]}
    parted = sorted((differs, one, other) for one, other, differs in near if part[one] != part[other])
    return Parts(
        images={
            name: tuple(image_id for image_id in ids if part[place[image_id]] == number)
            for number, name in enumerate(shares)
        },
        groups=len(several),
        grouped=sum(map(len, several)),
        largest=tuple(names[ids[image]] for image in largest),
        torn=len(torn),
        closest=tuple(Pair(names[ids[one]], names[ids[other]], differs) for differs, one, other in parted[:SHOWN]),
    )


def deal(
    groups: Sequence[Sequence[int]], shown: Mapping[int, set[int]], shares: Sequence[float], seed: int
) -> list[int]:
    """Return the part of each group of images; `shown` has the classes in each image."""
    rng = np.random.default_rng(seed)
    counts = [Counter(kind for image in group for kind in shown.get(image, ())) for group in groups]
    sizes = [len(group) for group in groups]
    totals = sum(counts, Counter[int]())
    lacks = {kind: [share * total for share in shares] for kind, total in totals.items()}
    room = [share * sum(sizes) for share in shares]
    dealt = [-1] * len(groups)
    left = {kind: {number for number, count in enumerate(counts) if count[kind]} for kind in totals}
    order = rng.permutation(len(groups)).tolist()

    def give(number: int, wanted: Sequence[float]) -> None:
        best = max(range(len(shares)), key=lambda part: (round(wanted[part], 9), room[part], rng.random()))
        dealt[number] = best
        room[best] -= sizes[number]
        for kind, count in counts[number].items():
            lacks[kind][best] -= count
            left[kind].discard(number)

    while any(left.values()):
        rarest = min((kind for kind in left if left[kind]), key=lambda kind: (len(left[kind]), kind))
        mine = left[rarest]
        for number in sorted((number for number in order if number in mine), key=lambda number: -sizes[number]):
            give(number, lacks[rarest])
    for number in sorted((number for number in order if dealt[number] < 0), key=lambda number: -sizes[number]):
        give(number, room)
    return dealt


def near_pairs(looks: Mapping[int, Words], most: int) -> list[tuple[int, int, int]]:
    """Return the pairs of looks (64 bytes each, by image) that differ in at most `most` bits, with how many.

    Two that differ in d bits agree in at least one of d + 1 stretches, so only those that share one are compared.
    """
    if not looks:
        return []
    images = np.fromiter(looks, np.int64)
    table = np.stack(list(looks.values()))
    bits = np.unpackbits(table, axis=1)
    found: dict[tuple[int, int], int] = {}
    for stretch in np.array_split(np.arange(BITS), most + 1):
        keys = np.packbits(bits[:, stretch], axis=1)
        _, group = np.unique(keys, axis=0, return_inverse=True)
        order = np.argsort(group.ravel(), kind="stable")
        starts = np.flatnonzero(np.diff(group.ravel()[order], prepend=-1))
        for start, stop in zip(starts, [*starts[1:], len(order)], strict=True):
            for row in range(start, stop - 1):
                others = order[row + 1 : stop]
                differs = POPULATION[table[order[row]] ^ table[others]].sum(axis=1)
                for other in np.flatnonzero(differs <= most):
                    one, two = sorted((int(images[order[row]]), int(images[others[other]])))
                    found[one, two] = int(differs[other])
    return [(one, other, differs) for (one, other), differs in sorted(found.items())]


def _looks(looks: Sequence[int | None]) -> dict[int, Words]:
    size = BITS // 8
    return {
        number: np.frombuffer(look.to_bytes(size, "big"), np.uint8)
        for number, look in enumerate(looks)
        if look is not None
    }


class _Forest:
    """Sets that grow together."""

    def __init__(self, count: int) -> None:
        self._above = list(range(count))

    def join(self, one: int, other: int) -> None:
        self._above[self._top(one)] = self._top(other)

    def groups(self) -> list[list[int]]:
        """Return the sets, by their first members."""
        found = defaultdict[int, list[int]](list)
        for member in range(len(self._above)):
            found[self._top(member)].append(member)
        return list(found.values())

    def _top(self, member: int) -> int:
        while self._above[member] != member:
            self._above[member] = self._above[self._above[member]]
            member = self._above[member]
        return member
