"""Send one image to a running server and print its detections.

    python examples/client.py IMAGE.jpg [localhost:8001 [0.3]]

`http://localhost:8000` uses HTTP instead of gRPC; the last argument is the lowest score to print.
"""

import sys
from pathlib import Path

from retinaserve import Client, UserError


def main(image: Path, server: str = "localhost:8001", score: str = "0.3") -> None:
    """Print one line per box: class, score, and x1 y1 x2 y2 in pixels of the original image."""
    with Client(server) as client:
        (found,) = client.predict([image.read_bytes()])
        strong = found.above(float(score))
        for box, confidence, index in zip(strong.boxes, strong.scores, strong.classes, strict=True):
            print(f"{client.class_names[index]:<12}{confidence:6.2f}  " + " ".join(f"{side:7.1f}" for side in box))


if __name__ == "__main__":
    if not 2 <= len(sys.argv) <= 4:
        sys.exit(f"usage: {sys.argv[0]} IMAGE [SERVER [SCORE]]")
    try:
        main(Path(sys.argv[1]), *sys.argv[2:])
    except (UserError, OSError) as error:  # no server, no such file, or an image that the server refused
        sys.exit(f"error: {error}")
