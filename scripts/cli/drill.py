"""`drill`: what the server promises under overload, reload, faults and time, put to the test."""

import functools
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from retinaserve.scripts.cli.options import COUNT, FILE, FOLDER
from retinaserve.scripts.cli.output import name_next, note
from retinaserve.training.errors import Exit
from retinaserve.training.files import write_json

if TYPE_CHECKING:
    from retinaserve.scripts.drills.drill import Result

FOLLOWING = {"overload": "reload", "reload": "faults", "faults": "soak", "soak": "overload"}


@click.group()
def drill() -> None:
    """Start REPOSITORY's server, put it through hardship, and report which promises held.

    Works on a copy, on free ports. Exit code 1 when a promise did not hold; docs/operations.md explains each.
    """


def on_repository(verb: Callable[..., "Result"]) -> Callable[..., None]:
    """Give a drill what all of them take: its images and log as `how`; print and write its result."""

    @click.argument("repository", type=FOLDER)
    @click.option("--images", multiple=True, help="Images to send; drawn ones if not given.")
    @click.option("--json", "json_file", type=FILE, help="Write every figure to this JSON file.")
    @functools.wraps(verb)
    def command(*, repository: Path, images: tuple[str, ...], json_file: Path | None, **options: Any) -> None:
        from retinaserve.training.images.sources import find_images

        sent = [path.read_bytes() for path in find_images(images)] if images else None
        result = verb(repository, {"images": sent, "log": note}, **options)
        click.echo(result.table())
        if json_file:
            write_json(json_file, result.to_dict())
        name_next(f"retinaserve drill {FOLLOWING[result.drill]} {repository}")
        if not result.passed:
            sys.exit(Exit.CHECK_FAILED)

    return command


@drill.command()
@on_repository
@click.option("--factor", type=click.FloatRange(min=1.1), default=4.0, help="Times the peak that is offered.")
@click.option("--seconds", type=click.FloatRange(min=1), default=20.0, help="Length of each load.")
@click.option("--rounds", type=COUNT, default=3, help="Floods, each between two peaks.")
@click.option("--protocol", type=click.Choice(["grpc", "http"]), default="grpc", help="What is spoken.")
def overload(repository: Path, how: Mapping[str, Any], **options: Any) -> "Result":
    """Offer several times the peak rate: goodput, refusals, memory, and how it is afterwards."""
    from retinaserve.scripts.drills.overload import OverloadOptions
    from retinaserve.scripts.drills.overload import overload as run

    return run(repository, OverloadOptions(**options), **how)


@drill.command()
@on_repository
@click.option("--in-flight", type=COUNT, default=4, help="Requests under way all the time.")
@click.option("--pause", type=click.FloatRange(min=0), default=1.0, help="Seconds between the steps.")
def reload(repository: Path, how: Mapping[str, Any], **options: Any) -> "Result":
    """Change versions under load: canary, use, rollback, a broken version; no request may fail."""
    from retinaserve.scripts.drills.reload import ReloadOptions
    from retinaserve.scripts.drills.reload import reload as run

    return run(repository, ReloadOptions(**options), **how)


@drill.command()
@on_repository
def faults(repository: Path, how: Mapping[str, Any]) -> "Result":
    """Kill processes, fill the disk and /dev/shm, leave in the middle of requests."""
    from retinaserve.scripts.drills.faults import faults as run

    return run(repository, **how)


@drill.command()
@on_repository
@click.option("--minutes", type=click.FloatRange(min=0.1), default=30.0, help="How long.")
@click.option("--share", type=click.FloatRange(0.01, 0.95), default=0.7, help="Of the peak found at the start.")
@click.option("--rate", type=click.FloatRange(min=0.01), help="Requests a second, instead of a share of the peak.")
def soak(repository: Path, how: Mapping[str, Any], **options: Any) -> "Result":
    """Load it steadily for a long time: memory, descriptors and latency have to stay flat."""
    from retinaserve.scripts.drills.soak import SoakOptions
    from retinaserve.scripts.drills.soak import soak as run

    return run(repository, SoakOptions(**options), **how)
