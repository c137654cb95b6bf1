"""What decoding JPEGs no finer than they are seen is worth: two repositories in turns, and memory.

    python -m retinaserve.scripts.lab.decoding photos runs/photos --count 12
    python -m retinaserve.scripts.lab.decoding serve full/ scaled/ --images runs/photos

A repository holds the code of the install that built it, so `serve` also compares two installs.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from PIL import Image

from retinaserve.eval.bench.bench import Bench
from retinaserve.eval.bench.perf_analyzer import Demand
from retinaserve.eval.client.transport import Endpoint
from retinaserve.scripts.drills.drill import usage
from retinaserve.scripts.lab import run
from retinaserve.scripts.server.triton import Server
from retinaserve.training.errors import Exit, UserError
from retinaserve.training.images.sources import find_images
from retinaserve.training.spec import PREPROCESS

LOADS = (1, 4)  # requests in flight
QUALITY = 92


def photos(options: argparse.Namespace) -> None:
    """Draw JPEGs as phones make them, with a COCO file: structure of all sizes, noise, 4:2:0, EXIF turned."""
    width, height = options.sides
    options.folder.mkdir(parents=True, exist_ok=True)
    images, boxes = [], []
    for number in range(options.count):
        rng = np.random.default_rng(number)
        levels = np.full((height, width, 3), 120.0, np.float32)
        for step in (3, 8, 24, 90, 400):
            for channel in range(3):
                coarse = rng.normal(0, 3 * step**0.45, (height // step + 2, width // step + 2))
                smooth = Image.fromarray(coarse.astype(np.float32)).resize(
                    (width, height), Image.Resampling.BICUBIC
                )
                levels[..., channel] += np.asarray(smooth)
        levels += rng.normal(0, 4.0, (height, width, 1)).astype(np.float32)
        exif = Image.Exif()
        exif[0x0112] = (1, 6, 8)[number % 3]
        image = Image.fromarray(levels.clip(0, 255).astype(np.uint8))
        image.save(options.folder / f"{number:03}.jpg", quality=QUALITY, subsampling=2, exif=exif)
        images.append({"id": number, "file_name": f"{number:03}.jpg"})
        box = {"id": number, "image_id": number, "category_id": 1, "bbox": [900, 900, 700, 500], "iscrowd": 0}
        boxes.append({**box, "area": 350_000})
    truth = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "thing"}]}
    (options.folder / "annotations.json").write_text(json.dumps(truth))
    size = sum(path.stat().st_size for path in options.folder.glob("*.jpg")) / options.count
    print(f"{options.count} images of {width} x {height}, {size / 1e6:.2f} MB each on average: {options.folder}")


def serve(options: argparse.Namespace) -> None:
    """Load two repositories in turns; print images a second, their ratios, and what the images added to memory."""
    files = find_images([options.images])
    rates: dict[int, list[list[float]]] = {load: [[], []] for load in LOADS}
    with ExitStack() as stack:
        servers = [stack.enter_context(Server(repository)) for repository in (options.left, options.right)]
        before = [decoder_bytes(server) for server in servers]
        benches = [Bench.prepare([Endpoint.parse(server.grpc_url)], files) for server in servers]
        for _ in range(options.rounds):
            for side, bench in enumerate(benches):
                for level in bench.run([Demand(load) for load in LOADS], seconds=options.seconds):
                    if level.load is None:
                        raise UserError(f"the server did not bear it: {level.problem}", code=Exit.CHECK_FAILED)
                    rate = level.load.throughput_ips
                    rates[level.demand.concurrency or 0][side].append(rate)
                    name = ("left", "right")[side]
                    print(f"{name}, {level.demand.concurrency} in flight: {rate:.2f} images/s", file=sys.stderr)
        added = [decoder_bytes(server) - was for server, was in zip(servers, before, strict=True)]
    print("| requests in flight | left, images/s | right, images/s | right / left: median (lowest to highest) |")
    print("|---:|---:|---:|---:|")
    for load, (left, right) in rates.items():
        ratios = [b / a for a, b in zip(left, right, strict=True)]
        middle = [statistics.median(each) for each in (left, right, ratios)]
        span = f"({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"| {load} | {middle[0]:.2f} | {middle[1]:.2f} | {middle[2]:.2f} {span} |")
    megabytes = [each / 2**20 for each in added]
    print(f"added to the memory of preprocess: {megabytes[0]:.0f} MiB, {megabytes[1]:.0f} MiB", end=" ")
    print(f"({megabytes[1] / megabytes[0]:.2f})" if megabytes[0] > 0 else "")


def decoder_bytes(server: Server) -> int:
    """Return what the processes of `preprocess` took for themselves."""
    found = usage(server.process.pid, server.shared_memory).processes
    return sum(process.own_bytes for name, process in found.items() if name.startswith(PREPROCESS))


def main() -> None:
    """Measure one thing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(required=True)

    def verb(work: Callable[[argparse.Namespace], None]) -> argparse.ArgumentParser:
        added = verbs.add_parser(work.__name__, description=work.__doc__)
        added.set_defaults(work=work)
        return added

    drawing = verb(photos)
    drawing.add_argument("folder", type=Path)
    drawing.add_argument("--count", type=int, default=12)
    drawing.add_argument("--sides", type=int, nargs=2, default=(4032, 3024), metavar=("W", "H"))
    serving = verb(serve)
    serving.add_argument("left", type=Path, help="A repository, such as one of an earlier install.")
    serving.add_argument("right", type=Path)
    serving.add_argument("--images", type=Path, required=True)
    serving.add_argument("--rounds", type=int, default=3)
    serving.add_argument("--seconds", type=float, default=6.0)
    given = parser.parse_args()
    given.work(given)


if __name__ == "__main__":
    run(main)
