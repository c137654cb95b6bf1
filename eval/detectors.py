"""Detectors without a server: a checkpoint run by torch, and a grafted graph run by OpenVINO or ONNX Runtime.

    TorchDetector(Path("model.pth")).predict([jpeg])
    OnnxDetector(Path("model.onnx"), threads=2).predict_many(files)

Both prepare pictures with the pipeline that is served, so what they answer is what the server has to answer. They
are for scores and comparisons; they queue nothing and batch only what they are given.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from eval.detections import Detections, ImageError
from eval.identity import Identity
from training.errors import Exit, UserError
from training.spec import IMAGE, LETTERBOX, METADATA_SPEC, OUTPUTS, DetectorSpec

Outputs = Sequence[npt.NDArray[Any]]  # as spec.OUTPUTS orders them, a row a picture


def open_detector(path: Path, *, threads: int = 0, batch: int = 8) -> "OfflineDetector":
    """Open the model in a file by its suffix, .pth or .onnx; `threads` 0 takes all cores. Raises UserError."""
    kinds: dict[str, type[OfflineDetector]] = {".pth": TorchDetector, ".onnx": OnnxDetector}
    if not path.is_file():
        raise UserError(f"{path}: no such file", "a checkpoint (.pth) or an exported model (.onnx) is expected")
    if path.suffix not in kinds:
        raise UserError(f"{path}: not a model that runs here", f"expected: {' or '.join(kinds)}", code=Exit.USAGE)
    return kinds[path.suffix](path, threads=threads, batch=batch)


class OfflineDetector(ABC):
    """What the offline detectors share: prepare a batch, run it, cut the answers apart."""

    def __init__(self, path: Path, *, threads: int = 0, batch: int = 8) -> None:
        """Load the model. Raises UserError for a file that holds none."""
        from build_tools.preprocess import Preprocessor

        self.path = path
        self.batch = batch
        self.runtime = ""  # what runs it, by `_load`
        self.spec = self._load(path, threads)
        self._preprocessor = Preprocessor(self.spec.size, self.spec.fill, threads=threads, max_batch=batch)

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
        return Identity.of_file(self.path, runtime=self.runtime)

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
        from build_tools.preprocess import Prepared

        encoded = [image for image in chunk if isinstance(image, bytes)]
        prepared = self._preprocessor.run(encoded)
        good = [item for item in prepared if isinstance(item, Prepared)]
        found = iter(self._detections(good)) if good else iter(())
        answers = (next(found) if isinstance(item, Prepared) else ImageError(item.message) for item in prepared)
        for image in chunk:
            yield image if isinstance(image, ImageError) else next(answers)

    def _detections(self, prepared: Sequence[Any]) -> list[Detections]:
        letterboxes = np.stack([item.letterbox for item in prepared])
        counts, boxes, scores, classes = self._run(np.stack([item.image for item in prepared]), letterboxes)
        return [
            Detections.from_slots(
                int(counts[row, 0]),
                boxes[row],
                scores[row],
                classes[row],
                size=(int(letterboxes[row, 0]), int(letterboxes[row, 1])),
            )
            for row in range(len(prepared))
        ]

    @abstractmethod
    def _load(self, path: Path, threads: int) -> DetectorSpec:
        """Load the model and return its spec."""

    @abstractmethod
    def _run(self, images: npt.NDArray[np.uint8], letterboxes: npt.NDArray[np.float32]) -> Outputs:
        """Return the four outputs of (B, 3, H, W) pictures and (B, 4) letterboxes."""


class TorchDetector(OfflineDetector):
    """A checkpoint run by torch, on the GPU where there is one."""

    def _load(self, path: Path, threads: int) -> DetectorSpec:
        import torch

        from training.checkpoint import load_model

        if threads:
            torch.set_num_threads(threads)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        spec, model = load_model(path)
        self.runtime = f"torch {torch.__version__}"
        self._model = model.to(self._device).eval()
        self._mean = torch.tensor(spec.mean, device=self._device)[:, None, None]  # (3, 1, 1)
        self._std = torch.tensor(spec.std, device=self._device)[:, None, None]
        return spec

    def _run(self, images: npt.NDArray[np.uint8], letterboxes: npt.NDArray[np.float32]) -> Outputs:
        import torch

        from training.postprocess import detect

        with torch.inference_mode():
            pixels = torch.from_numpy(images).to(self._device)
            heads = self._model((pixels / 255 - self._mean) / self._std)
            outputs = detect(self.spec, heads, torch.from_numpy(letterboxes))
        return [output.cpu().numpy() for output in outputs]


class OnnxDetector(OfflineDetector):
    """A grafted graph run in float32 by OpenVINO, or by ONNX Runtime where that is what is installed."""

    def _load(self, path: Path, threads: int) -> DetectorSpec:
        spec = _spec_of(path)
        infer, self.runtime = _openvino(path, threads), "openvino"
        if infer is None:
            infer, self.runtime = _onnxruntime(path, threads), "onnxruntime"
        if infer is None:
            raise UserError(
                "neither openvino nor onnxruntime is installed",
                "pip install 'retinaserve[cpu]'",
                code=Exit.USAGE,
            )
        self.runtime += f" {version(self.runtime)}"
        self._infer = infer
        return spec

    def _run(self, images: npt.NDArray[np.uint8], letterboxes: npt.NDArray[np.float32]) -> Outputs:
        return self._infer({IMAGE: images, LETTERBOX: letterboxes})


def _spec_of(path: Path) -> DetectorSpec:
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(str(path), load_external_data=False)
    except (DecodeError, OSError) as error:
        raise UserError(f"{path} is not an ONNX file: {error}") from None
    text = next((item.value for item in model.metadata_props if item.key == METADATA_SPEC), None)
    inputs = {item.name for item in model.graph.input}
    if text is None or inputs != {IMAGE, LETTERBOX}:
        raise UserError(
            f"{path} is not a deployable detector", "make it with: retinaserve export MODEL.pth OUT.onnx"
        )
    return DetectorSpec.from_json(text)


def _openvino(path: Path, threads: int) -> Callable[[dict[str, Any]], Outputs] | None:
    try:
        import openvino
    except ImportError:
        return None
    settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    if threads:
        settings["INFERENCE_NUM_THREADS"] = threads
    request = openvino.Core().compile_model(str(path), "CPU", settings).create_infer_request()

    def infer(feeds: dict[str, Any]) -> Outputs:
        results = request.infer(feeds)
        return [results[name] for name in OUTPUTS]

    return infer


def _onnxruntime(path: Path, threads: int) -> Callable[[dict[str, Any]], Outputs] | None:
    try:
        import onnxruntime
    except ImportError:
        return None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def infer(feeds: dict[str, Any]) -> Outputs:
        outputs: Outputs = session.run(list(OUTPUTS), feeds)
        return outputs

    return infer
