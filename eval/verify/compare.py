"""Is it still the same detector? Candidates against a reference on the same images: tensors, boxes and AP.

    candidates = [Candidate.of(open_detector(path, heads=True)), Candidate.of(client)]
    check_same(reference, candidates)
    result = compare(reference, candidates, files, truth=truth, progress=tqdm)
    result.passed, result.comparisons[0].checks

Images are prepared once, by the pipeline that is served, so that differences are the models'. A server is given
the encoded images: it has its own preprocessing, which is compared too.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from retinaserve.eval.client.client import Client
from retinaserve.eval.client.server_info import ServedModel
from retinaserve.eval.runtimes.detector import Arrays, OfflineDetector
from retinaserve.eval.verify.matching import AT_LEAST, Cuts, Matching, limits_for, loosest, match, precision_named
from retinaserve.training.coco import Annotations
from retinaserve.training.detections import Detections, ImageError
from retinaserve.training.errors import UserError
from retinaserve.training.images.sources import read_files
from retinaserve.training.scoring.scores import evaluate, match_classes
from retinaserve.training.spec import RETINANET, DetectorSpec

# Below it, two matched boxes come from different anchors: near the limit of NMS, another of two rivals won. They
# are counted as moved, and their scores and places, which belong to different anchors too, are not compared.
SAME_ANCHOR_IOU = 0.9
# What may differ between two of the same detector: how the network is built; its weights show in the heads.
FREE_FIELDS = frozenset({"network"})
SOURCE = "COCO results"  # what SourceAnswers run in

Answers = Sequence[Detections | ImageError]
Progress = Callable[[Iterator[bytes | ImageError], int], Iterator[bytes | ImageError]]


@dataclass(frozen=True, eq=False)
class Candidate:
    """What is compared with the reference: a model file or a server."""

    model: OfflineDetector | Client
    name: str
    runtime: str
    precision: str  # empty where it is not known
    note: str = ""

    @classmethod
    def of(cls, model: OfflineDetector | Client) -> "Candidate":
        """Describe what is to be compared; a server's precision is what its config says of it, if anything."""
        if isinstance(model, OfflineDetector):
            runtime = model.runtime
            return cls(model, str(runtime.path), runtime.name, runtime.precision, runtime.note)
        config = model.parameters(RETINANET) if RETINANET in model.served.steps else {}
        # `precision` is of the arithmetic, `graph` of the file: an INT8 graph runs with fp32 around its layers.
        known = [name for key in ("precision", "graph") if (name := precision_named(config.get(key, "")))]
        return cls(model, str(model.endpoint), "Triton", loosest(*known) if known else "")

    @property
    def title(self) -> str:
        """The name with what runs it, unlike that of any other candidate."""
        return f"{self.name} ({self.runtime})"

    def answer(self, encoded: Sequence[bytes], prepared: Sequence[Any]) -> tuple[Answers, Arrays]:
        """Return an answer per image, and the raw heads if it exposes them."""
        if isinstance(self.model, OfflineDetector):
            return self.model.observe(prepared)
        return list(self.model.predict_many(encoded)), {}


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


class TensorDifference:
    """How far two tensors of many batches are apart, from sums over all elements so far."""

    def __init__(self) -> None:
        self.max = 0.0  # of the absolute differences
        self._count = 0
        self._absolute = 0.0
        self._sums = np.zeros(5)  # a, b, aa, bb, ab

    def add(self, reference: npt.NDArray[Any], candidate: npt.NDArray[Any]) -> None:
        """Add two arrays of one shape; a NaN or an infinity anywhere stays in all three numbers."""
        a, b = reference.astype(np.float64).ravel(), candidate.astype(np.float64).ravel()
        if a.shape != b.shape:
            raise ValueError(f"{reference.shape} and {candidate.shape} are not one shape")
        with np.errstate(invalid="ignore"):
            apart = np.abs(a - b)
            self.max = float(np.maximum(self.max, apart.max(initial=0.0)))  # keeps a NaN, which max() may lose
            self._absolute += float(apart.sum())
            self._sums += [a.sum(), b.sum(), a @ a, b @ b, a @ b]
        self._count += a.size

    @property
    def mean(self) -> float:
        """The mean absolute difference."""
        return self._absolute / max(1, self._count)

    @property
    def cosine(self) -> float:
        """The cosine of both, less the reference's mean.

        Logits lie around one large negative number; without taking it off, the cosine of any two would be near 1.
        """
        if self.max == 0:
            return 1.0
        a, b, aa, bb, ab = self._sums
        with np.errstate(invalid="ignore"):
            mean = a / max(1, self._count)
            shift = mean * mean * self._count
            along = ab - mean * (a + b) + shift
            lengths = (aa - 2 * mean * a + shift) * (bb - 2 * mean * b + shift)
        return float(along / np.sqrt(lengths)) if lengths > 0 else float("nan" if np.isnan(lengths) else 0.0)


@dataclass(eq=False)
class Comparison:
    """What came of one candidate; mappings are by image."""

    candidate: Candidate
    limits: Mapping[str, float]
    judged_as: str  # the precision whose limits these are
    heads: dict[str, TensorDifference] = field(default_factory=dict)
    answers: dict[int, Detections] = field(default_factory=dict)
    refused: dict[int, ImageError] = field(default_factory=dict)
    matchings: dict[int, Matching] = field(default_factory=dict)
    expected_boxes: int = 0  # of the reference, on the images that were answered
    ap: tuple[float, float] | None = None  # reference's, candidate's

    def add(self, image: int, expected: Detections, answer: Detections | ImageError, cuts: Cuts) -> None:
        """Take the answer to an image."""
        if isinstance(answer, ImageError):
            self.refused[image] = answer
        else:
            self.answers[image] = answer
            self.matchings[image] = match(expected, answer, cuts)
            self.expected_boxes += len(expected)

    def add_heads(self, expected: Arrays, found: Arrays) -> None:
        """Take the heads of a batch of images, those both sides expose."""
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
        return sum(len(each.pairs) for each in self.matchings.values())

    @property
    def borderline(self) -> int:
        """How many unmatched boxes a cut of the detector explains."""
        return sum(each.borderline for each in self.matchings.values())

    @property
    def unmatched(self) -> int:
        """How many unmatched boxes nothing explains."""
        return sum(len(each.unmatched) for each in self.matchings.values())

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
        numbers = {"unmatched": self.unmatched / max(1, 2 * self.matched + self.unmatched)}
        if self.matched:
            iou = np.concatenate([each.iou for each in self.matchings.values()])
            apart = np.abs(np.concatenate([each.score_difference for each in self.matchings.values()]))
            same_anchor = iou >= SAME_ANCHOR_IOU
            iou, scores = iou[same_anchor], apart[same_anchor]
            numbers |= {
                "moved": float(1 - same_anchor.mean()),
                "score-max": float(scores.max(initial=0.0)),
                "score-mean": float(scores.mean()) if len(scores) else 0.0,
                "iou-mean": float(iou.mean()) if len(iou) else 1.0,
            }
        checks += [Check(name, "boxes", value, self.limits[name]) for name, value in numbers.items()]
        if self.ap:
            checks.append(Check("ap-loss", "AP", self.ap[0] - self.ap[1], self.limits["ap-loss"]))
        return checks

    @property
    def failed(self) -> list[Check]:
        """The numbers beyond their limits."""
        return [check for check in self.checks if not check.passed]

    @property
    def passed(self) -> bool:
        """Whether every image was answered and every number is within its limit."""
        return not self.refused and not self.failed

    def worst(self, count: int) -> list[int]:
        """Return the images that differ most: by boxes without a counterpart, then by scores."""

        def badness(image: int) -> tuple[float, float]:
            matching = self.matchings[image]
            apart = float(np.abs(matching.score_difference).max(initial=0.0))
            return sum(item.score for item in matching.unmatched), apart if math.isfinite(apart) else math.inf

        return sorted(self.matchings, key=badness, reverse=True)[:count]


@dataclass(frozen=True, eq=False)
class Verification:
    """All comparisons with one reference; mappings are by image."""

    reference: Candidate
    files: Mapping[int, Path]
    expected: Mapping[int, Detections]
    errors: Mapping[int, ImageError]  # images that could not be prepared, and were not compared
    comparisons: Sequence[Comparison]
    warning: str = ""

    @property
    def passed(self) -> bool:
        """Whether every candidate passed."""
        return all(comparison.passed for comparison in self.comparisons)


@dataclass(frozen=True)
class SourceAnswers:
    """What a detector's own code, in another framework, answered: COCO results."""

    path: Path
    answers: Mapping[int, Detections]  # by image

    @cached_property
    def lowest(self) -> float:
        """The lowest score in the file: what is below may have been left out."""
        return float(min((each.scores.min(initial=1.0) for each in self.answers.values()), default=1.0))


def compare(
    reference: OfflineDetector,
    candidates: Sequence[Candidate],
    files: Mapping[int, Path],
    *,
    source_answers: SourceAnswers | None = None,
    truth: Annotations | None = None,
    precision: str = "",
    overrides: Mapping[str, float] | None = None,
    progress: Progress,
) -> Verification:
    """Compare every candidate with the reference on the images; with `truth`, in average precision too.

    `source_answers` stand in the reference's place; no limit is then below fp16's, as other code decodes and
    resizes.
    `precision` says whose limits to apply, rather than the models'; `progress(images, total)` passes the encoded
    images on. Raises UserError where nothing was to be compared.
    """
    spec = reference.spec
    named = Candidate.of(reference)
    if source_answers:
        named = Candidate(reference, str(source_answers.path), SOURCE, "fp16")
    threshold = max(spec.score_threshold, source_answers.lowest if source_answers else 0.0)
    comparisons = []
    for candidate in candidates:
        judged_as = precision or loosest(named.precision, candidate.precision)
        comparisons.append(Comparison(candidate, limits_for(judged_as, overrides), judged_as))
    expected: dict[int, Detections] = {}
    errors: dict[int, ImageError] = {}
    source = zip(files, progress(read_files(files.values()), len(files)), strict=True)
    while chunk := list(islice(source, reference.batch)):
        images, contents = zip(*chunk, strict=True)
        results = dict(zip(images, reference.prepare(contents), strict=True))
        errors |= {image: item for image, item in results.items() if isinstance(item, ImageError)}
        prepared = {image: item for image, item in results.items() if not isinstance(item, ImageError)}
        encoded = [data for image, data in chunk if image in prepared and isinstance(data, bytes)]
        found: Answers
        heads: Arrays = {}
        if source_answers:
            found = [source_answers.answers[image] for image in prepared]
        else:
            found, heads = reference.observe(list(prepared.values()))
        expected |= dict(zip(prepared, found, strict=True))
        topk = [topk_cuts(spec, heads, row) for row in range(len(found))]
        for comparison in comparisons:
            answers, exposed = comparison.candidate.answer(encoded, list(prepared.values()))
            comparison.add_heads(heads, exposed)
            margin = comparison.limits["margin"]
            for image, answer, last in zip(prepared, answers, topk, strict=True):
                if source_answers and isinstance(answer, Detections):
                    answer = answer.above(threshold)
                cuts = Cuts(threshold, spec.max_detections, spec.nms_iou, margin, last)
                comparison.add(image, expected[image], answer, cuts)
    _check_something(expected, errors, comparisons)
    warning = _score(reference, expected, comparisons, truth) if truth else ""
    return Verification(named, files, expected, errors, comparisons, warning)


def part_of(truth: Annotations, ids: Mapping[int, Any]) -> Annotations:
    """Return the annotations of some images only, so that scores count no others as missed."""
    images = {image: name for image, name in truth.images.items() if image in ids}
    return replace(truth, images=images, boxes=tuple(box for box in truth.boxes if box["image_id"] in images))


def topk_cuts(spec: DetectorSpec, heads: Arrays, row: int) -> tuple[float, ...]:
    """Return the score of the last candidate of each level of an image that had more of them than are taken."""
    cuts = []
    for name, _ in spec.head_names:
        logits = heads[name][row].ravel() if name in heads else np.empty(0, np.float32)
        above = logits[logits > spec.score_threshold_logit]
        if len(above) > spec.topk_candidates:
            last = np.partition(above, -spec.topk_candidates)[-spec.topk_candidates]
            cuts.append(1 / (1 + math.exp(-float(last))))
    return tuple(cuts)


def _check_something(
    expected: Mapping[int, Detections], errors: Mapping[int, ImageError], comparisons: Sequence[Comparison]
) -> None:
    if not expected:
        first = next(iter(errors.values()), None)
        raise UserError("none of the images could be read", first.message if first else "")
    boxes = sum(map(len, expected.values())) + sum(comparison.boxes for comparison in comparisons)
    if not boxes:
        raise UserError(
            f"nothing is found on the {len(expected)} images, so there are no boxes to compare",
            "choose images of what the detector was trained to find",
        )


def _score(
    reference: OfflineDetector,
    expected: Mapping[int, Detections],
    comparisons: Sequence[Comparison],
    truth: Annotations,
) -> str:
    """Give each comparison both average precisions; return what is to say of the classes."""
    same = match_classes(reference.class_names, truth.categories)
    part = part_of(truth, expected)
    ap = evaluate(part, expected, same.category_ids).ap
    if ap is None:
        raise UserError(f"{truth.path} has no boxes on the images compared", "take more of them: --count")
    for comparison in comparisons:
        other = evaluate(part, comparison.answers, same.category_ids).ap
        comparison.ap = (ap, other if other is not None else math.nan)
    return same.warning


def check_same(reference: OfflineDetector, candidates: Iterable[Candidate]) -> None:
    """Raise UserError for the first candidate that is another detector: other classes, size, anchors or limits."""
    for candidate in candidates:
        described = (
            candidate.model.spec if isinstance(candidate.model, OfflineDetector) else candidate.model.served
        )
        for name, wanted, found in _differences(reference.spec, described):
            hint = "compare what was exported from this checkpoint"
            if name == "size":
                hint = f"a checkpoint can be run at that size: --size {found[0]} {found[1]}"
            raise UserError(
                f"{candidate.name} is another detector than {reference.runtime.path}: "
                f"{_difference(name, wanted, found)}",
                hint,
            )


def _differences(reference: DetectorSpec, found: DetectorSpec | ServedModel) -> Iterable[tuple[str, Any, Any]]:
    """Yield the fields that differ among those both have, classes first; a server states only some."""
    known = {each.name for each in fields(found)}
    for name in (each.name for each in fields(reference)):
        if name in FREE_FIELDS or name not in known:
            continue
        wanted, value = getattr(reference, name), getattr(found, name)
        if value != wanted and not (isinstance(found, ServedModel) and not value):
            yield name, wanted, value


def _difference(name: str, wanted: Any, found: Any) -> str:
    """Say the first place where two values of a field part, as a list of 80 classes is not to be read."""
    what = name.replace("_", " ")
    if not isinstance(wanted, tuple) or name == "size":
        return f"its {what} is {_text(found)}, not {_text(wanted)}"
    if len(found) != len(wanted):
        return f"it has {len(found)} {what}, not {len(wanted)}"
    place = next(index for index, pair in enumerate(zip(found, wanted, strict=True)) if pair[0] != pair[1])
    if name == "anchors":
        return f"its anchors differ from level {place} on"
    return f"number {place} of its {what} is {_text(found[place])}, not {_text(wanted[place])}"


def _text(value: Any) -> str:
    return " x ".join(map(str, value)) if isinstance(value, tuple) else repr(value)
