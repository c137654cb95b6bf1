"""Files that appear whole or not at all, and the hashes that tell them apart.

    with whole(Path("model.onnx")) as partial:
        onnx.save(model, partial)
    sha256(Path("model.onnx"))

It knows no format. Checkpoints are written by training/checkpoint.py, repositories by build_tools/repository.
"""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from retinaserve.training.errors import UserError
from retinaserve.training.staging import staging


@contextmanager
def whole(*paths: Path) -> Iterator[list[Path]]:
    """Give a file to write for each of `paths`, all in one folder; they take their places together at the end.

    Whatever goes wrong before that, a full disk or Ctrl-C, leaves the folder as it was. Raises UserError where the
    system refuses.
    """
    with staging(paths[0]) as scratch:
        partial = [scratch / path.name for path in paths]
        yield partial
        for file in partial:
            with file.open("rb") as written:
                os.fsync(written.fileno())
        for file, path in zip(partial, paths, strict=True):
            file.replace(path)


def sha256(path: Path) -> str:
    """Return a file's hash in hexadecimal. Raises UserError for a file that can't be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror}") from None
