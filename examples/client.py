"""One picture, asked of a running server: what is in it, and where.

    python examples/client.py PICTURE.jpg [localhost:8001 [0.3]]

`http://localhost:8000` as the server speaks HTTP instead of gRPC; the last is the lowest score that is shown.
"""

import sys
from pathlib import Path

from retinaserve.eval.client.client import Client
from retinaserve.training.errors import UserError


def main(picture: Path, server: str = "localhost:8001", score: str = "0.3") -> None:
    """Print a line a box: class, score, and x1 y1 x2 y2 in the picture's own pixels."""
    with Client(server) as client:
        (found,) = client.predict([picture.read_bytes()])
        strong = found.above(float(score))
        for box, sure, index in zip(strong.boxes, strong.scores, strong.classes, strict=True):
            print(f"{client.class_names[index]:<12}{sure:6.2f}  " + " ".join(f"{side:7.1f}" for side in box))


if __name__ == "__main__":
    if not 2 <= len(sys.argv) <= 4:
        sys.exit(f"usage: {sys.argv[0]} PICTURE [SERVER [SCORE]]")
    try:
        main(Path(sys.argv[1]), *sys.argv[2:])
    except (UserError, OSError) as error:  # no server, no such file, or a picture that the server refused
        sys.exit(f"error: {error}")
