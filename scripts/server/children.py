"""The processes that a server started, and those of them that died.

dead_children(server.process.pid)       # {9349: "triton_python_b"}, names as Linux cuts them
"""

from contextlib import suppress
from pathlib import Path


def dead_children(parent: int) -> dict[int, str]:
    """Return the zombies of a process: Triton doesn't collect a python-backend process that was killed."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, IndexError, ValueError):
            head, tail = (folder / "stat").read_text().rsplit(")", 1)
            state, parent_of = tail.split()[:2]
            if state == "Z" and int(parent_of) == parent:
                found[int(folder.name)] = head.split("(", 1)[1]
    return found
