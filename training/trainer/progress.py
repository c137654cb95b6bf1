"""How a run is going: means between reports, and the file they are kept in.

    meter = Meter(iterations, batch, start)
    with meter.waiting(): batch = next(batches)
    meter.add(losses)
    metrics.append(meter.report(iteration, lr))

Nothing here prints; the command shows a `Progress` as it likes.
"""

import json
import resource
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from retinaserve.training.files import write_text
from retinaserve.training.model.losses import Losses


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
        self.first, self.since, self.waited, self.away = iteration, time.monotonic(), 0.0, 0.0
        self.losses: list[Losses] = []

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time within as waiting for data."""
        start = time.monotonic()
        yield
        self.waited += time.monotonic() - start

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Leave the time within out: validation is no training."""
        start = time.monotonic()
        yield
        self.away += time.monotonic() - start

    def add(self, losses: Losses) -> None:
        """Remember an iteration's losses, without waiting for the device."""
        self.losses.append(losses)

    def report(self, iteration: int, lr: float) -> Progress:
        """Return the means, and start anew."""
        cls, box = (float(torch.stack(values).mean()) for values in zip(*self.losses, strict=True))
        seconds, count = max(time.monotonic() - self.since - self.away, 1e-9), iteration - self.first
        progress = Progress(
            iteration,
            self.iterations,
            cls,
            box,
            lr,
            count * self.batch / seconds,
            self.waited / seconds,
            (self.iterations - iteration) * seconds / count,
            count / seconds,
            memory_peak(),
        )
        self._reset(iteration)
        return progress


def memory_peak() -> float:
    """Return the most memory used so far in GiB: of the GPU, or of this process where torch sees none."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_reserved() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts KiB


class Metrics:
    """A file of one JSON object a report, in the order of iterations."""

    def __init__(self, path: Path, *, keep: int) -> None:
        """Open the file and drop what lies beyond iteration `keep`: it will be done again."""
        self.path = path
        lines = [line for line in _lines(path) if line["iteration"] <= keep]
        write_text(path, "".join(json.dumps(line) + "\n" for line in lines))

    def append(self, progress: Progress) -> None:
        """Write one report."""
        self._write(asdict(progress))

    def append_scores(self, iteration: int, scores: Mapping[str, float]) -> None:
        """Write one validation."""
        self._write({"iteration": iteration, **scores})

    def _write(self, line: Mapping[str, float]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def metrics_path(checkpoint: Path) -> Path:
    """Return where the metrics of a checkpoint's run are."""
    return checkpoint.with_suffix(".metrics.jsonl")


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Return the reports in a metrics file; none if there is no file. A last line cut short is left out."""
    return [line for line in _lines(path) if "cls_loss" in line]


def read_scores(path: Path) -> list[dict[str, float]]:
    """Return the validations in a metrics file: `iteration`, `ap`, `ap50`, `ap75`."""
    return [line for line in _lines(path) if "ap" in line]


def _lines(path: Path) -> list[dict[str, float]]:
    lines = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    return lines
