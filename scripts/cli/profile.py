"""`profile`: where a training's time goes on this machine, before days are spent on it."""

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from retinaserve.scripts.cli.options import COUNT, PATH
from retinaserve.scripts.cli.output import name_next
from retinaserve.training.data.augment import MODES
from retinaserve.training.files import write_json
from retinaserve.training.spec import BACKBONES

if TYPE_CHECKING:
    from retinaserve.training.data.dataset import CocoDataset
    from retinaserve.training.spec import DetectorSpec
    from retinaserve.training.trainer.settings import TrainConfig

LOADERS, PRECISIONS, BATCHES = ("torch", "dali"), ("fp32", "bf16"), (1, 8, 32)


@dataclass(frozen=True)
class Timing:
    """One row: a loader by itself, or with the network behind it."""

    what: str
    loader: str
    batch: int
    precision: str  # "" for a loader by itself
    images_per_second: float
    data_wait: float  # share of the time


@click.command()
@click.option("--images", type=PATH, default=Path(), help="Folder that the annotation file's names start from.")
@click.option("--annotations", type=PATH, required=True, help="COCO annotation file.")
@click.option(
    "--backbone", type=click.Choice(tuple(BACKBONES)), default="resnet18", help="What finds the features."
)
@click.option("--width", type=COUNT, default=64, help="Of the backbone; 64 is the published network.")
@click.option("--fpn-channels", type=COUNT, default=256, help="Channels of pyramid and heads.")
@click.option("--size", type=click.IntRange(min=32), nargs=2, default=(512, 512), metavar="H W", help="Input.")
@click.option("--batch", type=COUNT, multiple=True, default=BATCHES, help="Batches of the loaders; repeat it.")
@click.option("--train-batch", type=COUNT, default=8, help="Batch of the training steps.")
@click.option("--augment", type=click.Choice(MODES), default="multiscale", help="What is done to pictures.")
@click.option(
    "--workers", type=click.IntRange(min=0), default=0, help="Processes (DALI: threads) that read images."
)
@click.option("--seconds", type=click.FloatRange(min=0.1), default=5.0, help="Measured time a row.")
@click.option("--json", "json_path", type=PATH, help="Also write the rows there.")
def profile(
    images: Path,
    annotations: Path,
    backbone: str,
    width: int,
    fpn_channels: int,
    size: tuple[int, int],
    batch: tuple[int, ...],
    train_batch: int,
    augment: str,
    workers: int,
    seconds: float,
    json_path: Path | None,
) -> None:
    """Compare loaders and precisions: images a second, and the share of time spent waiting for data."""
    from retinaserve.training.data.dataset import CocoDataset
    from retinaserve.training.spec import DetectorSpec
    from retinaserve.training.trainer.settings import TrainConfig

    dataset = CocoDataset(images, annotations)
    spec = DetectorSpec.create(
        dataset.classes, size=size, backbone=backbone, width=width, fpn_channels=fpn_channels, norm="batch"
    )
    config = TrainConfig(1, augment=augment, workers=workers)
    rows: list[Timing] = []

    def show(row: Timing) -> None:
        rows.append(row)
        click.echo(
            f"{row.what:<9}{row.loader:<7}{row.batch:>5}  {row.precision or '-':<10}"
            f"{row.images_per_second:>9.1f}{row.data_wait:>11.0%}"
        )

    click.echo("what     loader  batch  precision    img/s  data wait")
    for size_of_batch in batch:
        for loader in LOADERS:
            choice: Any = {"loader": loader, "batch": size_of_batch}
            show(_load(dataset, spec, replace(config, **choice), seconds))
    for precision in PRECISIONS:
        for loader in LOADERS:
            choice = {"loader": loader, "batch": train_batch, "precision": precision}
            show(_train(dataset, spec, replace(config, **choice), seconds))
    if json_path:
        write_json(json_path, [asdict(row) for row in rows])
    name_next("retinaserve train MODEL.pth --loader ... --precision ...")


def _load(dataset: "CocoDataset", spec: "DetectorSpec", config: "TrainConfig", seconds: float) -> Timing:
    from retinaserve.training.data.loaders import training_batches

    batches = training_batches(dataset, spec, config.stream())
    next(batches)  # starts what has to be started
    start, count = time.monotonic(), 0
    while (passed := time.monotonic() - start) < seconds or count == 0:
        next(batches)
        count += 1
    return Timing("loading", config.loader, config.batch, "", count * config.batch / passed, 1.0)


def _train(dataset: "CocoDataset", spec: "DetectorSpec", config: "TrainConfig", seconds: float) -> Timing:
    import torch

    from retinaserve.training.data.loaders import training_batches
    from retinaserve.training.trainer.distributed import Team
    from retinaserve.training.trainer.progress import Meter
    from retinaserve.training.trainer.run import Run

    run = Run(spec, config, torch.device("cuda" if torch.cuda.is_available() else "cpu"), Team())
    batches = training_batches(dataset, spec, config.stream())
    run.step(next(batches), 0)
    meter, start, iteration = Meter(1, config.batch, 0), time.monotonic(), 0
    while time.monotonic() - start < seconds or iteration == 0:
        with meter.waiting():
            batch = next(batches)
        # Reading a loss waits for the device, so that the time is the step's own.
        meter.add(run.step(batch, 0))
        iteration += 1
    progress = meter.report(iteration, 0.0)
    return Timing(
        "training", config.loader, config.batch, config.precision, progress.images_per_second, progress.data_wait
    )
