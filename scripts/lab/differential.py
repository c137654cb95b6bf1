"""The same thing computed several ways, on random cases: every difference is counted, and its smallest case kept.

    python -m retinaserve.scripts.lab.differential networks --cases 200 --seed 7 --output runs/differential
    python -m retinaserve.scripts.lab.differential images scores requests --cases 1000

networks: random small detectors in torch, ONNX Runtime and OpenVINO (fp32, bf16, INT8); the decode and NMS of each
graph against the NumPy reference on that runtime's own heads, and the fp32 heads against torch's.
builder: random small detectors by NVIDIA's builder, which needs no GPU: what is refused, what runs in a wider type
than the graph states, shapes against ONNX Runtime's, heads that are copied in front of the plugin.
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from tqdm import tqdm

from retinaserve.eval.runtimes.detector import Arrays, decode_heads
from retinaserve.scripts.lab import run
from retinaserve.training.detections import Detections, ImageError
from retinaserve.training.files import write_json
from retinaserve.training.spec import (
    BOXES,
    CLASSES,
    IMAGE,
    LETTERBOX,
    NUM_DETECTIONS,
    OUTPUTS,
    SCORES,
    DetectorSpec,
)

SAME_BOX = 0.01  # px: float32 arithmetic of another order moves an edge of a 400 px image by less
SAME_SCORE = 1e-5
SAME_HEADS = 1e-3  # of logits that spread over ten
GREY_LEVELS = 2  # between two resizers of 8-bit images
REPOSITORY_THREADS = 2

Random = np.random.Generator
Difference = tuple[str, str]  # its kind, and what was seen


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


def random_detector(rng: Random) -> DetectorSpec:
    """Return a detector of up to a few thousand weights with any limits."""
    return DetectorSpec.create(
        [f"class {number}" for number in range(int(rng.integers(1, 13)))],
        size=(int(rng.choice([128, 256])), int(rng.choice([128, 256, 384]))),
        backbone=str(rng.choice(["resnet18", "resnet50", "mobilenet_v2"])),
        width=8,
        fpn_channels=int(rng.choice([8, 16])),
        head_depth=int(rng.integers(0, 3)),
        norm=str(rng.choice(["none", "batch", "group"])),
        score_threshold=float(rng.choice([0.01, 0.05, 0.3])),
        topk_candidates=int(rng.choice([1, 50, 400, 1000])),
        max_detections=int(rng.choice([1, 20, 100, 300])),
        nms_iou=float(rng.choice([0.3, 0.5, 0.7])),
    )


def _export(
    folder: Path, spec: DetectorSpec, seed: int, images: npt.NDArray[np.uint8], graphs: Mapping[str, Any]
) -> list[Path]:
    """Write a detector of random weights and graphs of it, by name and options of the export; return these."""
    import torch

    from retinaserve.build_tools.export import ExportOptions, export_detector
    from retinaserve.build_tools.quantize.calibrate import Int8Options
    from retinaserve.training.checkpoint import Checkpoint, save
    from retinaserve.training.model import build_model

    torch.manual_seed(seed)
    model = build_model(spec)
    with torch.no_grad():  # untrained, all logits lie together and nothing is found
        model.cls_head.output.weight.mul_(30)
        assert model.cls_head.output.bias is not None
        model.cls_head.output.bias.uniform_(-6, 0)
    save(folder / "model.pth", Checkpoint(spec, model.state_dict()))
    for number, image in enumerate(images):
        Image.fromarray(image.transpose(1, 2, 0)).save(folder / f"{number}.png")
    for name, words in graphs.items():
        int8 = Int8Options(folder, count=len(images)) if "int8" in words else None
        options = ExportOptions(**{**words, "int8": int8})
        export_detector(folder / "model.pth", folder / f"{name}.onnx", options)
    return [folder / f"{name}.onnx" for name in graphs]


def networks(rng: Random, seed: int) -> tuple[float, list[str], list[Difference]]:
    """One random detector in every runtime."""
    from retinaserve.build_tools.graph.onnx_io import OnnxGraph
    from retinaserve.build_tools.openvino_cpu import compile_for_cpu
    from retinaserve.eval.runtimes.onnx import OnnxRuntime
    from retinaserve.eval.runtimes.torch import TorchRuntime

    spec = random_detector(rng)
    height, width = spec.size
    images = rng.integers(0, 256, (3, 3, height, width), np.uint8)
    letterbox = np.array([[2 * height, 2 * width, height, width]] * 3, np.float32)
    batch: Arrays = {IMAGE: images, LETTERBOX: letterbox}
    compared: list[str] = []
    found: list[Difference] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        _export(folder, spec, seed, images, {"fp32": {}, "int8": {"int8": True}})
        torch_heads = TorchRuntime(folder / "model.pth", threads=1).run(batch)
        for graph in ("fp32", "int8"):
            for backend in ("openvino", "onnxruntime"):
                runtime = OnnxRuntime(folder / f"{graph}.onnx", threads=1, heads=True, backend=backend)
                name = f"{graph} {runtime.name}"
                outputs = runtime.run(batch)
                compared.append(name)
                found += _decoding(name, spec, outputs, letterbox)
                if graph == "fp32":
                    found += _heads(name, torch_heads, outputs)
        source = OnnxGraph.read(folder / "fp32.onnx").with_heads().SerializeToString()
        compiled = compile_for_cpu(source, precision="bf16", threads=1)
        results = compiled.create_infer_request().infer(batch)
        outputs = {name: np.array(results[name]) for name in (*OUTPUTS, *torch_heads)}
        compared.append("bf16 OpenVINO")
        found += _decoding("bf16 OpenVINO", spec, outputs, letterbox)
    return height * width * len(spec.classes), compared, found


GRAPHS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "fp16": {"half": True},
    "int8": {"half": True, "int8": True},
    "fp16 with plugins": {"half": True, "flavour": "tensorrt"},
    "int8 with plugins": {"half": True, "int8": True, "flavour": "tensorrt"},
}


def builder(rng: Random, seed: int) -> tuple[float, list[str], list[Difference]]:
    """One random detector in one precision by TensorRT for RTX, for GPUs that it is told of."""
    from retinaserve.scripts.lab.compile_check import TARGETS, compilable, compile_check, copied_heads

    spec = random_detector(rng)
    height, width = spec.size
    images = rng.integers(0, 256, (3, 3, height, width), np.uint8)
    name, batch = str(rng.choice([*GRAPHS])), (1, 2, 3)
    with tempfile.TemporaryDirectory() as scratch:
        (path,) = _export(Path(scratch), spec, seed, images, {name: GRAPHS[name]})
        found = [*_shapes(name, compilable(path)[0].SerializeToString(), images)]
        for compiled in compile_check([path], TARGETS, batch=batch):
            target, problem = compiled.compute_capability, compiled.problem
            if not problem and "plugins" in name and (copied := copied_heads(path, target, batch)):
                problem = f"{', '.join(copied)} copied in front of the plugin"
            found += [(name, f"on {target}: {problem}")] if problem else []
    return height * width * len(spec.classes), [f"{name} on {each}" for each in TARGETS], found


def _shapes(name: str, graph: bytes, images: npt.NDArray[np.uint8]) -> Iterator[Difference]:
    """The shapes that TensorRT's parser sees, against those of what ONNX Runtime computes."""
    import onnxruntime

    from retinaserve.build_tools.engine.builder import RTX, load_tensorrt

    trt = load_tensorrt(RTX)
    log = trt.Logger(trt.Logger.ERROR)
    network = trt.Builder(log).create_network(0)
    if not trt.OnnxParser(network, log).parse(graph):
        return  # told already
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    sizes = np.array([[*images.shape[2:]] * 2] * len(images), np.float32)
    given = {each.name: {IMAGE: images, LETTERBOX: sizes}[each.name] for each in session.get_inputs()}
    names = [each.name for each in session.get_outputs()]
    computed = {key: value.shape for key, value in zip(names, session.run(names, given), strict=True)}
    for number in range(network.num_outputs):
        tensor = network.get_output(number)
        seen, shape = tuple(tensor.shape), computed[tensor.name]
        if len(seen) != len(shape) or any(one not in (-1, other) for one, other in zip(seen, shape, strict=True)):
            yield f"{name}: shapes", f"{tensor.name} is {seen}, computed {shape}"


def _heads(name: str, expected: Arrays, found: Arrays) -> Iterator[Difference]:
    worst = max(float(np.abs(found[key] - value).max()) for key, value in expected.items())
    scale = max(1.0, *(float(np.abs(value).max()) for value in expected.values()))
    if not worst <= SAME_HEADS * scale:
        yield f"{name}: heads", f"{worst:.2g} from torch's of up to {scale:.2g}"


def _decoding(
    name: str, spec: DetectorSpec, outputs: Arrays, letterbox: npt.NDArray[np.float32]
) -> Iterator[Difference]:
    """Decode and NMS of a graph against the reference on the same heads."""
    expected = decode_heads(spec, outputs, letterbox)
    for row in range(len(letterbox)):
        one, other = _rows(outputs, row, spec), _rows(expected, row, spec)
        apart = np.abs(one[:, None] - other[None])  # of score, class and four edges, each with each
        same = (apart[..., 0] <= SAME_SCORE) & (apart[..., 1] == 0) & (apart[..., 2:] <= SAME_BOX).all(axis=-1)
        alone = int((~same.any(axis=1)).sum()), int((~same.any(axis=0)).sum())
        if len(one) != len(other) or any(alone):
            kind = "tied candidates" if _tied(spec, outputs, row) else "boxes"
            yield f"{name}: {kind}", f"{alone[0]} of {len(one)} alone, {alone[1]} of {len(other)} in the reference"


def _rows(outputs: Arrays, row: int, spec: DetectorSpec) -> npt.NDArray[np.float64]:
    """Return (n, 6) of score, class and box; of a full list without those that share the last score.

    Which of them are there is anybody's choice.
    """
    count = int(outputs[NUM_DETECTIONS][row, 0])
    values = [outputs[name][row, :count].reshape(count, -1) for name in (SCORES, CLASSES, BOXES)]
    rows = np.concatenate([np.asarray(value, np.float64) for value in values], axis=1)
    if count == spec.max_detections:
        rows = rows[rows[:, 0] > rows[:, 0].min() + SAME_SCORE]
    return rows


def _tied(spec: DetectorSpec, outputs: Arrays, row: int) -> bool:
    """Whether equal logits lie on both sides of a level's cut, of which a runtime may take any."""
    for name, _ in spec.head_names:
        logits = np.sort(outputs[name][row].ravel())[::-1]
        most = spec.topk_candidates
        if len(logits) > most and logits[most - 1] == logits[most] > spec.score_threshold_logit:
            return True
    return False


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
    from retinaserve.training.letterbox import Source, letterbox

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
    from retinaserve.training.scores import NUMBERS, evaluate

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
        from retinaserve.scripts.server.triton import ServerOptions, TritonServer

        graph = folder / "model.onnx"
        export(Path(__file__).parents[2] / "examples" / "shapes.pth", graph)
        repository = build_repository(graph, folder / "repository").repository
        options = ServerOptions.free_ports(threads=REPOSITORY_THREADS)
        self.server = stack.enter_context(TritonServer(repository, options))
        self.server.wait_until_ready()
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
PARTS: dict[str, Part] = {"networks": networks, "builder": builder, "images": images, "scores": scores}


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
