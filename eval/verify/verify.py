"""Is it still the same detector? Candidates against a reference on the same pictures: tensors, boxes and AP.

    result = verify(reference, candidates, files, truth=truth, progress=tqdm)
    result.passed, result.comparisons[0].checks

Preparation is done once, by the pipeline that is served, so that differences are the models'. It judges by
eval/verify/tolerances.py and writes nothing; eval/verify/report.py tells what it found.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from retinaserve.eval.image_files import read_files
from retinaserve.eval.runtimes.detector import Heads, OfflineDetector
from retinaserve.eval.verify.matching import Edges, Pairs, match
from retinaserve.eval.verify.sources import Candidate
from retinaserve.eval.verify.tensors import TensorDifference
from retinaserve.eval.verify.tolerances import AT_LEAST, limits_for, loosest
from retinaserve.training.coco import Annotations
from retinaserve.training.detections import Detections, ImageError
from retinaserve.training.errors import UserError
from retinaserve.training.scores import evaluate, match_classes
from retinaserve.training.spec import DetectorSpec

# Below it, two matched boxes come from different anchors: near the limit of NMS, another of two rivals won. They
# are counted as moved, and their scores and places, which belong to different anchors too, are not compared.
STEADY = 0.9

Progress = Callable[[Iterator[bytes | ImageError], int], Iterator[bytes | ImageError]]


@dataclass(frozen=True)
class Check:
    """One number against its limit."""

    name: str  # of the limit
    subject: str  # the tensor, "boxes" or "AP"
    value: float
    limit: float

    @property
    def passed(self) -> bool:
        """Whether the number is within its limit; a NaN never is."""
        return self.value >= self.limit if self.name in AT_LEAST else self.value <= self.limit


@dataclass(eq=False)
class Comparison:
    """What came of one candidate; mappings are by picture."""

    candidate: Candidate
    limits: Mapping[str, float]
    judged_as: str  # the precision whose limits these are
    heads: dict[str, TensorDifference] = field(default_factory=dict)
    answers: dict[int, Detections] = field(default_factory=dict)
    refused: dict[int, ImageError] = field(default_factory=dict)
    pairs: dict[int, Pairs] = field(default_factory=dict)
    expected_boxes: int = 0  # of the reference, on the pictures that were answered
    ap: tuple[float, float] | None = None  # reference's, candidate's

    def add(
        self, ids: Sequence[int], expected: Sequence[Detections], answers: Sequence[Any], edges: Sequence[Edges]
    ) -> None:
        """Take the answers to a batch of pictures; `edges` are each picture's."""
        for image, wanted, found, cuts in zip(ids, expected, answers, edges, strict=True):
            if isinstance(found, ImageError):
                self.refused[image] = found
            else:
                self.answers[image] = found
                self.pairs[image] = match(wanted, found, cuts)
                self.expected_boxes += len(wanted)

    def add_heads(self, expected: Heads, found: Heads) -> None:
        """Take the heads of a batch of pictures, those both sides expose."""
        for name in expected:
            if name in found:
                self.heads.setdefault(name, TensorDifference()).add(expected[name], found[name])

    @property
    def boxes(self) -> int:
        """How many boxes the candidate found."""
        return sum(len(answer) for answer in self.answers.values())

    @property
    def matched(self) -> int:
        """How many pairs of boxes there are."""
        return sum(len(pairs.rows) for pairs in self.pairs.values())

    @property
    def borderline(self) -> int:
        """How many boxes a cut of the detector explains."""
        return sum(pairs.borderline for pairs in self.pairs.values())

    @property
    def odd(self) -> int:
        """How many boxes have no counterpart and no excuse."""
        return sum(len(pairs.odd) for pairs in self.pairs.values())

    @cached_property
    def checks(self) -> list[Check]:
        """Every number that has a limit, the heads from the finest level on."""
        checks = [
            Check(name, tensor, value, self.limits[name])
            for tensor, apart in self.heads.items()
            for name, value in (
                ("head-max", apart.max),
                ("head-mean", apart.mean),
                ("head-cosine", apart.cosine),
            )
        ]
        checks.append(self._check("unmatched", self.odd / max(1, 2 * self.matched + self.odd)))
        if self.matched:
            iou = self._joined("iou")
            steady = iou >= STEADY
            scores = np.abs(self._joined("score_difference")[steady])
            checks.append(self._check("moved", float(1 - steady.mean())))
            checks.append(self._check("score-max", float(scores.max(initial=0.0))))
            checks.append(self._check("score-mean", float(scores.mean()) if len(scores) else 0.0))
            checks.append(self._check("iou-mean", float(iou[steady].mean()) if len(scores) else 1.0))
        if self.ap:
            checks.append(Check("ap-loss", "AP", self.ap[0] - self.ap[1], self.limits["ap-loss"]))
        return checks

    @property
    def failed(self) -> list[Check]:
        """The numbers beyond their limits."""
        return [check for check in self.checks if not check.passed]

    @property
    def passed(self) -> bool:
        """Whether every picture was answered and every number is within its limit."""
        return not self.refused and not self.failed

    def worst(self, count: int) -> list[int]:
        """Return the pictures that differ most: by boxes without a counterpart, then by scores."""

        def badness(image: int) -> tuple[float, float]:
            pairs = self.pairs[image]
            apart = float(np.abs(pairs.score_difference).max(initial=0.0))
            return sum(item.score for item in pairs.odd), apart if math.isfinite(apart) else math.inf

        return sorted(self.pairs, key=badness, reverse=True)[:count]

    def _check(self, name: str, value: float) -> Check:
        return Check(name, "boxes", value, self.limits[name])

    def _joined(self, name: str) -> npt.NDArray[np.float64]:
        return np.concatenate([getattr(pairs, name) for pairs in self.pairs.values()])


@dataclass(frozen=True, eq=False)
class Verification:
    """All comparisons with one reference; mappings are by picture."""

    reference: OfflineDetector
    files: Mapping[int, Path]
    expected: Mapping[int, Detections]
    errors: Mapping[int, ImageError]  # pictures that could not be prepared, and were not compared
    comparisons: Sequence[Comparison]
    warning: str = ""

    @property
    def passed(self) -> bool:
        """Whether every candidate passed."""
        return all(comparison.passed for comparison in self.comparisons)


def verify(
    reference: OfflineDetector,
    candidates: Sequence[Candidate],
    files: Mapping[int, Path],
    *,
    truth: Annotations | None = None,
    precision: str = "",
    overrides: Mapping[str, float] | None = None,
    progress: Progress,
) -> Verification:
    """Compare every candidate with the reference on the pictures; with `truth`, in average precision too.

    `precision` says whose limits to judge by, rather than the models; `progress(pictures, total)` passes the
    encoded pictures on. Raises UserError where nothing was to be compared.
    """
    comparisons = []
    for candidate in candidates:
        judged_as = precision or loosest(reference.precision, candidate.precision)
        comparisons.append(Comparison(candidate, limits_for(judged_as, overrides), judged_as))
    expected: dict[int, Detections] = {}
    errors: dict[int, ImageError] = {}
    source = zip(files, progress(read_files(files.values()), len(files)), strict=True)
    while chunk := list(islice(source, reference.batch)):
        prepared = reference.prepare([data for _, data in chunk])
        good = []
        for (image, data), item in zip(chunk, prepared, strict=True):
            if isinstance(item, ImageError):
                errors[image] = item
            else:
                good.append((image, data, item))
        if not good:
            continue
        ids, encoded, tensors = (list(column) for column in zip(*good, strict=True))
        found, heads = reference.observe(tensors)
        expected |= dict(zip(ids, found, strict=True))
        cuts = [level_cuts(reference.spec, heads, row) for row in range(len(ids))]
        for comparison in comparisons:
            answers, exposed = comparison.candidate.ask(encoded, tensors)
            edges = [_edges(reference.spec, comparison.limits["margin"], cut) for cut in cuts]
            comparison.add(ids, found, answers, edges)
            comparison.add_heads(heads, exposed)
    _check_something(expected, errors, comparisons)
    warning = _score(reference, expected, comparisons, truth) if truth else ""
    return Verification(reference, files, expected, errors, comparisons, warning)


def spread(files: Mapping[int, Path], count: int) -> dict[int, Path]:
    """Return `count` of the pictures, evenly spread over the set and always the same; 0 takes all."""
    if not count or count >= len(files):
        return dict(files)
    ids = list(files)
    return {ids[index * len(ids) // count]: files[ids[index * len(ids) // count]] for index in range(count)}


def part_of(truth: Annotations, ids: Mapping[int, Any]) -> Annotations:
    """Return the annotations of some pictures only, so that scores count no others as missed."""
    images = {image: name for image, name in truth.images.items() if image in ids}
    return replace(truth, images=images, boxes=tuple(box for box in truth.boxes if box["image_id"] in images))


def level_cuts(spec: DetectorSpec, heads: Heads, row: int) -> tuple[float, ...]:
    """Return the score of the last candidate of each level of a picture that had more of them than are taken."""
    cuts = []
    for name, _ in spec.head_names:
        logits = heads[name][row].ravel() if name in heads else np.empty(0, np.float32)
        above = logits[logits > spec.score_threshold_logit]
        if len(above) > spec.topk_candidates:
            last = np.partition(above, -spec.topk_candidates)[-spec.topk_candidates]
            cuts.append(1 / (1 + math.exp(-float(last))))
    return tuple(cuts)


def _edges(spec: DetectorSpec, margin: float, cuts: tuple[float, ...]) -> Edges:
    return Edges(spec.score_threshold, spec.max_detections, spec.nms_iou, margin, cuts)


def _check_something(
    expected: Mapping[int, Detections], errors: Mapping[int, ImageError], comparisons: Sequence[Comparison]
) -> None:
    if not expected:
        first = next(iter(errors.values()), None)
        raise UserError("none of the pictures could be read", first.message if first else "")
    boxes = sum(map(len, expected.values())) + sum(comparison.boxes for comparison in comparisons)
    if not boxes:
        raise UserError(
            f"nothing is found on the {len(expected)} pictures, so there are no boxes to compare",
            "choose pictures of what the detector was trained to find",
        )


def _score(
    reference: OfflineDetector,
    expected: Mapping[int, Detections],
    comparisons: Sequence[Comparison],
    truth: Annotations,
) -> str:
    """Give each comparison both average precisions; return what is to say of the classes."""
    same = match_classes(reference.class_names, truth.categories)
    judged = part_of(truth, expected)
    ours = evaluate(judged, expected, same.category_ids).ap
    if ours is None:
        raise UserError(f"{truth.path} has no boxes on the pictures compared", "take more of them: --count")
    for comparison in comparisons:
        theirs = evaluate(judged, comparison.answers, same.category_ids).ap
        comparison.ap = (ours, theirs if theirs is not None else math.nan)
    return same.warning
