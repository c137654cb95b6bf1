"""A detector without a server: a checkpoint run by torch, a graph by OpenVINO or ONNX Runtime, a plan by TensorRT.

    open_detector(Path("model.onnx"), threads=2).predict([jpeg])
    detections, heads = open_detector(path, heads=True).observe(prepared)

Images are prepared by the pipeline that is served, so the answers are those that the server has to give.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from retinaserve.eval.client.server_info import FULLY, SCALED, Identity
from retinaserve.plugins import reference
from retinaserve.training.detections import TAKEN, Detections, ImageError, answered
from retinaserve.training.errors import Exit, UserError
from retinaserve.training.spec import IMAGE, LETTERBOX, OUTPUTS, DetectorSpec

if TYPE_CHECKING:
    from retinaserve.build_tools.preprocess import Decoding, Prepared, Preprocessor

__all__ = ["open_detector"]

Arrays = Mapping[str, npt.NDArray[Any]]  # by the names of the spec's tensors, a row per image
PACKAGES = {"torch": "torch", "OpenVINO": "openvino", "ONNX Runtime": "onnxruntime", "TensorRT": "tensorrt"}


class Runtime(Protocol):
    """What runs a model file: it takes prepared batches and knows nothing of files and boxes."""

    name: str  # a key of PACKAGES
    path: Path
    spec: DetectorSpec
    precision: str  # fp32, fp16, bf16 or int8
    output_names: tuple[str, ...]  # OUTPUTS, the raw heads, or both
    note: str  # what somebody who reads the numbers has to know

    def run(self, batch: Arrays) -> Arrays:
        """Return the outputs of IMAGE (B, 3, H, W) and LETTERBOX (B, 4) float32."""


def open_detector(
    path: str | Path,
    *,
    threads: int = 0,
    batch: int = 8,
    heads: bool = False,
    size: tuple[int, int] | None = None,
    onnx_runtime: str | None = None,
    plugins: Path | None = None,
    decoding: "Decoding | None" = None,
) -> "OfflineDetector":
    """Open a model file by its suffix: .pth, .onnx, .plan; `threads` 0 takes all cores. Raises UserError.

    With `heads` the raw heads are answered as well, where the file has them. `size` is for a checkpoint, which
    runs at any; `onnx_runtime` is openvino, onnxruntime or the first that is installed; `plugins` is a plan's
    library; `decoding` holds limits, and whether JPEGs are decoded in full.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file", "a checkpoint (.pth) or an exported model (.onnx) is expected")
    runtime: Runtime
    if path.suffix == ".pth":
        runtime = TorchRuntime(path, threads=threads)
    elif path.suffix == ".onnx":
        from retinaserve.eval.runtimes.onnx import OnnxRuntime

        runtime = OnnxRuntime(path, threads=threads, heads=heads, backend=onnx_runtime)
    elif path.suffix == ".plan":
        from retinaserve.eval.runtimes.tensorrt import TensorRtRuntime

        runtime = TensorRtRuntime(path, heads=heads, plugins=plugins)
    else:
        raise UserError(f"{path}: not a model that runs here", "expected: .pth or .onnx or .plan", code=Exit.USAGE)
    if size and size != runtime.spec.size and path.suffix != ".pth":
        raise UserError(f"{path}: its size is fixed", "--size is for a checkpoint (.pth)", code=Exit.USAGE)
    return OfflineDetector(runtime, threads=threads, batch=batch, size=size, decoding=decoding)


class TorchRuntime:
    """A checkpoint run by torch, on the GPU where there is one; answers the raw heads."""

    name, precision, note = "torch", "fp32", ""

    def __init__(self, path: Path, *, threads: int = 0) -> None:
        """Load a checkpoint. Raises UserError for a file that is none."""
        import torch

        from retinaserve.training.checkpoint import load_model

        if threads:
            torch.set_num_threads(threads)
        self.path, self._torch = path, torch
        self.spec, model = load_model(path)
        self.output_names = tuple(name for pair in self.spec.head_names for name in pair)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model = model.to(self._device).eval()
        # (3, 1, 1)
        self._mean, self._std = (
            torch.tensor(each, device=self._device)[:, None, None] for each in (self.spec.mean, self.spec.std)
        )

    def run(self, batch: Arrays) -> dict[str, npt.NDArray[Any]]:
        """Return the heads of a batch of any size."""
        with self._torch.inference_mode():
            pixels = self._torch.from_numpy(batch[IMAGE]).to(self._device)
            heads = self._model((pixels / 255 - self._mean) / self._std)
            tensors = [tensor.cpu().numpy() for pair in heads for tensor in pair]
        return dict(zip(self.output_names, tensors, strict=True))


class OfflineDetector:
    """A Detector of a runtime: prepares images, runs them in batches, and decodes where the model does not."""

    def __init__(
        self,
        runtime: Runtime,
        *,
        threads: int = 0,
        batch: int = 8,
        size: tuple[int, int] | None = None,
        decoding: "Decoding | None" = None,
    ) -> None:
        self.runtime = runtime
        self.spec = runtime.spec.with_size(*size) if size else runtime.spec
        self.batch = batch if self.spec.resizing.fixed else 1  # images of one canvas make a batch
        self._threads = threads
        self._decoding = decoding

    @cached_property
    def _preprocessor(self) -> "Preprocessor":
        from retinaserve.build_tools.preprocess import Preprocessor

        return Preprocessor(
            **self.spec.preprocessing,
            threads=self._threads,
            max_batch=self.batch,
            decoding=self._decoding,
        )

    @property
    def class_names(self) -> tuple[str, ...]:
        """The name of each class index."""
        return self.spec.classes

    @property
    def category_ids(self) -> tuple[int, ...]:
        """The COCO category of each class index."""
        return self.spec.category_ids

    @property
    def value_range(self) -> tuple[int, int] | None:
        """Black and white of samples of more than 8 bits; None for their depth's range."""
        return self.spec.value_range

    @property
    def tile_size(self) -> tuple[int, int]:
        """(h, w) of the tiles that the model was trained on, or of its input."""
        return self.spec.tile or self.spec.size

    def identity(self) -> Identity:
        """Return which model this is, in which runtime."""
        name, installed = self.runtime.name, ""
        with suppress(PackageNotFoundError):  # TensorRT comes in packages of several names
            installed = version(PACKAGES[name])
        return Identity.of_file(
            self.runtime.path,
            runtime=f"{name} {installed}".strip(),
            precision=self.runtime.precision,
            decode=FULLY if self._decoding and self._decoding.full else SCALED,
        )

    def predict(self, images: Sequence[bytes]) -> list[Detections]:
        """Return the detections of each encoded image, in order. Raises UserError for the first bad one."""
        return [answered(answer, number) for number, answer in enumerate(self.predict_many(images), 1)]

    def predict_many(self, images: Iterable[bytes | ImageError]) -> Iterator[Detections | ImageError]:
        """Yield an answer per image, in order, a batch at a time."""
        source = iter(images)
        while chunk := list(islice(source, self.batch)):
            prepared = self.prepare(chunk)
            found = iter(self.observe([item for item in prepared if not isinstance(item, ImageError)])[0])
            for item in prepared:
                yield item if isinstance(item, ImageError) else next(found)

    def prepare(self, images: Sequence[bytes | ImageError]) -> "list[Prepared | ImageError]":
        """Return each encoded image as the network takes it; a bad one gives its ImageError."""
        from retinaserve.build_tools.preprocess import Prepared

        results = iter(self._preprocessor.run([image for image in images if isinstance(image, bytes)]))
        prepared = [image if isinstance(image, ImageError) else next(results) for image in images]
        return [item if isinstance(item, Prepared | ImageError) else ImageError(item.message) for item in prepared]

    def observe(self, prepared: "Sequence[Prepared]") -> tuple[list[Detections], Arrays]:
        """Return the detections of prepared images, and the raw heads where the runtime answers them."""
        if not prepared:
            return [], {}
        letterboxes = np.stack([item.letterbox for item in prepared])
        outputs = self.runtime.run({IMAGE: np.stack([item.image for item in prepared]), LETTERBOX: letterboxes})
        heads = {name: outputs[name] for name in self.runtime.output_names if name not in OUTPUTS}
        if not set(OUTPUTS) <= set(outputs):
            outputs = decode_heads(self.spec, heads, letterboxes)
        columns = {**outputs, LETTERBOX: letterboxes}
        rows = ({name: columns[name][row] for name in TAKEN} for row in range(len(prepared)))
        return [Detections.of_outputs(row) for row in rows], heads


def decode_heads(spec: DetectorSpec, heads: Arrays, letterboxes: npt.NDArray[np.float32]) -> Arrays:
    """Return the outputs that a graph with decode and NMS has, of raw heads by the names of the spec."""
    logits, deltas = ([heads[name] for name in side] for side in zip(*spec.head_names, strict=True))
    ends = spec.ends(letterboxes)
    candidates = reference.decode(logits, deltas, ends, **spec.decoding)
    slots = reference.nms(*candidates, ends, iou=spec.nms_iou, max_detections=spec.max_detections)
    return dict(zip(TAKEN, slots, strict=False))
