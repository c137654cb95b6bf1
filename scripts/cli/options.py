"""What the verbs of this folder share: options, progress and writing JSON."""

import functools
import json
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from retinaserve.training.replacing import replacing

if TYPE_CHECKING:
    from retinaserve.eval.client.transport import TlsFiles

T = TypeVar("T")

NUMBERS = re.compile(r"\[\n([^\[\]{}\"]+)\n\s*\]")  # the innermost lists of indented JSON, without strings
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
        from retinaserve.eval.client.transport import TlsFiles

        verb(tls=TlsFiles(ca, client_cert, client_key) if ca or client_cert or client_key else None, **rest)

    return with_tls


def server_words(*servers: object, tls: "TlsFiles | None" = None) -> str:
    """Return the options that reach the same servers again, quoted for a shell."""
    words = [word for server in servers for word in ("--server", str(server))]
    if tls:
        files = (("--ca", tls.ca), ("--client-cert", tls.certificate), ("--client-key", tls.key))
        words += [word for option, file in files if file for word in (option, str(file))]
    return shlex.join(words)


def progress(items: Iterable[T], total: int) -> Iterator[T]:
    """Yield the items, one a picture, and show on a terminal's stderr how many there were."""
    from tqdm import tqdm

    # `disable=None` shows the bar on a terminal only.
    yield from tqdm(items, total=total, unit="image", file=sys.stderr, disable=None, dynamic_ncols=True)


def report_options(verb: Callable[..., None]) -> Callable[..., None]:
    """Give a verb the options of the report on a labelled set; they arrive as `report_file` and so on."""
    options = (
        click.option("--report", "report_file", type=FILE, help="Write the report to this HTML file."),
        click.option("--baseline", type=FILE, help="Compare with the --json FILE of an earlier report."),
        click.option(
            "--max-drop",
            type=click.FloatRange(min=0),
            help="With --baseline: exit with 1 if AP fell by more, such as 0.01. [default: only tell]",
        ),
        click.option(
            "--resamples",
            type=click.IntRange(min=10),
            default=1000,
            help="Bootstrap draws of the images behind each interval.",
        ),
        click.option("--seed", type=click.IntRange(min=0), default=0, help="Of the bootstrap."),
    )
    for option in reversed(options):
        verb = option(verb)
    return verb


def write_json(path: Path, value: Any, *, indent: int | None = 2) -> None:
    """Write a JSON file, its directory too; it appears whole or not at all."""
    with replacing(path) as partial:
        text = json.dumps(value, indent=indent, ensure_ascii=False)
        if indent:  # a row of numbers is a line; no line break is ever inside a string
            text = NUMBERS.sub(lambda match: f"[{' '.join(match[1].split())}]", text)
        partial.write_text(text + "\n", encoding="utf-8")
