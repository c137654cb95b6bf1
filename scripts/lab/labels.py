"""What `data check` costs on a large set, in seconds and memory.

    python -m retinaserve.scripts.lab.labels runs/labels --images 100000

Draws 200 images of 320 x 240 from a seed and writes each under many names, with a comment in the JPEG that makes
every file its own; seven boxes an image in 80 classes. A set that is there is taken as it is.
"""

import argparse
import io
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

WIDTH, HEIGHT, DRAWN, BOXES, CLASSES = 320, 240, 200, 7, 80


def draw_set(folder: Path, *, images: int, seed: int = 0) -> None:
    """Write images/ and labels.json."""
    rng = np.random.default_rng(seed)
    encoded = []
    for _ in range(DRAWN):
        noise = Image.fromarray(rng.integers(0, 256, (7, 9, 3)).astype(np.uint8))
        buffer = io.BytesIO()
        noise.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=85)
        encoded.append(buffer.getvalue())
    entries = []
    for number in range(images):
        name = f"{number // 1000:03}/{number:06}.jpg"
        path = folder / "images" / name
        if number % 1000 == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
        data = encoded[number % DRAWN]
        path.write_bytes(data[:2] + b"\xff\xfe\x00\x0a" + f"{number:08}".encode() + data[2:])
        entries.append({"id": number + 1, "file_name": name, "width": WIDTH, "height": HEIGHT})
    count = images * BOXES
    corner = rng.integers(0, (WIDTH - 60, HEIGHT - 60), (count, 2)) + np.array((0.25, 0.5))
    sides = rng.integers(8, 60, (count, 2)) - 0.5
    category = rng.integers(1, CLASSES + 1, count)
    annotations = [
        {
            "id": place + 1,
            "image_id": place // BOXES + 1,
            "category_id": int(category[place]),
            "bbox": [x, y, w, h],
            "area": round(0.7 * w * h, 2),
            "iscrowd": 0,
        }
        for place, (x, y, w, h) in enumerate(np.hstack((corner, sides)).tolist())
    ]
    categories = [{"id": number, "name": f"class {number}"} for number in range(1, CLASSES + 1)]
    content = {"images": entries, "annotations": annotations, "categories": categories}
    (folder / "labels.json").write_text(json.dumps(content))


def measure(folder: Path, python: str) -> tuple[float, float]:
    """Return the seconds and the largest resident GB of `data check` in a process of its own."""
    verb = "import sys, resource, atexit; from retinaserve.scripts.cli.main import main; "
    end = "atexit.register(lambda: print('peak', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)); "
    words = ["data", "check", "--images", str(folder / "images"), "--annotations", str(folder / "labels.json")]
    start = time.perf_counter()
    done = subprocess.run([python, "-c", f"{verb}{end}main({words!r})"], capture_output=True, text=True)
    seconds = time.perf_counter() - start
    lines = done.stdout.splitlines()
    if not lines or not lines[-1].startswith("peak"):
        raise SystemExit(done.stderr)
    return seconds, int(lines[-1].split()[1]) / 2**20


def main() -> None:
    """Draw the set where there is none, and print what its check costs."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--python", default=sys.executable, help="of the build to measure")
    options = parser.parse_args()
    if not (options.folder / "labels.json").is_file():
        draw_set(options.folder, images=options.images)
    seconds, memory = measure(options.folder, options.python)
    print(f"data check, {options.images} images, {options.images * BOXES} boxes: {seconds:.0f} s, {memory:.2f} GB")


if __name__ == "__main__":
    main()
