"""`python -m tests.training.trainer.group_member VERB ...`: a `retinaserve` that says which threads it leaves."""

import time
from pathlib import Path

from retinaserve.scripts.cli.main import main


def _threads() -> str:
    return " ".join(sorted(path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")))


try:
    main()
finally:
    deadline = time.monotonic() + 5  # the kernel lists a thread for a moment after it was joined
    while "gloo" in _threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    print(f"threads: {_threads()}\n", end="", flush=True)  # one write: the processes share the pipe
