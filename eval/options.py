"""What the verbs of this folder share: options, progress, writing JSON and naming the next command."""

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import click

T = TypeVar("T")

FILE = click.Path(path_type=Path, dir_okay=False)
FOLDER = click.Path(path_type=Path, file_okay=False)

wait_option = click.option(
    "--wait", type=click.FloatRange(min=0), default=0.0, help="Seconds to wait for the server to become ready."
)
json_option = click.option("--json", "json_file", type=FILE, help="Write the numbers to this JSON file.")


def progress(items: Iterable[T], total: int) -> Iterator[T]:
    """Yield the items, one a picture, and show on a terminal's stderr how many there were."""
    from tqdm import tqdm

    # `disable=None` shows the bar on a terminal only.
    yield from tqdm(items, total=total, unit="image", file=sys.stderr, disable=None, dynamic_ncols=True)


def write_json(path: Path, value: Any, *, indent: int | None = 2) -> None:
    """Write a JSON file, its directory too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=indent, ensure_ascii=False) + "\n", encoding="utf-8")


def name_next(command: str) -> None:
    """Name the next useful command on stderr."""
    click.secho(f"next: {command}", dim=True, err=True)
