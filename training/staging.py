"""Files that appear whole or not at all, whatever happens while they are written.

    with staging(Path("model.onnx")) as folder:
        ...                                   # write folder / "model.onnx"
        (folder / "model.onnx").replace("model.onnx")

A full disk, a missing right or Ctrl-C leave neither the target nor the folder behind. A killed process does leave
the folder; its name begins with a dot and the target's name.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from retinaserve.training.errors import UserError


@contextmanager
def staging(target: Path) -> Iterator[Path]:
    """Give a folder beside the target, on the same file system; raise UserError where writing fails."""
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as folder:
            yield Path(folder)


@contextmanager
def disk_errors(target: Path) -> Iterator[None]:
    """Say in a UserError what the operating system has against writing."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{target} could not be written: {error.strerror or error}", "nothing of it was left behind"
        ) from error
