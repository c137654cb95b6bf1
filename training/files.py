"""Files and folders that appear whole or not at all, and the hashes that tell files apart.

    write_json(Path("report.json"), report)
    with whole(Path("model.plan"), Path("model.plan.json")) as (plan, manifest):
        plan.write_bytes(engine)
        manifest.write_text(text)              # both appear when the block ends

What is half written lies in a folder beside the target, whose name begins with a dot, and is renamed from there.
A full disk, a missing right or Ctrl-C leave neither a new target nor that folder; a killed process leaves the
folder, which `remove_leftovers` finds.
"""

import glob
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from retinaserve.training.errors import Exit, UserError

_encode = json.JSONEncoder(ensure_ascii=False).encode


@contextmanager
def whole(*paths: Path) -> Iterator[list[Path]]:
    """Give a file to write for each of `paths`, all in one folder; they take their places together at the end.

    Whatever goes wrong before that leaves the folder as it was. Raises UserError where the system refuses.
    """
    with staging(paths[0]) as scratch:
        partial = [scratch / path.name for path in paths]
        yield partial
        for file in partial:
            with file.open("rb") as written:
                os.fsync(written.fileno())
        for file, path in zip(partial, paths, strict=True):
            file.replace(path)


@contextmanager
def staging(target: Path) -> Iterator[Path]:
    """Give a folder beside the target, on its file system, to write what will be renamed to it.

    Makes the target's directory. Raises UserError where the system refuses to write.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as folder:
            yield Path(folder)
    except OSError as error:
        raise UserError(
            f"{target} could not be written: {error.strerror or error}", "nothing of it was left behind"
        ) from error


def remove_leftovers(target: Path) -> None:
    """Remove what processes that were killed while they wrote `target` have left beside it."""
    for folder in target.parent.glob(f".{glob.escape(target.name)}-*"):
        shutil.rmtree(folder, ignore_errors=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file, its directory too. Raises UserError where it can't be written."""
    if path.exists() and not path.is_file() and not path.is_dir():
        path.write_bytes(content)  # a terminal or a pipe, such as /dev/stdout, has no place to be renamed to
        return
    with whole(path.resolve() if path.is_symlink() else path) as (partial,):  # a link stays
        partial.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write a file as UTF-8. Raises UserError as `write_bytes` does."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any, *, indent: int | None = 2) -> None:
    """Write a JSON file, a row of numbers on a line. Raises UserError as `write_bytes` does."""
    text = _indented(value, " " * indent, "\n") if indent else _encode(value)
    write_text(path, text + "\n")


def _indented(value: Any, step: str, line: str) -> str:
    """Return indented JSON; `line` is what begins a line outside of the value."""
    inner = line + step
    if isinstance(value, dict) and value:
        entries = [f"{_encode({key: 0})[1:-2]}{_indented(item, step, inner)}" for key, item in value.items()]
        return f"{{{inner}{f',{inner}'.join(entries)}{line}}}"
    if not isinstance(value, list | tuple) or _is_row(value):
        return _encode(value)
    if all(isinstance(item, list | tuple) and _is_row(item) for item in value):
        return f"[{inner}{_encode(value)[1:-1].replace('], [', f'],{inner}[')}{line}]"
    return f"[{inner}{f',{inner}'.join(_indented(item, step, inner) for item in value)}{line}]"


def _is_row(values: list[Any] | tuple[Any, ...]) -> bool:
    return not any(isinstance(value, str | dict | list | tuple) for value in values)


def from_json(text: str, what: str, version: int) -> dict[str, Any]:
    """Return what a JSON object holds beside its "format". Raises UserError for other text or another format."""
    try:
        content = json.loads(text)
    except ValueError as error:
        raise UserError(f"{what} is not JSON: {error}") from None
    found = content.pop("format", None) if isinstance(content, dict) else None
    if found != version:
        raise UserError(f"{what} has format {found!r}", f"this version reads format {version}")
    known: dict[str, Any] = content
    return known


def make_place(path: Path) -> None:
    """Make the directory of a file that will be written after long work. Raises UserError where it can't be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path} can't be written: {error.strerror or error}", code=Exit.USAGE) from None
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise UserError(f"{path} can't be written: no permission for its directory", code=Exit.USAGE)


def sha256(path: Path) -> str:
    """Return a file's hash in hexadecimal. Raises UserError for a file that can't be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror}") from None
