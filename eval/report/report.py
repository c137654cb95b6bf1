"""A detector on a labelled set: its scores, what failed, tables, curves and a sheet of images.

    report = evaluate_detector(client, truth, images, progress=tqdm)
    print(report.table())
    report.write_images(Path("report"))       # curves.png, contact_sheet.jpg, detections.json

The detector may be a server or a file; it only sees encoded images. An image without an answer counts as one
without detections, so that failures lower the scores instead of hiding in them.
"""

import time
from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from PIL import Image

from retinaserve.eval.client.client import Client
from retinaserve.eval.client.server_info import ModelStatistics
from retinaserve.eval.tiled import answers_of
from retinaserve.training.coco import Annotations
from retinaserve.training.detections import Detections, Detector, ImageError
from retinaserve.training.files import write_json
from retinaserve.training.images.draw import contact_sheet, draw, open_image
from retinaserve.training.images.sources import annotated_files
from retinaserve.training.scoring.bootstrap import margin
from retinaserve.training.scoring.judge import JudgeName
from retinaserve.training.scoring.scores import (
    IOU_50,
    IOU_75,
    NUMBERS,
    CocoScores,
    evaluate,
    match_classes,
    to_coco,
)

Answers = Iterator[Detections | ImageError]
SHEET_IMAGES, SHEET_COLUMNS, TILE = 12, 4, (400, 300)  # half of the columns are the truth
SHEET_SCORE = 0.5
MOST_CLASSES = 25  # bars of the plot
PERCENTILES = {"p50": 50, "p90": 90, "p95": 95, "p99": 99, "max": 100}


@dataclass(frozen=True)
class Report:
    """The result of one evaluation; `results` and `errors` are by image id."""

    truth: Annotations
    files: Mapping[int, Path]
    results: Mapping[int, Detections]
    errors: Mapping[int, ImageError]
    class_names: tuple[str, ...]
    category_ids: tuple[int | None, ...]
    warning: str  # how the classes were matched, when there is something to say
    scores: CocoScores
    seconds: float
    model: Mapping[str, Any] = field(default_factory=dict)  # what is known of its identity
    latency_ms: Mapping[str, float] = field(default_factory=dict)  # percentiles of the answers, through a server
    busy: Mapping[str, float] = field(default_factory=dict)  # share of the run each step of the server executed

    def to_dict(self) -> dict[str, Any]:
        """Return the report for JSON."""
        return {
            "annotations": str(self.truth.path),
            "annotations_sha256": self.truth.sha256,
            "model": dict(self.model),
            "images": len(self.files),
            "seconds": round(self.seconds, 3),
            "images_per_second": round(len(self.files) / self.seconds, 2),
            "latency_ms": dict(self.latency_ms),
            "server_busy": dict(self.busy),
            "warning": self.warning,
            "failed": [
                {"file": str(self.files[image_id]), "kind": error.kind, "message": error.message}
                for image_id, error in self.errors.items()
            ],
            "scores": self.scores.to_dict(),
        }

    def table(self) -> str:
        """Return the 12 numbers and a line for each class that was to be found or was found."""
        values = self.scores.to_dict()
        lines = [f"{name:<10} {_number(values[name]):>6}   {what}" for name, what in NUMBERS.items()]
        spread = margin(self.scores.matches)
        if spread is not None:
            lines[0] += f"; ± {spread:.3f} (95 %, bootstrap over {self.scores.images} images)"
        beyond = self.scores.at_maximum
        if beyond:
            what = f"as ap, with all detections: up to {beyond.detections} of a class in an image"
            lines.append(f"{'ap_all':<10} {_number(beyond.ap):>6}   {what}")
        shown = [score for score in self.scores.per_class if score.instances or score.detections]
        width = max([len(score.name) for score in shown] + [len("class")])
        lines += ["", f"{'class':<{width}}  instances  detections      ap    ap50      ar"]
        lines += [
            f"{score.name:<{width}}  {score.instances:>9}  {score.detections:>10}"
            f"  {_number(score.ap):>6}  {_number(score.ap50):>6}  {_number(score.ar):>6}"
            for score in shown
        ]
        left_out = len(self.scores.per_class) - len(shown)
        if left_out:
            lines.append(f"and {left_out} more without instances or detections")
        return "\n".join(lines)

    def coco_results(self) -> list[dict[str, Any]]:
        """Return all detections as a COCO result list."""
        return list(to_coco(self.results, self.category_ids))

    def write_images(self, folder: Path) -> None:
        """Write curves.png, contact_sheet.jpg and detections.json into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "detections.json", self.coco_results(), indent=None)  # first: drawing may fail
        plot_curves(self.scores, folder / "curves.png")
        self.sheet().save(folder / "contact_sheet.jpg", quality=90)

    def sheet(self) -> Image.Image:
        """Return a sheet of images spread over the set: what is labelled beside what was found."""
        names, of_category, of_class = self._shared_classes()
        ids = [image_id for image_id in self.files if image_id not in self.errors]
        tiles = []
        for image_id in ids[:: max(1, len(ids) // SHEET_IMAGES)][:SHEET_IMAGES]:
            image, name = open_image(self.files[image_id]), self.files[image_id].name
            drawn = _renumbered(self.truth.boxes_of(image_id), of_category)
            found = _renumbered(self.results[image_id].above(SHEET_SCORE), of_class)
            left = draw(image, drawn, names, within=TILE, scores=False)
            tiles.append((left, f"{name}: {len(drawn)} labelled"))
            tiles.append((draw(image, found, names, within=TILE), f"{len(found)} found"))
        return contact_sheet(tiles, columns=SHEET_COLUMNS, tile=TILE)

    def _shared_classes(self) -> tuple[list[str], dict[int, int], dict[int, int]]:
        """Return one list of names for both sides, so that a class has one colour, and the places in it."""
        of_category = {category_id: place for place, category_id in enumerate(self.truth.categories)}
        names, of_class = list(self.truth.categories.values()), {}
        for index, (name, category_id) in enumerate(zip(self.class_names, self.category_ids, strict=True)):
            if category_id is None:
                names.append(name)
            of_class[index] = len(names) - 1 if category_id is None else of_category[category_id]
        return names, of_category, of_class


def evaluate_detector(
    detector: Detector,
    truth: Annotations,
    images: Path,
    *,
    progress: Callable[[Answers, int], Answers] = lambda answers, _: answers,
    judge: JudgeName | None = None,
) -> Report:
    """Ask a detector for every image of an annotation file and score the answers.

    `progress(answers, total)` passes the answers on and may show how many there were; `judge` is `evaluate`'s.
    """
    files = annotated_files(truth, images)
    match = match_classes(detector.class_names, truth.categories)
    results: dict[int, Detections] = {}
    errors: dict[int, ImageError] = {}
    start = time.perf_counter()
    answers = progress(answers_of(detector, files.values()), len(files))
    for image_id, answer in zip(files, answers, strict=True):
        if isinstance(answer, ImageError):
            errors[image_id], results[image_id] = answer, Detections.none()
        else:
            results[image_id] = answer
    seconds = time.perf_counter() - start
    return Report(
        truth=truth,
        files=files,
        results=results,
        errors=errors,
        class_names=detector.class_names,
        category_ids=match.category_ids,
        warning=match.warning,
        scores=evaluate(truth, results, match.category_ids, judge=judge),
        seconds=seconds,
    )


def plot_curves(scores: CocoScores, path: Path) -> None:
    """Draw precision over recall, and the AP of the classes that have instances, into a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), dpi=120, layout="constrained")
    left, right = figure.subplots(1, 2)
    recall = np.linspace(0, 1, scores.precision.shape[1])
    known = scores.precision[:, :, [score.instances > 0 for score in scores.per_class]]  # (10, 101, k)
    if known.shape[2]:
        for label, curve in (
            ("IoU 0.50", known[IOU_50].mean(1)),
            ("IoU 0.75", known[IOU_75].mean(1)),
            ("IoU 0.50:0.95", known.mean((0, 2))),
        ):
            left.plot(recall, curve, label=f"{label}, area {curve.mean():.3f}", linewidth=2)
        left.legend(frameon=False)
    left.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision, mean of classes")
    left.set_title("Precision over recall")
    left.grid(alpha=0.25)

    ranked = sorted((s for s in scores.per_class if s.instances), key=lambda s: s.ap or 0.0)[-MOST_CLASSES:]
    names = [f"{score.name} ({score.instances})" for score in ranked]
    right.barh(names, [score.ap50 or 0.0 for score in ranked], color="#bfdbfe", label="AP50")
    right.barh(names, [score.ap or 0.0 for score in ranked], color="#2563eb", height=0.5, label="AP")
    right.set(xlim=(0, 1), xlabel="average precision")
    right.set_title("By class (instances)", loc="left")
    right.grid(axis="x", alpha=0.25)
    # Beside the title, for bars are long.
    right.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=2)
    figure.savefig(path)


def _renumbered(found: Detections, places: Mapping[int, int]) -> Detections:
    return replace(found, classes=np.array([places[int(index)] for index in found.classes], np.int32))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


@dataclass(frozen=True)
class Traffic:
    """The seconds of each answer of a server as they come, and what it had counted before.

    A step of the ensemble is busy while one of its instances executes a batch, by the server's own statistics; the
    share of the run that the busiest one was says how far the server was the limit: 1.0 is a server that never
    waited for its client. Work of other clients of the same server counts as well.
    """

    client: Client
    instances: Mapping[str, int]
    before: Mapping[str, ModelStatistics]
    seconds: "array[float]" = field(default_factory=lambda: array("d"))

    @classmethod
    def watch(cls, client: Client) -> Self:
        """Start: from now on every answer of the client is timed."""
        traffic = cls(client, client.identity().instances, client.statistics())
        client.on_answer(traffic.seconds.append)
        return traffic

    def latency(self) -> dict[str, float]:
        """Return percentiles of the answers, in milliseconds; nothing when there were none."""
        if not self.seconds:
            return {}
        values = np.percentile(self.seconds, list(PERCENTILES.values())) * 1000
        return {name: round(float(value), 3) for name, value in zip(PERCENTILES, values, strict=True)}

    def busy(self, wall_seconds: float) -> dict[str, float]:
        """Return the share of the time that each step's instances executed, by the server's statistics."""
        after = self.client.statistics()
        return {
            step: round((after[step] - self.before[step]).busy_ns / 1e9 / wall_seconds / self.instances[step], 4)
            for step in self.client.served.steps
        }
