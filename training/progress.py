"""How a run is going: means between reports, and the file they are kept in.

    meter = Meter(iterations, batch, start)
    with meter.waiting(): batch = next(batches)
    meter.add(losses)
    metrics.append(meter.report(iteration, lr))

Nothing here prints; the command shows a `Progress` as it likes.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from training.losses import Losses


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


class Meter:
    """Means of what happened since the last report."""

    def __init__(self, iterations: int, batch: int, iteration: int) -> None:
        self.iterations, self.batch = iterations, batch
        self._reset(iteration)

    def _reset(self, iteration: int) -> None:
        self.first, self.since, self.waited = iteration, time.monotonic(), 0.0
        self.losses: list[Losses] = []

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time within as waiting for data."""
        start = time.monotonic()
        yield
        self.waited += time.monotonic() - start

    def add(self, losses: Losses) -> None:
        """Remember an iteration's losses, without waiting for the device."""
        self.losses.append(losses)

    def report(self, iteration: int, lr: float) -> Progress:
        """Return the means, and start anew."""
        cls, box = (float(torch.stack(values).mean()) for values in zip(*self.losses, strict=True))
        seconds, count = max(time.monotonic() - self.since, 1e-9), iteration - self.first
        progress = Progress(
            iteration,
            self.iterations,
            cls,
            box,
            lr,
            count * self.batch / seconds,
            self.waited / seconds,
            (self.iterations - iteration) * seconds / count,
        )
        self._reset(iteration)
        return progress


class Metrics:
    """A file of one JSON object a report, in the order of iterations."""

    def __init__(self, path: Path, *, keep: int) -> None:
        """Open the file and drop what lies beyond iteration `keep`: it will be done again."""
        self.path = path
        lines = [line for line in read_metrics(path) if line["iteration"] <= keep]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def append(self, progress: Progress) -> None:
        """Write one report."""
        with self.path.open("a") as file:
            file.write(json.dumps(asdict(progress)) + "\n")


def metrics_path(checkpoint: Path) -> Path:
    """Return where the metrics of a checkpoint's run are."""
    return checkpoint.with_suffix(".metrics.jsonl")


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Return the reports in a metrics file; none if there is no file. A last line cut short is left out."""
    reports = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            reports.append(json.loads(line))
        except ValueError:
            break
    return reports
