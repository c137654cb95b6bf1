"""What the verbs of this folder share: options, progress, writing JSON and naming the next command."""

import functools
import json
import sys
from collections.abc import Callable, Iterable, Iterator
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


def tls_options(verb: Callable[..., None]) -> Callable[..., None]:
    """Add the options of an encrypted connection; the verb takes them as `tls`, a TlsFiles or None."""

    @click.option(
        "--ca", type=FILE, help="PEM authority of a grpcs:// or https:// server; the system's by default."
    )
    @click.option("--client-cert", type=FILE, help="PEM certificate to show to a server that asks for one.")
    @click.option("--client-key", type=FILE, help="PEM private key of --client-cert.")
    @functools.wraps(verb)
    def with_tls(*, ca: Path | None, client_cert: Path | None, client_key: Path | None, **rest: Any) -> None:
        from eval.transport import TlsFiles

        verb(tls=TlsFiles(ca, client_cert, client_key) if ca or client_cert or client_key else None, **rest)

    return with_tls


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
