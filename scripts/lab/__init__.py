"""What makes this project's own tables and images. It is not installed; make runs it.

python -m retinaserve.scripts.lab.NAME --help
"""

import sys
from collections.abc import Callable

from retinaserve.training.errors import UserError


def run(main: Callable[[], None]) -> None:
    """Run a module's `main`; a UserError is one or two lines on stderr and its exit code."""
    try:
        main()
    except UserError as error:
        print(f"error: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"       {error.hint}", file=sys.stderr)
        sys.exit(error.code)
