"""`admit`: which images the server would refuse before decoding."""

from pathlib import Path

import click

from retinaserve.scripts.cli.options import also_json_option
from retinaserve.scripts.cli.output import name_next, warn
from retinaserve.training.errors import Exit, UserError
from retinaserve.training.files import write_json


@click.command()
@click.argument("images", nargs=-1)
@click.option("--trial/--no-trial", default=True, help="Decode once what has no checksums.")
@also_json_option
def admit(images: tuple[str, ...], trial: bool, json_path: Path | None) -> None:
    """Say which of IMAGES (files, folders, patterns) the server refuses without decoding them, and why.

    Exits with 1 if any is refused.
    """
    from retinaserve.training import pixels
    from retinaserve.training.images.sources import find_images

    if not images:
        raise UserError("no images are given", "files, folders, patterns", code=Exit.USAGE)
    paths = find_images(images, left_out=warn)
    refused: dict[str, str] = {}
    for path in paths:
        data = path.read_bytes()
        bad = pixels.gate(data) if trial else pixels.admit(data)
        if trial and not isinstance(bad, pixels.BadImage):
            bad = pixels.trial(data)
        if isinstance(bad, pixels.BadImage):
            refused[str(path)] = bad.message
            click.echo(f"{path}: {bad.message}")
    click.echo(f"{len(refused)} of {len(paths)} images refused")
    if json_path:
        write_json(json_path, {"pictures": len(paths), "refused": refused})
    if refused:
        raise click.exceptions.Exit(Exit.CHECK_FAILED)
    name_next("retinaserve build MODEL.pth --output repository")
