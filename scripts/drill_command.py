"""`drill`: what the server promises under overload, reload, faults, bad input and time, put to the test."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from eval.options import FILE, name_next, write_json
from training.errors import Exit

if TYPE_CHECKING:
    from scripts.drills.verdict import Verdict

REPOSITORY = click.argument("repository", type=click.Path(path_type=Path, file_okay=False))
JSON = click.option("--json", "json_file", type=FILE, help="Write every figure to this JSON file.")
IMAGES = click.option("--images", multiple=True, help="Pictures to send; drawn ones if not given.")


@click.group()
def drill() -> None:
    """Start REPOSITORY's server, put it through hardship, and say which promises held.

    Works on a copy, on free ports. Exit code 1 when a promise did not hold; docs/reliability.md explains each.
    """


@drill.command()
@REPOSITORY
@click.option("--factor", type=click.FloatRange(min=1.1), default=4.0, help="Times the peak that is offered.")
@click.option("--seconds", type=click.FloatRange(min=1), default=20.0, help="Length of each load.")
@click.option("--protocol", type=click.Choice(["grpc", "http"]), default="grpc", help="What is spoken.")
@IMAGES
@JSON
def overload(
    repository: Path,
    factor: float,
    seconds: float,
    protocol: str,
    images: tuple[str, ...],
    json_file: Path | None,
) -> None:
    """Offer several times the peak rate: goodput, refusals, memory, and how it is afterwards."""
    from scripts.drills.overload import OverloadOptions
    from scripts.drills.overload import overload as run

    options = OverloadOptions(factor=factor, seconds=seconds, protocol=protocol)
    _report(run(repository, options, pictures=_pictures(images), tell=_tell), json_file, repository)


def _pictures(images: tuple[str, ...]) -> list[bytes] | None:
    from eval.images import find_images

    return [path.read_bytes() for path in find_images(images)] if images else None


def _tell(text: str) -> None:
    click.echo(text, err=True)


def _report(verdict: "Verdict", json_file: Path | None, repository: Path) -> None:
    click.echo(verdict.table())
    if json_file:
        write_json(json_file, verdict.to_dict())
    following = {"overload": "reload", "reload": "faults", "faults": "fuzz", "fuzz": "soak", "soak": "overload"}
    name_next(f"retinaserve drill {following[verdict.drill]} {repository}")
    if not verdict.passed:
        sys.exit(Exit.CHECK_FAILED)
