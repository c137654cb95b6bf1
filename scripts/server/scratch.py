"""A server's temporary folder, and the removal of those whose owners were killed.

    scratch = Scratch()
    scratch.path / "tritonserver.log"
    scratch.remove()

The owner holds a lock on a file inside, which the system gives back however the owner ends; the next server
removes what it finds unlocked. Folders of other programs, and of this one without such a file, are not touched.
"""

import fcntl
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

__all__ = ["PREFIX", "SHARED_MEMORY", "Scratch"]

PREFIX = "retinaserve-"
LOCK = "owner.lock"
SHARED_MEMORY = Path("/dev/shm")


class Scratch:
    """A folder that is this process's alone, and a name for what belongs to it in shared memory."""

    def __init__(self) -> None:
        """Make the folder; remove what dead owners left."""
        sweep()
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX))
        self.shared_memory = _shared_memory(self.path)
        # Locked before it has its name: under that, nobody may find it unlocked.
        unnamed = self.path / "lock"
        self._lock = unnamed.open("wb")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        unnamed.rename(self.path / LOCK)

    def remove(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.close()


def sweep() -> None:
    """Remove the folders and the shared memory of owners that are no more."""
    for file in Path(tempfile.gettempdir()).glob(f"{PREFIX}*/{LOCK}"):
        with suppress(OSError), file.open("wb") as lock:  # another user's, or still locked
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for left in SHARED_MEMORY.glob(f"{_shared_memory(file.parent)}*"):
                left.unlink(missing_ok=True)
            shutil.rmtree(file.parent, ignore_errors=True)


def _shared_memory(folder: Path) -> str:
    """Return what names in shared memory begin with: two servers', and a crashed one's leftovers, never meet."""
    return f"retinaserve_{folder.name.removeprefix(PREFIX)}_"
