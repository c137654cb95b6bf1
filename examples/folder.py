"""Write the detections of a folder of images to a CSV table; a bad image is reported and skipped.

    python examples/folder.py FOLDER boxes.csv [localhost:8001]

Eight requests are in flight at a time, so that the server can form batches. Images are read as they are sent, so
memory does not grow with the folder.
"""

import csv
import sys
from pathlib import Path

from retinaserve import Client, ImageError, UserError
from retinaserve.training.images.sources import find_images


def main(folder: Path, table: Path, server: str = "localhost:8001") -> int:
    """Write one row per box, whatever its score. Return how many images had no answer."""
    files, failed = find_images([folder]), 0
    with Client(server, wait=30) as client, table.open("w", newline="") as target:
        rows = csv.writer(target)
        rows.writerow(["file", "class", "score", "x1", "y1", "x2", "y2"])
        answers = client.predict_many((file.read_bytes() for file in files), concurrency=8)
        for file, answer in zip(files, answers, strict=True):
            if isinstance(answer, ImageError):
                failed += 1
                print(f"{file}: {answer.message}", file=sys.stderr)
                continue
            for box, score, index in zip(answer.boxes, answer.scores, answer.classes, strict=True):
                sides = [f"{side:.1f}" for side in box]
                rows.writerow([file.relative_to(folder), client.class_names[index], f"{score:.3f}", *sides])
    return failed


if __name__ == "__main__":
    if not 3 <= len(sys.argv) <= 4:
        sys.exit(f"usage: {sys.argv[0]} FOLDER TABLE.csv [SERVER]")
    try:
        sys.exit(3 if main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:]) else 0)
    except (UserError, OSError) as error:  # no server, no such folder, or a table that cannot be written
        sys.exit(f"error: {error}")
