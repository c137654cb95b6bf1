"""`drill`: what the server promises under overload, reload, faults and time, put to the test."""

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from retinaserve.scripts.cli.options import COUNT, FILE, FOLDER
from retinaserve.scripts.cli.output import name_next
from retinaserve.training.errors import Exit
from retinaserve.training.files import write_json

if TYPE_CHECKING:
    from retinaserve.scripts.drills.result import Result

REPOSITORY = click.argument("repository", type=FOLDER)
JSON = click.option("--json", "json_file", type=FILE, help="Write every figure to this JSON file.")
_log = partial(click.echo, err=True)
IMAGES = click.option("--images", multiple=True, help="Images to send; drawn ones if not given.")


@click.group()
def drill() -> None:
    """Start REPOSITORY's server, put it through hardship, and report which promises held.

    Works on a copy, on free ports. Exit code 1 when a promise did not hold; docs/operations.md explains each.
    """


@drill.command()
@REPOSITORY
@click.option("--factor", type=click.FloatRange(min=1.1), default=4.0, help="Times the peak that is offered.")
@click.option("--seconds", type=click.FloatRange(min=1), default=20.0, help="Length of each load.")
@click.option("--rounds", type=COUNT, default=3, help="Floods, each between two peaks.")
@click.option("--protocol", type=click.Choice(["grpc", "http"]), default="grpc", help="What is spoken.")
@IMAGES
@JSON
def overload(
    repository: Path,
    factor: float,
    seconds: float,
    rounds: int,
    protocol: str,
    images: tuple[str, ...],
    json_file: Path | None,
) -> None:
    """Offer several times the peak rate: goodput, refusals, memory, and how it is afterwards."""
    from retinaserve.scripts.drills.overload import OverloadOptions
    from retinaserve.scripts.drills.overload import overload as run

    options = OverloadOptions(factor=factor, seconds=seconds, rounds=rounds, protocol=protocol)
    _report(run(repository, options, images=_read(images), log=_log), json_file, repository)


@drill.command()
@REPOSITORY
@click.option("--in-flight", type=COUNT, default=4, help="Requests under way all the time.")
@click.option("--pause", type=click.FloatRange(min=0), default=1.0, help="Seconds between the steps.")
@IMAGES
@JSON
def reload(
    repository: Path, in_flight: int, pause: float, images: tuple[str, ...], json_file: Path | None
) -> None:
    """Change versions under load: canary, use, rollback, a broken version; no request may fail."""
    from retinaserve.scripts.drills.reload import ReloadOptions
    from retinaserve.scripts.drills.reload import reload as run

    options = ReloadOptions(in_flight=in_flight, pause=pause)
    _report(run(repository, options, images=_read(images), log=_log), json_file, repository)


@drill.command()
@REPOSITORY
@IMAGES
@JSON
def faults(repository: Path, images: tuple[str, ...], json_file: Path | None) -> None:
    """Kill processes, fill the disk and /dev/shm, leave in the middle of requests."""
    from retinaserve.scripts.drills.faults import faults as run

    _report(run(repository, images=_read(images), log=_log), json_file, repository)


@drill.command()
@REPOSITORY
@click.option("--minutes", type=click.FloatRange(min=0.1), default=30.0, help="How long.")
@click.option(
    "--share", type=click.FloatRange(0.01, 0.95), default=0.7, help="Of the peak rate found at the start."
)
@click.option("--rate", type=click.FloatRange(min=0.01), help="Requests a second, instead of a share of the peak.")
@IMAGES
@JSON
def soak(
    repository: Path,
    minutes: float,
    share: float,
    rate: float | None,
    images: tuple[str, ...],
    json_file: Path | None,
) -> None:
    """Load it steadily for a long time: memory, descriptors and latency have to stay flat."""
    from retinaserve.scripts.drills.soak import SoakOptions
    from retinaserve.scripts.drills.soak import soak as run

    options = SoakOptions(minutes=minutes, share=share, rate=rate)
    _report(run(repository, options, images=_read(images), log=_log), json_file, repository)


def _read(images: tuple[str, ...]) -> list[bytes] | None:
    from retinaserve.training.images import find_images

    return [path.read_bytes() for path in find_images(images)] if images else None


def _report(result: "Result", json_file: Path | None, repository: Path) -> None:
    click.echo(result.table())
    if json_file:
        write_json(json_file, result.to_dict())
    following = {"overload": "reload", "reload": "faults", "faults": "soak", "soak": "overload"}
    name_next(f"retinaserve drill {following[result.drill]} {repository}")
    if not result.passed:
        sys.exit(Exit.CHECK_FAILED)
