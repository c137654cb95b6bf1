"""What `train --fine-tune fast-n` starts from: a network that has learnt drawn shapes, and nothing of anybody's.

    python -m retinaserve.scripts.lab.start runs/start    # writes training/recipes/fast-n.pth in 5 CPU minutes

Weights are stored in half precision: what goes on learning does not miss the rest.
"""

import argparse
from pathlib import Path

from retinaserve.scripts.lab import run
from retinaserve.scripts.shapes.draw import draw_dataset
from retinaserve.training.checkpoint import Checkpoint, load, save
from retinaserve.training.trainer.record import find_settings, read_settings
from retinaserve.training.trainer.start import STARTS
from retinaserve.training.trainer.trainer import train

NAME = "fast-n"
IMAGES, SEED = 4000, 7777  # a seed that no other set of the project is drawn with
ITERATIONS, SIZE = 1500, (320, 320)


def make(folder: Path, output: Path, *, images: int = IMAGES, iterations: int = ITERATIONS) -> None:
    """Draw, train and write the checkpoint; what is there of an interrupted run is gone on with."""
    drawn = folder / "drawn"
    if not (drawn / "annotations.json").is_file():
        draw_dataset(drawn, images=images, seed=SEED)
    recipe = {
        str(name).replace("-", "_"): value for name, value in read_settings(find_settings(Path(NAME))).items()
    }
    schedule = {"size": SIZE, "iters": iterations, "warmup": iterations // 20, "ema": 0.998, "precision": "bf16"}
    trained = folder / f"{NAME}.pth"
    train(trained, images=drawn / "images", annotations=drawn / "annotations.json", **recipe | schedule)
    found = load(trained)
    weights = {name: value.half() if value.is_floating_point() else value for name, value in found.weights.items()}
    save(output, Checkpoint(found.spec, weights, found.iteration))


def main() -> None:
    """Make the checkpoint that fine-tuning by the name of a preset starts from."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("folder", type=Path, help="Where the drawings and the training are kept.")
    parser.add_argument("--output", type=Path, default=STARTS / f"{NAME}.pth")
    given = parser.parse_args()
    make(given.folder, given.output)


if __name__ == "__main__":
    run(main)
