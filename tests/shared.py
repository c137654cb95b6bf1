"""Files that the processes of a test run share: the first that needs one makes it, the others wait for it.

library = once("kernels.so", compile_kernels)
"""

import fcntl
import hashlib
import io
import os
import pickle
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

SHARED = "RETINASERVE_TESTS_SHARED"  # the folder; tests/conftest.py sets it


@cache
def _own() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="retinaserve-tests-")  # removed when the interpreter ends


def once(name: str, make: Callable[[Path], object]) -> Path:
    """Return the file of this name, which `make` writes to the path that it is given, unless it is there."""
    path = Path(os.environ.get(SHARED) or _own().name, name)
    with path.with_name(f"{name}.lock").open("w") as lock:  # what fails to be made is made again by the next
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            make(path)
    return path


class _Digest(pickle.Pickler):
    fast = True  # what was seen before is written again: who shares an object with whom is of no matter

    def reducer_override(self, value: Any) -> Any:
        """Write tensors by their values; torch's own pickles differ each time."""
        if hasattr(value, "detach"):
            return tuple, ([*value.shape, str(value.dtype), value.detach().numpy().tobytes()],)
        return NotImplemented


def digest(*content: Any) -> str:
    """Return a name for objects that is the same in every process where they are: modules, tensors, plain data."""
    buffer = io.BytesIO()
    _Digest(buffer).dump(content)
    return hashlib.sha256(buffer.getvalue()).hexdigest()
