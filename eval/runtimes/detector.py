"""Detectors without a server: a checkpoint run by torch, and a grafted graph run by OpenVINO or ONNX Runtime.

    TorchDetector(Path("model.pth")).predict([jpeg])
    OnnxDetector(Path("model.onnx"), threads=2).predict_many(files)
    found, heads = open_detector(path, keep_heads=True).observe(prepared)

All prepare pictures with the pipeline that is served, so what they answer is what the server has to answer. They
are for scores and comparisons; they queue nothing and batch only what they are given. The one of TensorRT is in
eval/runtimes/tensorrt.py.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from retinaserve.build_tools.openvino_cpu import compile_for_cpu
from retinaserve.training.detections import Detections, ImageError
from retinaserve.training.errors import Exit, UserError
from retinaserve.training.identity import Identity
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

if TYPE_CHECKING:
    from retinaserve.build_tools.preprocess import Prepared, Preprocessor

__all__ = ["open_detector"]

Outputs = Sequence[npt.NDArray[Any]]  # as spec.OUTPUTS orders them, a row a picture, then the heads
Heads = Mapping[str, npt.NDArray[np.float32]]  # by the names of spec.head_names, a row a picture
Runtime = Literal["openvino", "onnxruntime"]
Infer = Callable[[dict[str, Any]], Outputs]
PACKAGES = {"torch": "torch", "OpenVINO": "openvino", "ONNX Runtime": "onnxruntime", "TensorRT": "tensorrt"}


def open_detector(path: Path, *, threads: int = 0, batch: int = 8, keep_heads: bool = False) -> "OfflineDetector":
    """Open a model file by its suffix: .pth, .onnx, .plan; `threads` 0 takes all cores. Raises UserError."""
    from retinaserve.eval.runtimes.tensorrt import EngineDetector

    kinds: dict[str, type[OfflineDetector]] = {
        ".pth": TorchDetector,
        ".onnx": OnnxDetector,
        ".plan": EngineDetector,
    }
    if not path.is_file():
        raise UserError(f"{path}: no such file", "a checkpoint (.pth) or an exported model (.onnx) is expected")
    if path.suffix not in kinds:
        raise UserError(f"{path}: not a model that runs here", f"expected: {' or '.join(kinds)}", code=Exit.USAGE)
    return kinds[path.suffix](path, threads=threads, batch=batch, keep_heads=keep_heads)


class OfflineDetector(ABC):
    """What the offline detectors share: prepare a batch, run it, cut the answers apart."""

    runtime = ""  # what runs the model, for people
    precision = ""  # fp32, fp16, bf16 or int8; empty where the file does not tell
    head_names: tuple[str, ...] = ()  # the heads that `observe` answers
    note = ""  # what somebody who reads the numbers has to know

    def __init__(self, path: Path, *, threads: int = 0, batch: int = 8, keep_heads: bool = False) -> None:
        """Load the model; `keep_heads` lets `observe` answer the heads. Raises UserError for a file with none."""
        self.path = path
        self.batch = batch
        self.threads = threads
        self.keep_heads = keep_heads
        self.spec = self._load(path)

    @cached_property
    def _preprocessor(self) -> "Preprocessor":
        from retinaserve.build_tools.preprocess import Preprocessor

        return Preprocessor(self.spec.size, self.spec.pad_value, threads=self.threads, max_batch=self.batch)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The name of each class index."""
        return self.spec.classes

    @property
    def category_ids(self) -> tuple[int, ...]:
        """The COCO category of each class index."""
        return self.spec.category_ids

    def identity(self) -> Identity:
        """Return which model this is, in which runtime."""
        installed = ""
        with suppress(KeyError, PackageNotFoundError):  # TensorRT comes in packages of several names
            installed = version(PACKAGES[self.runtime])
        return Identity.of_file(self.path, runtime=f"{self.runtime} {installed}".strip(), precision=self.precision)

    def prepare(self, images: Sequence[bytes | ImageError]) -> "list[Prepared | ImageError]":
        """Return each encoded picture as the network takes it; a bad one gives its ImageError."""
        from retinaserve.build_tools.preprocess import Prepared

        results = iter(self._preprocessor.run([image for image in images if isinstance(image, bytes)]))
        prepared = [image if isinstance(image, ImageError) else next(results) for image in images]
        return [item if isinstance(item, Prepared | ImageError) else ImageError(item.message) for item in prepared]

    def observe(self, prepared: "Sequence[Prepared]") -> tuple[list[Detections], Heads]:
        """Return the detections of prepared pictures and, with `keep_heads`, the heads under `head_names`."""
        if not prepared:
            return [], {}
        letterboxes = np.stack([item.letterbox for item in prepared])
        outputs = self._run(np.stack([item.image for item in prepared]), letterboxes)
        tensors = dict(zip((*OUTPUTS, *self.head_names), outputs, strict=True))
        found = [
            Detections.from_slots(
                int(tensors[NUM_DETECTIONS][row, 0]),
                tensors[BOXES][row],
                tensors[SCORES][row],
                tensors[CLASSES][row],
                size=(int(letterboxes[row, 0]), int(letterboxes[row, 1])),
            )
            for row in range(len(prepared))
        ]
        return found, {name: tensors[name] for name in self.head_names}

    def predict(self, images: Sequence[bytes]) -> list[Detections]:
        """Return the detections of each encoded picture, in order. Raises UserError for the first bad one."""
        found = []
        for number, answer in enumerate(self.predict_many(images), 1):
            if isinstance(answer, ImageError):
                raise UserError(f"image {number}: {answer.message}")
            found.append(answer)
        return found

    def predict_many(self, images: Iterable[bytes | ImageError]) -> Iterator[Detections | ImageError]:
        """Yield an answer a picture, in order, a batch at a time."""
        source = iter(images)
        while chunk := list(islice(source, self.batch)):
            yield from self._predict_batch(chunk)

    def _predict_batch(self, chunk: Sequence[bytes | ImageError]) -> Iterator[Detections | ImageError]:
        prepared = self.prepare(chunk)
        found = iter(self.observe([item for item in prepared if not isinstance(item, ImageError)])[0])
        for item in prepared:
            yield item if isinstance(item, ImageError) else next(found)

    @abstractmethod
    def _load(self, path: Path) -> DetectorSpec:
        """Load the model and return its spec; say `runtime`, `precision` and `head_names`."""

    @abstractmethod
    def _run(self, images: npt.NDArray[np.uint8], letterboxes: npt.NDArray[np.float32]) -> Outputs:
        """Return the four outputs of (B, 3, H, W) pictures and (B, 4) letterboxes, then those of `head_names`."""


class TorchDetector(OfflineDetector):
    """A checkpoint run by torch, on the GPU where there is one."""

    runtime, precision = "torch", "fp32"

    def _load(self, path: Path) -> DetectorSpec:
        import torch

        from retinaserve.training.checkpoint import load_model

        if self.threads:
            torch.set_num_threads(self.threads)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        spec, model = load_model(path)
        self._model = model.to(self._device).eval()
        self._mean = torch.tensor(spec.mean, device=self._device)[:, None, None]  # (3, 1, 1)
        self._std = torch.tensor(spec.std, device=self._device)[:, None, None]
        if self.keep_heads:
            self.head_names = tuple(name for pair in spec.head_names for name in pair)
        return spec

    def at_size(self, height: int, width: int) -> "TorchDetector":
        """Let the network, which takes any size, take this one from now on; before the first picture."""
        self.spec = self.spec.with_size(height, width)
        return self

    def _run(self, images: npt.NDArray[np.uint8], letterboxes: npt.NDArray[np.float32]) -> Outputs:
        import torch

        from retinaserve.training.model.postprocess import detect

        with torch.inference_mode():
            pixels = torch.from_numpy(images).to(self._device)
            heads = self._model((pixels / 255 - self._mean) / self._std)
            outputs = [*detect(self.spec, heads, torch.from_numpy(letterboxes))]
            if self.keep_heads:
                outputs += [tensor for pair in heads for tensor in pair]
        return [output.cpu().numpy() for output in outputs]


class OnnxDetector(OfflineDetector):
    """A grafted graph run by OpenVINO or ONNX Runtime, in the precision of the file.

    A graph with TensorRT's plugins runs up to its heads; decode and NMS are torch's then, and `note` says so.
    """

    def __init__(self, path: Path, *, runtime: Runtime | None = None, **settings: Any) -> None:
        """Load the graph; `runtime` None takes what is installed, OpenVINO first."""
        self._wanted: tuple[Runtime, ...] = (runtime,) if runtime else tuple(RUNTIMES)
        super().__init__(path, **settings)

    def _load(self, path: Path) -> DetectorSpec:
        from retinaserve.build_tools.graph.onnx_io import STANDARD, OnnxGraph

        graph = OnnxGraph.read(path)
        self.precision = graph.precision
        custom = ", ".join(graph.custom_operators(known=STANDARD | {"com.microsoft"}))  # ONNX Runtime's own
        self._heads_only = bool(custom)
        if self._heads_only and not graph.head_names:
            raise UserError(
                f"{path} has operators that only TensorRT runs: {custom}",
                "and no heads of the names in its spec, up to which it could run here",
            )
        source: bytes | str = str(path)
        if self._heads_only:
            source = graph.up_to_heads().SerializeToString()
            self.note = f"{custom} need TensorRT; decode and NMS are torch's here"
        elif self.keep_heads and graph.head_names:
            source = graph.with_heads().SerializeToString()
        if self.keep_heads:
            self.head_names = graph.head_names
        names = (*(() if self._heads_only else OUTPUTS), *(graph.head_names if self._opened else ()))
        for name in self._wanted:
            title, compile_graph = RUNTIMES[name]
            try:
                infer = compile_graph(source, names, self.threads)
            except Exception as error:  # ONNX Runtime's own have no base in common
                lines = [line.strip() for line in str(error).splitlines() if line.strip()]
                # OpenVINO begins with the places in its own source
                said = [line for line in lines if not line.startswith(("Exception from", "Check '"))]
                reason = " ".join(said or lines)[:300] or "no reason given"
                raise UserError(f"{path}: {title} can't load this graph: {reason}") from None
            if infer:
                self.runtime, self._infer = title, infer
                return graph.spec
        wanted = " nor ".join(self._wanted)
        raise UserError(
            f"{'neither ' if len(self._wanted) > 1 else 'no '}{wanted} is installed",
            "pip install 'retinaserve[cpu]'",
            code=Exit.USAGE,
        )

    @property
    def _opened(self) -> bool:
        return self._heads_only or self.keep_heads

    def _run(self, images: npt.NDArray[np.uint8], letterboxes: npt.NDArray[np.float32]) -> Outputs:
        if not self._heads_only:
            return self._infer({IMAGE: images, LETTERBOX: letterboxes})
        import torch

        from retinaserve.training.model.postprocess import detect

        heads = self._infer({IMAGE: images})
        tensors = [torch.from_numpy(np.asarray(head, np.float32)) for head in heads]
        pairs = list(zip(tensors[::2], tensors[1::2], strict=True))
        found = [output.numpy() for output in detect(self.spec, pairs, torch.from_numpy(letterboxes))]
        return [*found, *(heads if self.keep_heads else ())]


def _openvino(source: str | bytes, names: Sequence[str], threads: int) -> Infer | None:
    try:
        request = compile_for_cpu(source, threads=threads).create_infer_request()
    except ImportError:
        return None

    def infer(feeds: dict[str, Any]) -> Outputs:
        results = request.infer(feeds)
        return [np.array(results[name]) for name in names]  # OpenVINO's own memory is the next batch's

    return infer


def _onnxruntime(source: str | bytes, names: Sequence[str], threads: int) -> Infer | None:
    try:
        import onnxruntime
    except ImportError:
        return None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])

    def infer(feeds: dict[str, Any]) -> Outputs:
        outputs: Outputs = session.run(list(names), feeds)
        return outputs

    return infer


RUNTIMES: Mapping[Runtime, tuple[str, Callable[[str | bytes, Sequence[str], int], Infer | None]]] = {
    "openvino": ("OpenVINO", _openvino),
    "onnxruntime": ("ONNX Runtime", _onnxruntime),
}
