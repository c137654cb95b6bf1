"""The checkpoint that comes along, from what the demo trained: its weights, without the optimizer's state.

python -m retinaserve.scripts.lab.example_checkpoint runs/demo/checkpoint.pth examples/shapes.pth
"""

import sys
from pathlib import Path

from retinaserve.training.checkpoint import Checkpoint, load, save


def example_checkpoint(trained: Path, output: Path) -> None:
    """Write what a detector needs, and no more: a third of the file. Raises UserError."""
    found = load(trained)
    save(output, Checkpoint(found.spec, found.weights, found.iteration))


if __name__ == "__main__":
    example_checkpoint(Path(sys.argv[1]), Path(sys.argv[2]))
