"""One picture, asked of a running server: what is in it, and where.

    python examples/client.py PICTURE.jpg [localhost:8001]

`http://localhost:8000` as the server speaks HTTP instead of gRPC.
"""

import sys
from pathlib import Path

from eval.client import Client


def main(picture: Path, server: str = "localhost:8001") -> None:
    """Print a line a box: class, score, and x1 y1 x2 y2 in the picture's own pixels."""
    with Client(server) as client:
        (found,) = client.predict([picture.read_bytes()])
        for box, score, index in zip(found.boxes, found.scores, found.classes, strict=True):
            print(f"{client.class_names[index]:<12}{score:6.2f}  " + " ".join(f"{side:7.1f}" for side in box))


if __name__ == "__main__":
    if not 2 <= len(sys.argv) <= 3:
        sys.exit(f"usage: {sys.argv[0]} PICTURE [SERVER]")
    main(Path(sys.argv[1]), *sys.argv[2:])
