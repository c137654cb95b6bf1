"""`python -m tests.training.team_member VERB ...` is `retinaserve VERB ...`, and says which threads it leaves."""

import time
from pathlib import Path

from scripts.cli import main


def _threads() -> str:
    return " ".join(sorted(path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")))


try:
    main()
finally:
    deadline = time.monotonic() + 5  # the kernel lists a thread for a moment after it was joined
    while "gloo" in _threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    print(f"threads: {_threads()}\n", end="", flush=True)  # one write: the processes share the pipe
