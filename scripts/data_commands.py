"""`data`: make a data set (`data shapes`)."""

import sys
from pathlib import Path

import click

from training.errors import UserError


@click.group()
def data() -> None:
    """Make data sets."""


@data.command()
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
@click.option("--train", type=click.IntRange(min=1), default=600, help="Pictures to train on.")
@click.option("--val", type=click.IntRange(min=1), default=120, help="Pictures held out.")
@click.option("--seed", type=click.IntRange(min=0), default=0, help="The same seed draws the same bytes.")
@click.option("--force", is_flag=True, help="Draw into a directory that is not empty.")
def shapes(directory: Path, train: int, val: int, seed: int, force: bool) -> None:
    """Draw a synthetic COCO data set into DIRECTORY/train and DIRECTORY/val."""
    from tqdm import tqdm

    from scripts.shapes import draw_dataset

    if directory.is_dir() and any(directory.iterdir()) and not force:
        raise UserError(f"{directory} is not empty", "name a new directory, or draw into it with --force")
    with tqdm(total=train + val, unit="image", desc="drawing", file=sys.stderr, disable=None) as bar:
        # Neighbouring seeds of the command share no picture: one set has the even numbers, one the odd.
        parts = {
            name: draw_dataset(directory / name, images=count, seed=2 * seed + odd, on_image=bar.update)
            for odd, (name, count) in enumerate((("train", train), ("val", val)))
        }
    for part in parts.values():
        click.echo(f"{part.annotations}: {part.image_count} images, {part.box_count} boxes")
    made = parts["train"]
    click.echo(
        f"next: retinaserve train MODEL.pth --images {made.images} --annotations {made.annotations}", err=True
    )
