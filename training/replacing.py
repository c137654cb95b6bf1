"""Files that appear whole or not at all.

with replacing(Path("report.html")) as partial:
    partial.write_text(...)
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from retinaserve.training.errors import Exit, UserError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a file beside `path` to write to, and rename it to `path` in the end; makes the directory.

    Raises UserError where it can't be written; then, and after any other error, `path` is as it was.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        partial.replace(path)
    except OSError as error:
        raise UserError(f"{path} can't be written: {error.strerror or error}") from None
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def make_place(path: Path) -> None:
    """Make the directory of a file that will be written after long work. Raises UserError where it can't be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path} can't be written: {error.strerror or error}", code=Exit.USAGE) from None
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise UserError(f"{path} can't be written: no permission for its directory", code=Exit.USAGE)
