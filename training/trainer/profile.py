"""Where a training's time goes on this machine: loaders by themselves, and with the network behind them.

for row in profile(dataset, spec, TrainConfig(1), batches=(1, 8), train_batch=8, seconds=5): ...
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from retinaserve.training.data.dataset import CocoDataset
from retinaserve.training.data.loaders import training_batches
from retinaserve.training.spec import DetectorSpec
from retinaserve.training.trainer.config import TrainConfig
from retinaserve.training.trainer.progress import Meter
from retinaserve.training.trainer.trainer import Trainer, stream_settings

LOADERS, PRECISIONS = ("torch", "dali"), ("fp32", "bf16")


@dataclass(frozen=True)
class Timing:
    """One row: a loader by itself, or with the network behind it."""

    what: str
    loader: str
    batch: int
    precision: str  # "" for a loader by itself
    images_per_second: float
    data_wait: float  # share of the time


def profile(
    dataset: CocoDataset,
    spec: DetectorSpec,
    config: TrainConfig,
    *,
    batches: Sequence[int],
    train_batch: int,
    seconds: float,
) -> Iterator[Timing]:
    """Yield a row per loader and batch, then one per loader and precision; each is measured for some seconds."""
    settings: dict[str, Any]
    for batch in batches:
        for loader in LOADERS:
            settings = {"loader": loader, "batch": batch}
            yield _time_loading(dataset, spec, replace(config, **settings), seconds)
    for precision in PRECISIONS:
        for loader in LOADERS:
            settings = {"loader": loader, "batch": train_batch, "precision": precision}
            yield _time_training(dataset, spec, replace(config, **settings), seconds)


def _time_loading(dataset: CocoDataset, spec: DetectorSpec, config: TrainConfig, seconds: float) -> Timing:
    batches = training_batches(dataset, spec, stream_settings(config))
    next(batches)  # starts what has to be started
    start, count = time.monotonic(), 0
    while (passed := time.monotonic() - start) < seconds or count == 0:
        next(batches)
        count += 1
    return Timing("loading", config.loader, config.batch, "", count * config.batch / passed, 1.0)


def _time_training(dataset: CocoDataset, spec: DetectorSpec, config: TrainConfig, seconds: float) -> Timing:
    trainer = Trainer(spec, config)
    batches = training_batches(dataset, spec, stream_settings(config))
    trainer.step(next(batches), 0)
    meter, start, iteration = Meter(1, config.batch, 0), time.monotonic(), 0
    while time.monotonic() - start < seconds or iteration == 0:
        with meter.waiting():
            batch = next(batches)
        # A step reads its loss, which waits for the device, so the time is its own.
        meter.add(trainer.step(batch, 0))
        iteration += 1
    progress = meter.report(iteration, 0.0)
    return Timing(
        "training", config.loader, config.batch, config.precision, progress.images_per_second, progress.data_wait
    )
