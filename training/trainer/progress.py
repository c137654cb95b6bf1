"""How a run is going: means between reports, the file they are kept in, checkpoints, curves and images.

meter = Meter(iterations, batch, first)
with meter.waiting(): batch = next(batches)
meter.add(losses)
recorder.progress(meter.report(iteration, lr))
plot_results(reports, scores, Path("model.results.png"))
"""

import json
import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from retinaserve.training.checkpoint import Checkpoint, save
from retinaserve.training.data.augment import Batch
from retinaserve.training.data.dataset import CocoDataset, LabelStatistics
from retinaserve.training.detections import Detections
from retinaserve.training.files import remove_leftovers, write_text
from retinaserve.training.images.draw import contact_sheet, draw
from retinaserve.training.model.losses import Losses
from retinaserve.training.spec import DetectorSpec
from retinaserve.training.trainer.validate import Scores

MOST_CLASSES = 30  # of the plot of labels
MOST_IMAGES, TILE = 16, (360, 360)  # of the sheets
SHOWN_SCORE = 0.3


@dataclass(frozen=True)
class Progress:
    """The run as of an iteration: means since the last report."""

    iteration: int
    iterations: int
    cls_loss: float
    box_loss: float
    lr: float
    images_per_second: float
    data_wait: float  # share of the time spent waiting for the next batch
    eta: float  # seconds
    iterations_per_second: float = 0.0
    memory: float = 0.0  # GiB at most so far: the GPU's, or this process's without one


class Meter:
    """Means of what happened since the last report."""

    def __init__(self, iterations: int, batch: int, iteration: int) -> None:
        self.iterations, self.batch = iterations, batch
        self._reset(iteration)

    def _reset(self, iteration: int) -> None:
        self.first, self.since, self.waited, self.paused_for = iteration, time.monotonic(), 0.0, 0.0
        self.losses: list[Losses] = []

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time within as waiting for data."""
        start = time.monotonic()
        yield
        self.waited += time.monotonic() - start

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time within out: validating and saving are not training."""
        start = time.monotonic()
        yield
        self.paused_for += time.monotonic() - start

    def add(self, losses: Losses) -> None:
        """Remember an iteration's losses, without waiting for the device."""
        self.losses.append(losses)

    def report(self, iteration: int, lr: float) -> Progress:
        """Return the means, and start anew."""
        cls, box = (float(torch.stack(values).mean()) for values in zip(*self.losses, strict=True))
        seconds = max(time.monotonic() - self.since - self.paused_for, 1e-9)
        count = iteration - self.first
        progress = Progress(
            iteration,
            self.iterations,
            cls,
            box,
            lr,
            images_per_second=count * self.batch / seconds,
            data_wait=self.waited / seconds,
            eta=(self.iterations - iteration) * seconds / count,
            iterations_per_second=count / seconds,
            memory=memory_peak(),
        )
        self._reset(iteration)
        return progress


def memory_peak() -> float:
    """Return the most memory used so far in GiB: of the GPU, or of this process where torch sees none."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_reserved() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts KiB


class Recorder:
    """What a run writes beside its checkpoint at `path`, and whom it reports to; disabled, it does nothing.

    `<stem>.metrics.jsonl` is one JSON object per report or validation, in the order of iterations.
    """

    def __init__(
        self,
        path: Path,
        *,
        enabled: bool = True,
        on_progress: Callable[[Progress], object] = lambda _: None,
        on_scores: Callable[[int, Scores], object] = lambda *_: None,
    ) -> None:
        self.path, self.enabled, self.on_progress, self.on_scores = path, enabled, on_progress, on_scores
        self.metrics, self.best = metrics_path(path), path.with_suffix(".best.pth")
        self.saved = -1  # the iteration of the checkpoint at `path`

    def start(self, first: int) -> None:
        """Drop what lies beyond iteration `first`, which will be done again, and what a killed run half wrote."""
        if not self.enabled:
            return
        for file in (self.path, self.best, self.metrics):
            remove_leftovers(file)
        lines = [line for line in _lines(self.metrics) if line["iteration"] <= first]
        # In one step: killed in between, the run keeps its history.
        write_text(self.metrics, "".join(json.dumps(line) + "\n" for line in lines))
        self.saved = first if self.path.exists() else -1

    def batch(self, batch: Batch, spec: DetectorSpec) -> None:
        """Draw the first batch as the network sees it."""
        if self.enabled:
            draw_batch(batch, spec.classes).save(self.path.with_suffix(".train_batch.jpg"))

    def progress(self, progress: Progress) -> None:
        """Keep and pass on a report."""
        if self.enabled:
            self._append(asdict(progress))
            self.on_progress(progress)

    def validation(
        self,
        iteration: int,
        scores: Scores,
        dataset: CocoDataset,
        spec: DetectorSpec,
        found: Mapping[int, Detections],
    ) -> None:
        """Keep and pass on a validation, and draw what was found in its first images."""
        if self.enabled:
            self._append({"iteration": iteration, **asdict(scores)})
            draw_predictions(dataset, spec, found).save(self.path.with_suffix(".val_predictions.jpg"))
            self.on_scores(iteration, scores)

    def save(self, checkpoint: Checkpoint) -> None:
        """Write the checkpoint, unless it is there."""
        if self.enabled and checkpoint.iteration != self.saved:
            save(self.path, checkpoint)
            self.saved = checkpoint.iteration

    def save_best(self, checkpoint: Checkpoint) -> None:
        """Write the best checkpoint so far."""
        if self.enabled:
            save(self.best, checkpoint)

    def _append(self, line: Mapping[str, float]) -> None:
        with self.metrics.open("a") as file:
            file.write(json.dumps(line) + "\n")


def metrics_path(checkpoint: Path) -> Path:
    """Return where the metrics of a checkpoint's run are."""
    return checkpoint.with_suffix(".metrics.jsonl")


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Return the reports in a metrics file; none if there is no file. A last line cut short is left out."""
    return [line for line in _lines(path) if "cls_loss" in line]


def read_scores(path: Path) -> list[dict[str, float]]:
    """Return the validations in a metrics file: `iteration`, `ap`, `ap50`, `ap75`, `ap_margin`."""
    return [line for line in _lines(path) if "ap" in line]


def _lines(path: Path) -> list[dict[str, float]]:
    lines = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    return lines


def plot_results(
    reports: Sequence[Mapping[str, float]], scores: Sequence[Mapping[str, float]], output: Path
) -> bool:
    """Draw the curves of a metrics file's reports and validations; return whether there was anything to draw."""
    if not reports:
        return False
    figure, (losses, *rest) = _figure(columns=2 if scores else 1)
    iterations = [report["iteration"] for report in reports]
    for key, label, colour in (("cls_loss", "class loss", "tab:blue"), ("box_loss", "box loss", "tab:orange")):
        losses.plot(iterations, [report[key] for report in reports], label=label, color=colour)
    losses.set(xlabel="iteration", ylabel="loss", yscale="log")
    losses.grid(alpha=0.3, which="both")
    rate = losses.twinx()
    rate.plot(iterations, [report["lr"] for report in reports], color="0.7", linestyle="--", label="learning rate")
    rate.set(ylabel="learning rate", ylim=(0, None))
    lines = [*losses.get_lines(), *rate.get_lines()]
    losses.legend(lines, [str(line.get_label()) for line in lines], loc="upper right")
    for axes in rest:
        places = [line["iteration"] for line in scores]
        for key, label in (("ap50", "AP50"), ("ap75", "AP75"), ("ap", "AP")):
            axes.plot(places, [line[key] for line in scores], label=label, marker="o", markersize=3)
        axes.set(xlabel="iteration", ylabel="validation", ylim=(0, 1))
        axes.grid(alpha=0.3)
        axes.legend(loc="lower right")
    figure.savefig(output, dpi=110)
    return True


def plot_labels(statistics: LabelStatistics, spec: DetectorSpec, output: Path) -> None:
    """Draw how many labels each class has, and the boxes' sizes among the anchors'."""
    figure, (classes, axes) = _figure(columns=2)
    counts = sorted(statistics.per_class.items(), key=lambda item: -item[1])[:MOST_CLASSES]
    classes.barh([name for name, _ in counts][::-1], [count for _, count in counts][::-1], color="tab:blue")
    classes.set(xlabel="boxes" if len(counts) == len(statistics.per_class) else f"boxes, {MOST_CLASSES} classes")
    axes.scatter(statistics.sizes[:, 0], statistics.sizes[:, 1], s=4, alpha=0.4, label="boxes")
    anchors = spec.anchor_table.reshape(-1, 4)
    sides = anchors[:, 2:] - anchors[:, :2]
    axes.scatter(sides[:, 0], sides[:, 1], marker="+", color="tab:orange", label="anchors")
    axes.set(xlabel="width, network's pixels", ylabel="height", xscale="log", yscale="log")
    axes.set_title(f"{statistics.covered:.0%} of boxes fit an anchor")
    axes.legend(loc="upper left")
    figure.savefig(output, dpi=110)


def draw_batch(batch: Batch, classes: Sequence[str]) -> Image.Image:
    """Draw the first images of a training batch with their boxes; crowd regions are thin and white."""
    tiles = []
    rows = zip(batch.images, batch.targets, batch.image_ids, strict=True)
    for pixels, target, image_id in islice(rows, MOST_IMAGES):
        # (3, H, W) -> (H, W, 3)
        image = Image.fromarray(np.ascontiguousarray(pixels.byte().permute(1, 2, 0).cpu().numpy()))
        boxes, crowd = target.boxes.numpy(), target.crowd.numpy()
        classes_of = target.classes.numpy()[~crowd].astype(np.int32)
        labelled = Detections(boxes[~crowd], np.ones(len(classes_of), np.float32), classes_of)
        drawn = draw(image, labelled, classes, within=TILE, scores=False, outlines=boxes[crowd])
        tiles.append((drawn, f"image {image_id}"))
    return contact_sheet(tiles, tile=TILE)


def draw_predictions(dataset: CocoDataset, spec: DetectorSpec, found: Mapping[int, Detections]) -> Image.Image:
    """Draw what was found, above a score, on the first images; the annotations' boxes are thin and white."""
    tiles = []
    rows = ((index, labels) for index, labels in enumerate(dataset.labels) if labels.image_id in found)
    for index, labels in islice(rows, MOST_IMAGES):
        shown = found[labels.image_id].above(SHOWN_SCORE)
        drawn = draw(dataset.load(index), shown, spec.classes, within=TILE, outlines=labels.boxes)
        tiles.append((drawn, labels.path.name))
    return contact_sheet(tiles, tile=TILE)


def _figure(*, columns: int) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5 * columns, 4.5), layout="constrained")
    return figure, figure.subplots(1, columns, squeeze=False)[0]
