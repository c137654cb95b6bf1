"""`profile`: where a training's time goes on this machine, before days are spent on it."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from retinaserve.scripts.cli.options import COUNT, also_json_option, labels_options, setting_options
from retinaserve.scripts.cli.output import name_next
from retinaserve.training.files import write_json
from retinaserve.training.spec import Design, Network
from retinaserve.training.trainer.config import TrainConfig


@click.command()
@labels_options
@setting_options(Network, names=("backbone", "width", "fpn_channels"), backbone="resnet18")
@setting_options(Design, names=("size",))
@click.option("--batch", type=COUNT, multiple=True, default=(1, 8, 32), help="Batches of the loaders; repeat it.")
@click.option("--train-batch", type=COUNT, default=8, help="Batch of the training steps.")
@setting_options(TrainConfig, names=("augment", "workers"), augment="multiscale")
@click.option("--seconds", type=click.FloatRange(min=0.1), default=5.0, help="Measured time per row.")
@also_json_option
def profile(
    images: Path,
    annotations: Path,
    batch: tuple[int, ...],
    train_batch: int,
    augment: str,
    workers: int,
    seconds: float,
    json_path: Path | None,
    **design: Any,
) -> None:
    """Compare loaders and precisions: images per second, and the share of time spent waiting for data."""
    from retinaserve.training.data.dataset import CocoDataset
    from retinaserve.training.spec import DetectorSpec
    from retinaserve.training.trainer.profile import profile as measure

    dataset = CocoDataset(images, annotations)
    spec = DetectorSpec.create(dataset.classes, **design)
    config = TrainConfig(1, augment=augment, workers=workers)
    rows = []
    click.echo("what     loader  batch  precision    img/s  data wait")
    for row in measure(dataset, spec, config, batches=batch, train_batch=train_batch, seconds=seconds):
        rows.append(asdict(row))
        click.echo(
            f"{row.what:<9}{row.loader:<7}{row.batch:>5}  {row.precision or '-':<10}"
            f"{row.images_per_second:>9.1f}{row.data_wait:>11.0%}"
        )
    if json_path:
        write_json(json_path, rows)
    name_next("retinaserve train MODEL.pth --loader ... --precision ...")
