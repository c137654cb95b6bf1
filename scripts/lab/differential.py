"""The same thing computed several ways, on random cases: every difference is counted, and its smallest case kept.

    python -m retinaserve.scripts.lab.differential networks --cases 200 --seed 7 --output runs/differential
    python -m retinaserve.scripts.lab.differential images scores requests --cases 1000

networks, suppression, builder: random small detectors and candidates: see differential_networks.py.
images: random encoded images through the served preprocessing and the training loader's reading; the pixels of the
    files, at each scale of a JPEG too, against OpenCV's where that is installed.
scores: random detections and labels, full of ties, crowds and sizes at the borders, by both judges.
requests: random mixes of requests through a running Triton, each answer against the offline detector's.
"""

import argparse
import io
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from retinaserve.scripts.lab import run
from retinaserve.scripts.lab.differential_networks import (
    SAME_BOX,
    SAME_SCORE,
    Difference,
    Random,
    builder,
    networks,
    suppression,
)
from retinaserve.training.detections import Detections, ImageError
from retinaserve.training.files import write_json

GREY_LEVELS = 2  # between two resizers of 8-bit images
REPOSITORY_THREADS = 2


@dataclass
class Outcome:
    """What came of one part."""

    cases: int = 0
    compared: Counter[str] = field(default_factory=Counter)
    differences: Counter[str] = field(default_factory=Counter)
    examples: dict[str, dict[str, Any]] = field(default_factory=dict)  # the smallest case of each kind

    def add(self, seed: int, size: float, compared: Sequence[str], found: Sequence[Difference]) -> None:
        """Count a case; of each kind of difference the smallest case is kept."""
        self.cases += 1
        self.compared.update(compared)
        for kind, text in found:
            self.differences[kind] += 1
            if kind not in self.examples or size < self.examples[kind]["size"]:
                self.examples[kind] = {"case": seed, "size": size, "seen": text}


def random_image(rng: Random) -> tuple[str, bytes]:
    """Return a format's name and an encoded image: smooth colours with some edges, as photos have."""
    height, width = (int(side) for side in rng.integers(1, 400, 2))
    coarse = rng.integers(0, 256, (max(1, height // 40 + 1), max(1, width // 40 + 1), 3), np.uint8)
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    if rng.random() < 0.5:
        image.paste(tuple(map(int, rng.integers(0, 256, 3))), (width // 3, height // 3, width, height))
    mode = str(rng.choice(["RGB", "RGB", "L"]))
    buffer = io.BytesIO()
    kind = str(rng.choice(["JPEG", "JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "AVIF"]))
    words: dict[str, Any] = {}
    if kind == "JPEG":
        words = {"quality": int(rng.integers(30, 100)), "progressive": bool(rng.integers(2))}
        words |= {"subsampling": int(rng.integers(3))} if mode == "RGB" else {}
    elif kind == "WEBP":
        words = {"lossless": bool(rng.integers(2)), "quality": int(rng.integers(30, 100))}
    elif kind == "TIFF":
        words = {"compression": str(rng.choice(["raw", "tiff_lzw", "tiff_adobe_deflate"]))}
    if kind in ("JPEG", "WEBP", "PNG", "AVIF") and rng.random() < 0.3:
        words["exif"] = Image.Exif()
        words["exif"][0x0112] = int(rng.integers(1, 9))
    image.convert(mode).save(buffer, kind, **words)
    return f"{kind} {mode}", buffer.getvalue()


def images(rng: Random, _: int) -> tuple[float, list[str], list[Difference]]:
    """One random image, as it is served and as training reads it."""
    from retinaserve.build_tools.preprocess import Prepared
    from retinaserve.training.images.letterbox import Source, letterbox

    name, data = random_image(rng)
    size = (160, 224)
    (served,) = _preprocessor(size).run([data])
    if not isinstance(served, Prepared):
        return len(data), [name], [(f"{name}: refused", served.message)]
    found = list(_as_opencv(name, data))
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "image"
        path.write_bytes(data)
        pixels, sizes = letterbox(Source.open(path), size, (124, 116, 104))
    if served.letterbox.tolist() != sizes.tolist():
        found.append((f"{name}: letterbox", f"{served.letterbox.tolist()}, training {sizes.tolist()}"))
    else:
        apart = np.abs(served.image.transpose(1, 2, 0).astype(int) - pixels)
        if int(apart.max()) > GREY_LEVELS:
            text = f"{apart.max()} grey levels at most, {apart.mean():.2f} on average, of {sizes.tolist()}"
            found.append((f"{name}: pixels", text))
    return len(data), [name], found


def _as_opencv(name: str, data: bytes) -> Iterator[Difference]:
    """The pixels of a file, and those of a JPEG at each scale, against OpenCV's decoders."""
    from retinaserve.training.pixels import FULL, SCALES, SMALL, Jpeg, decode

    try:
        import cv2
    except ImportError:
        return
    ours = {1: decode(data)}
    if name.startswith("AVIF"):  # OpenCV leaves them as they are stored
        ours = {1: np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))}
    if jpeg := Jpeg.read(data):
        ours |= {FULL // scale: jpeg.decode(scale).pixels for scale in SCALES if max(jpeg.size) > SMALL}
    for step, pixels in ours.items():
        flag = cv2.IMREAD_COLOR if step == 1 else getattr(cv2, f"IMREAD_REDUCED_COLOR_{step}")
        theirs = cv2.imdecode(np.frombuffer(data, np.uint8), flag)
        if theirs is None or theirs.shape != pixels.shape:
            seen = "nothing" if theirs is None else theirs.shape
            yield f"{name} 1/{step}: OpenCV's size", f"{seen}, ours {pixels.shape}"
        elif (apart := int(np.abs(theirs[..., ::-1].astype(int) - pixels).max())) > 0:
            yield f"{name} 1/{step}: OpenCV's pixels", f"{apart} grey levels at most"


@cache
def _preprocessor(size: tuple[int, int]) -> Any:
    from retinaserve.build_tools.preprocess import Preprocessor

    return Preprocessor(size, (124, 116, 104), threads=1, max_batch=1)


def scores(rng: Random, _: int) -> tuple[float, list[str], list[Difference]]:
    """One random set of labels and detections by both judges."""
    from retinaserve.training.coco import Annotations
    from retinaserve.training.scoring.scores import NUMBERS, evaluate

    count, classes = int(rng.integers(1, 12)), int(rng.integers(1, 5))
    sides = np.array([1, 8, 31.9, 32, 32.1, 95.9, 96, 96.1, 200])  # around the borders of COCO's areas
    annotations: list[dict[str, Any]] = []
    results: dict[int, Detections] = {}
    for image in range(1, count + 1):
        rows = []
        for _ in range(int(rng.integers(0, 12))):
            x, y = rng.integers(0, 300, 2).astype(float)
            width, height = (float(side) for side in rng.choice(sides, 2))
            label = int(rng.integers(classes))
            box = {"bbox": [x, y, width, height], "area": width * height, "iscrowd": int(rng.random() < 0.15)}
            box |= {"id": len(annotations) + 1, "image_id": image, "category_id": 3 * label + 1}
            annotations.append(box)
            for _ in range(int(rng.integers(0, 3))):
                moved = np.array([x, y, x + width, y + height]) + rng.choice([0, 0, 1, 5], 4)
                score = float(rng.choice([0.1, 0.5, 0.5, 0.9]))  # full of ties
                rows.append((moved, score, label if rng.random() < 0.9 else int(rng.integers(classes))))
        boxes = np.array([row[0] for row in rows], np.float32).reshape(-1, 4)
        values = np.array([row[1] for row in rows], np.float32)
        results[image] = Detections(boxes, values, np.array([row[2] for row in rows], np.int32), (600, 600))
    document = {
        "images": [{"id": n, "file_name": f"{n}.jpg", "width": 600, "height": 600} for n in range(1, count + 1)],
        "categories": [{"id": 3 * number + 1, "name": f"class {number}"} for number in range(classes)],
        "annotations": annotations,
    }
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "truth.json"
        path.write_text(json.dumps(document))
        truth = Annotations.load(path)
    ids = tuple(3 * number + 1 for number in range(classes))
    one, other = (evaluate(truth, results, ids, judge=judge) for judge in ("hotcoco", "pycocotools"))
    found = [
        (f"scores: {name}", f"{getattr(one, name)} and {getattr(other, name)}")
        for name in NUMBERS
        if getattr(one, name) != getattr(other, name)
    ]
    return len(annotations), ["hotcoco and pycocotools"], found


class Requests:
    """A running server, and the offline detector of the same graph."""

    def __init__(self, stack: Any, folder: Path) -> None:
        """Export, build and serve the example checkpoint."""
        from retinaserve.build_tools.export import export
        from retinaserve.build_tools.repository.builder import build_repository
        from retinaserve.eval.runtimes.detector import open_detector
        from retinaserve.scripts.server.triton import Server, ServerOptions

        graph = folder / "model.onnx"
        export(Path(__file__).parents[2] / "examples" / "shapes.pth", graph)
        repository = build_repository(graph, folder / "repository").repository
        options = ServerOptions.free_ports(threads=REPOSITORY_THREADS)
        self.server = stack.enter_context(Server(repository, options))
        self.offline = open_detector(graph, threads=1, batch=1)

    def __call__(self, rng: Random, _: int) -> tuple[float, list[str], list[Difference]]:
        """One mix: some images, good and bad, from several clients of both protocols at once."""
        from retinaserve.eval.client.client import Client

        data = [
            random_image(rng)[1] if rng.random() < 0.9 else rng.bytes(int(rng.integers(0, 200))) for _ in range(8)
        ]
        expected = list(self.offline.predict_many(data))
        urls = [self.server.grpc_url, f"http://{self.server.http_url}"]

        def ask(number: int) -> list[Detections | ImageError]:
            with Client(urls[number % 2]) as client:
                return list(client.predict_many(data))

        found: list[Difference] = []
        with ThreadPoolExecutor(4) as pool:
            for number, answers in enumerate(pool.map(ask, range(4))):
                for answer, wanted in zip(answers, expected, strict=True):
                    found += _answer(("gRPC", "HTTP")[number % 2], answer, wanted)
        return sum(map(len, data)), ["gRPC", "HTTP"], found


def _answer(name: str, answer: Detections | ImageError, wanted: Detections | ImageError) -> Iterator[Difference]:
    if isinstance(answer, ImageError) or isinstance(wanted, ImageError):
        if type(answer) is not type(wanted):
            yield f"{name}: refusal", f"{answer!r} and offline {wanted!r}"[:300]
    elif len(answer) != len(wanted):
        yield f"{name}: count", f"{len(answer)} and offline {len(wanted)}"
    elif len(answer) and (
        float(np.abs(answer.boxes - wanted.boxes).max()) > SAME_BOX
        or float(np.abs(answer.scores - wanted.scores).max()) > SAME_SCORE
    ):
        yield f"{name}: boxes", f"{np.abs(answer.boxes - wanted.boxes).max():.3g} px apart"


Part = Callable[[Random, int], tuple[float, list[str], list[Difference]]]
PARTS: dict[str, Part] = {
    "networks": networks,
    "suppression": suppression,
    "builder": builder,
    "images": images,
    "scores": scores,
}


def main() -> None:
    """Run the parts that are named and write a report."""
    from contextlib import ExitStack

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, "requests", []], help="all of them if none is named")
    parser.add_argument("--cases", type=int, default=100, help="of each part (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="the first case's; each has its own (default: 0)")
    parser.add_argument("--output", type=Path, default=Path("runs/differential"))
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        for name in arguments.parts or [*PARTS, "requests"]:
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            part = PARTS[name] if name in PARTS else Requests(stack, scratch)
            outcome = Outcome()
            try:
                for seed in tqdm(range(arguments.seed, arguments.seed + arguments.cases), name):
                    outcome.add(seed, *part(np.random.default_rng(seed), seed))
            finally:  # a run of hours that is stopped still tells what it saw
                _report(name, arguments.output, outcome, arguments.seed)


def _report(name: str, folder: Path, outcome: Outcome, seed: int) -> None:
    document = {"part": name, "seed": seed, **vars(outcome)}
    write_json(folder / f"{name}-{seed}.json", document)
    print(f"{name}: {outcome.cases} cases, {sum(outcome.differences.values())} differences")
    for kind, count in outcome.differences.most_common():
        example = outcome.examples[kind]
        print(f"  {kind}: {count}; the smallest is case {example['case']}: {example['seen']}")


if __name__ == "__main__":
    run(main)
