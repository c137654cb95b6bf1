"""The README's picture, from what the demo's server answered.

python -m retinaserve.scripts.lab.readme_picture runs/demo docs/detections.jpg
"""

import sys
from pathlib import Path

from retinaserve.eval.image_files import read_files
from retinaserve.scripts.server.triton import ServerOptions, TritonServer
from retinaserve.training.draw import contact_sheet, draw, open_picture

COLUMNS, TILE, SCORE = 4, (400, 300), 0.5


def readme_picture(demo: Path, output: Path, count: int = 8) -> None:
    """Ask the demo's repository for the first held-out pictures that are wider than high, and draw the answers."""
    from retinaserve.eval.client.client import Client

    files = sorted((demo / "data" / "val" / "images").iterdir())
    wide = [path for path in files if open_picture(path).width > open_picture(path).height]
    free = ServerOptions.free_ports()
    with TritonServer(demo / "repository", free) as server:
        server.wait_until_ready()
        with Client(server.grpc_url) as client:
            answers = client.predict([data for data in read_files(wide) if isinstance(data, bytes)])
            found = [(path, answer.above(SCORE)) for path, answer in zip(wide, answers, strict=True)]
            names = client.class_names
    chosen = [(path, answer) for path, answer in found if len(answer) > 2][:count]
    drawn = [(draw(open_picture(path), answer, names, within=TILE), path.name) for path, answer in chosen]
    contact_sheet(drawn, columns=COLUMNS, tile=TILE).save(output, quality=88)


if __name__ == "__main__":
    readme_picture(Path(sys.argv[1]), Path(sys.argv[2]))
