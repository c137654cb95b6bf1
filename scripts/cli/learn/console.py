"""What `train` prints while it works: what it is about to do, one live line, and scores as they come.

    announce(dataset, spec, config)
    live = Line(); live.show(progress); live.end()

To stderr: one line that changes on a terminal, a line per report elsewhere.
"""

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import torch

from retinaserve.scripts.cli.output import note
from retinaserve.training.data.dataset import CocoDataset, LabelStatistics
from retinaserve.training.spec import DetectorSpec
from retinaserve.training.trainer.config import BASE_RATES, REFERENCE_BATCH, TrainConfig
from retinaserve.training.trainer.progress import Progress, metrics_path, read_scores
from retinaserve.training.trainer.trainer import TrainResult
from retinaserve.training.trainer.validate import Scores

MOST_CLASSES = 6
UNIMPORTANT = ("report_every", "save_every", "val_every", "workers", "loader")  # for what is learnt
MANY = 500_000  # images to learn from, more than a CPU gets through in a working day
FEW = 0.9  # share of boxes that fit an anchor, below which advice is given


def announce(
    dataset: CocoDataset, spec: DetectorSpec, config: TrainConfig, *, processes: int, lr_given: bool
) -> None:
    """Print what is about to be trained, and how."""
    network = spec.network
    epochs = config.iterations * config.batch / len(dataset)
    note(
        f"{len(dataset)} images, {dataset.box_count} boxes, {len(spec.classes)} classes; "
        f"{network.backbone} of width {network.width} at {spec.size_text}; "
        f"{config.iterations} iterations of {config.batch} ({epochs:.1f} epochs)"
    )
    if config.shorter is not None:
        note(
            f"trained at a shorter side of {config.shorter}, at most {config.longest}; "
            f"exported and validated at {spec.size_text}"
        )
    rate = "as given"
    if not lr_given:
        rate = f"{BASE_RATES[config.optimizer]:g} x batch {config.batch} / {REFERENCE_BATCH}; --lr sets it"
    course = f"x {config.gamma:g} at {_list(config.milestones)}" if config.milestones else "cosine to zero"
    shared = f"; {processes} processes with {config.batch // processes} images each" if processes > 1 else ""
    note(
        f"{config.optimizer}, learning rate {config.lr:.3g} ({rate}), "
        f"{config.warmup} iterations of warm-up, {course}{shared}"
    )
    without_gpu = not torch.cuda.is_available()
    if without_gpu and config.iterations * config.batch > MANY:
        note("without a GPU this may take days: --config cpu is a recipe that takes an hour")
    if without_gpu and crowded(os.getloadavg()[0], os.cpu_count() or 1, torch.get_num_threads()):
        note("other programs keep this machine busy: with OMP_NUM_THREADS=1 in front it may be many times faster")
    if config.compile:
        note("the first iteration compiles the network, which takes a minute or more")


def crowded(load: float, cores: int, threads: int) -> bool:
    """Return whether torch's threads would wait for each other, which has cost up to forty times."""
    return threads > 1 and load + threads > 2 * cores


def announce_labels(statistics: LabelStatistics) -> None:
    """Print what the labels are like, and whether the anchors fit them."""
    counts = sorted(statistics.per_class.items(), key=lambda item: -item[1])
    shown = ", ".join(f"{name} {count}" for name, count in counts[:MOST_CLASSES])
    more = f" and {len(counts) - MOST_CLASSES} more classes" if len(counts) > MOST_CLASSES else ""
    rest = f"; {statistics.empty_images} images without boxes" if statistics.empty_images else ""
    rest += f"; {statistics.crowds} crowd regions" if statistics.crowds else ""
    note(f"labels: {shown}{more}{rest}")
    if len(statistics.sizes):
        sides = statistics.sizes.prod(axis=1) ** 0.5
        small, large = sorted(sides)[len(sides) // 20], sorted(sides)[len(sides) * 19 // 20]
        fit = f"{statistics.covered:.0%} of them fit an anchor"
        advice = "; see --anchor-size and --size" if statistics.covered < FEW else ""
        note(f"boxes: most measure {small:.0f} to {large:.0f} of the network's pixels; {fit}{advice}")


def announce_changes(training: Mapping[str, Any], config: TrainConfig) -> None:
    """Print which settings a run goes on with that it did not begin with; `training` is its checkpoint's."""
    # JSON knows lists only.
    now: dict[str, Any] = json.loads(json.dumps(asdict(config)))
    before: dict[str, Any] = json.loads(training.get("config", "{}"))
    changes = [
        f"{name} {now[name]} (was {value})"
        for name, value in before.items()
        if name in now and now[name] != value and name not in UNIMPORTANT
    ]
    if changes:
        note(f"goes on with other settings: {', '.join(changes)}")


class Line:
    """The progress on stderr."""

    def __init__(self, *, enabled: bool = True) -> None:
        self.live, self.enabled = sys.stderr.isatty(), enabled

    def show(self, progress: Progress) -> None:
        """Show a report."""
        text = describe(progress)
        # Erase to the end of the line: the one before may have been longer.
        note(f"\r{text}\x1b[K" if self.live else text, nl=not self.live)

    def score(self, iteration: int, scores: Scores) -> None:
        """Show a validation, on a line that stays."""
        self.end()
        ap = f"AP {scores.ap:.3f}{give_or_take(scores.ap_margin)}  AP50 {scores.ap50:.3f}  AP75 {scores.ap75:.3f}"
        note(f"validation at {iteration}: {ap}")

    def end(self) -> None:
        """Leave the live line."""
        if self.live and self.enabled:
            note()


def announce_result(model: Path, result: TrainResult, config: TrainConfig, *, validated: int) -> None:
    """Print what came of a training that was not interrupted; `validated` images were scored."""
    if not result.trained:
        note(f"{model}: already trained for {result.iteration} iterations; more with --iters")
        return
    scored = ""
    if validated and result.scores:
        spread = give_or_take(result.scores.ap_margin)
        scored = f", AP {result.scores.ap:.3f}{spread}, AP50 {result.scores.ap50:.3f}"
        scored += f" (±: 95 %, bootstrap over {validated} images)" if spread else ""
    ended = f", no better AP in {config.patience} validations" if result.stalled else ""
    click.echo(f"{model}: {result.iteration} iterations in {clock(result.seconds)}{ended}{scored}")
    if result.best and result.best[1] < result.iteration:
        ap, iteration = result.best
        margins = {line["iteration"]: line.get("ap_margin") for line in read_scores(metrics_path(model))}
        spread = give_or_take(margins.get(iteration))
        click.echo(f"{model.with_suffix('.best.pth')}: AP {ap:.3f}{spread}, the best, of iteration {iteration}")


def give_or_take(margin: float | None) -> str:
    """Return what stands behind an AP."""
    return "" if margin is None else f" ± {margin:.3f}"


def describe(progress: Progress) -> str:
    """Return a report in a line."""
    return (
        f"{progress.iteration:>{len(str(progress.iterations))}}/{progress.iterations}"
        f"  class {progress.cls_loss:.3f}  box {progress.box_loss:.3f}  lr {progress.lr:.2e}"
        f"  {progress.iterations_per_second:.2f} it/s  {progress.images_per_second:.1f} img/s"
        f"  data wait {progress.data_wait:.0%}  {progress.memory:.1f} GiB  ETA {clock(progress.eta)}"
    )


def clock(seconds: float) -> str:
    """Return a duration as 1:02:03, or 2:03 below an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _list(numbers: tuple[int, ...]) -> str:
    return ", ".join(str(number) for number in numbers)
