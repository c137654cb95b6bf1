"""Random small detectors for scripts/lab/differential.py: its parts `networks`, `suppression` and `builder`.

    size, compared, found = networks(np.random.default_rng(7), 7)    # one case; found: (kind, what was seen)

networks: torch, ONNX Runtime and OpenVINO (fp32, bf16, INT8); the decode and NMS of each graph against the NumPy
reference on that runtime's own heads, and the fp32 heads against torch's.
suppression: the graph's NMS on random candidates, full of ties, boxes without an area and IoUs at the threshold.
builder: NVIDIA's builder, which needs no GPU: what is refused, what runs in a wider type than the graph states,
shapes against ONNX Runtime's, heads that are copied in front of the plugin.
"""

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from retinaserve.eval.runtimes.detector import Arrays, decode_heads
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
MORE_LOSS = 2  # between two runtimes' INT8

Random = np.random.Generator
Difference = tuple[str, str]  # its kind, and what was seen


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
    from retinaserve.eval.runtimes.detector import TorchRuntime
    from retinaserve.eval.runtimes.onnx import OnnxRuntime

    spec = random_detector(rng)
    height, width = spec.size
    images = rng.integers(0, 256, (3, 3, height, width), np.uint8)
    letterbox = np.array([[2 * height, 2 * width, height, width]] * 3, np.float32)
    batch: Arrays = {IMAGE: images, LETTERBOX: letterbox}
    compared: list[str] = []
    found: list[Difference] = []
    losses: list[float] = []  # of INT8
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
                else:
                    losses.append(
                        sum(float(np.abs(outputs[key] - value).mean()) for key, value in torch_heads.items())
                    )
        if max(losses) > MORE_LOSS * min(losses):
            found.append(("int8: loss", f"the heads of OpenVINO and ONNX Runtime are {losses} from torch's"))
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


def suppression(rng: Random, _: int) -> tuple[float, list[str], list[Difference]]:
    """NMS of random candidates against the reference: boxes on grids, ties, boxes without an area."""
    import onnx_graphsurgeon as gs

    from retinaserve.build_tools.graph.detection import Candidates, add_nms
    from retinaserve.build_tools.graph.nodes import NodeBuilder
    from retinaserve.plugins import reference

    spec = random_detector(rng)
    count, side, batch = int(rng.choice([1, 2, 7, 60, 300])), int(rng.choice([12, 40, 200])), 2
    corners, extents = rng.integers(0, side, (batch, count, 2)), rng.integers(0, side // 2, (batch, count, 2))
    grid = float(rng.choice([1, 1, 0.1, 1 / 3]))
    step, threshold = float(rng.choice([0.5, 0.01, 1e-6])), np.float32(spec.score_threshold_logit)
    logits = (np.round(rng.normal(0, 2, (batch, count)) / step) * step).astype(np.float32)
    logits[rng.random((batch, count)) < 0.1] = threshold
    given: Arrays = {
        "given_logits": logits,
        "given_boxes": np.concatenate((corners, corners + extents), axis=2).astype(np.float32) * np.float32(grid),
        "given_classes": rng.integers(0, len(spec.classes), (batch, count)),
        LETTERBOX: np.array([[*spec.size] * 2, [2 * side for side in spec.size] + [*spec.size]], np.float32),
    }
    tensors = {name: gs.Variable(name, array.dtype, [batch, *array.shape[1:]]) for name, array in given.items()}
    graph = gs.Graph(opset=18, inputs=list(tensors.values()))
    candidates = Candidates(tensors["given_logits"], tensors["given_boxes"], tensors["given_classes"], count)
    outputs = add_nms(NodeBuilder(graph), spec, candidates, tensors[LETTERBOX])
    for name, tensor in outputs.items():
        tensor.name, tensor.dtype = name, np.dtype(spec.outputs[name].dtype)
        tensor.shape = [batch, *spec.outputs[name].shape]
    graph.outputs = list(outputs.values())
    slots = reference.nms(
        np.where(logits > threshold, logits, np.float32(-np.inf)),
        given["given_boxes"],
        given["given_classes"].astype(np.int32),
        given[LETTERBOX],
        iou=spec.nms_iou,
        max_detections=spec.max_detections,
    )
    expected = dict(zip((NUM_DETECTIONS, BOXES, SCORES, CLASSES), slots, strict=True))
    model = gs.export_onnx(graph)
    model.ir_version = 10
    found: list[Difference] = []
    for runtime, seen in _in_both(model.SerializeToString(), given):
        for row in range(batch):
            apart = [
                float(np.abs(seen[name][row] - np.float64(value[row])).max()) for name, value in expected.items()
            ]
            if any(distance > most for distance, most in zip(apart, (0, SAME_BOX, SAME_SCORE, 0), strict=True)):
                overlaps = reference.iou_matrix(given["given_boxes"][row], given["given_boxes"][row])
                edge = bool((overlaps == np.nextafter(np.float32(spec.nms_iou), np.float32(2))).any())
                kind = f"{runtime}: an IoU one step above the threshold" if edge else f"{runtime}: boxes"
                found.append(
                    (kind, f"{seen[NUM_DETECTIONS][row, 0]}, the reference {expected[NUM_DETECTIONS][row, 0]}")
                )
    return count, ["ONNX Runtime", "OpenVINO"], found


def _in_both(data: bytes, given: Arrays) -> Iterator[tuple[str, Arrays]]:
    import onnxruntime

    from retinaserve.build_tools.openvino_cpu import compile_for_cpu

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_outputs()]
    yield "ONNX Runtime", dict(zip(names, session.run(names, dict(given)), strict=True))
    results = compile_for_cpu(data, threads=1).create_infer_request().infer(given)
    yield "OpenVINO", {name: np.array(results[name]) for name in names}
