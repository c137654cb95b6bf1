"""What all verbs print while they work and at their end: remarks, progress, the next command.

    for image in progress(images, len(images)): ...
    name_next(f"retinaserve serve {repository}")        # "next: retinaserve serve repository" on stderr

Results go to stdout, everything else to stderr.
"""

import sys
from collections.abc import Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import click

from retinaserve.training.errors import Exit

if TYPE_CHECKING:
    from tqdm import tqdm

    from retinaserve.eval.tiled import Sized, Tiling
    from retinaserve.training.detections import Detector

T = TypeVar("T")

STEPS = "retinaserve.steps"  # in the `meta` of a click context: the verb is a step of another one

note = partial(click.echo, err=True)
caution = partial(click.secho, fg="yellow", err=True)
failure = partial(click.secho, fg="red", err=True)


def name_next(command: str, *, where: str = "") -> None:
    """Name the next useful command on stderr; `where` says on which machine, if not on this one.

    Inside a command that runs others, such as `demo`, only the outer one knows what is left to do.
    """
    context = click.get_current_context(silent=True)
    if context and context.meta.get(STEPS):
        return
    click.secho(f"next, {where}: {command}" if where else f"next: {command}", dim=True, err=True)


def warn(text: str) -> None:
    """Print a line about the data: it is no result."""
    (caution if text.startswith("warning") else note)(text)


def bar(
    total: int | None = None, title: str | None = None, *, unit: str = "image", leave: bool = True
) -> "tqdm[Any]":
    """Return a progress bar, which shows on a terminal's stderr only."""
    from tqdm import tqdm

    return tqdm(total=total, desc=title, unit=unit, leave=leave, file=sys.stderr, disable=None, dynamic_ncols=True)


def progress(items: Iterable[T], total: int, title: str | None = None) -> Iterator[T]:
    """Yield the items, one per image, and show how many there were."""
    with bar(total, title) as shown:
        for item in items:
            yield item
            shown.update()


def tiled(detector: "Sized", tiling: "Tiling | None") -> "Detector":
    """Return the detector, or that of its tiles with their number shown on a terminal."""
    if tiling is None:
        return detector

    from retinaserve.eval.tiled import TiledDetector

    tiles = bar(unit="tile", leave=False)

    def show(answered: int, known: int) -> None:
        tiles.total = known
        tiles.update(answered - tiles.n)

    return TiledDetector(detector, tiling, on_tile=show)


def finish(failed: int, count: int, following: str, *, passed: bool = True) -> None:
    """Say how many images failed and what to do next, unless nothing was answered; exit with what came of it."""
    if failed:
        failure(f"{failed} of {count} images failed")
    if failed < count or not count:
        name_next(following)
    if failed:
        sys.exit(Exit.BAD_DATA)
    if not passed:
        sys.exit(Exit.CHECK_FAILED)
