"""Triton python-backend model `retinanet`: the grafted ONNX beside this file, run by OpenVINO on the CPU.

Decode, NMS and the undoing of the letterbox are in the graph; this file only moves tensors, and chooses how the
cores share what there is to do. `openvino_cpu.py` beside it is a copy of the project's one place for OpenVINO's
settings, put there by `retinaserve build`.
"""

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from threading import Lock
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from openvino_cpu import compile_for_cpu, read_for_cpu

INPUTS = ("image", "letterbox")
FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL

Image = tuple[np.ndarray, np.ndarray]  # image (1, 3, H, W) and letterbox (1, 4)
Found = dict[str, np.ndarray] | Exception  # the outputs of an image, one row each


class Engine:
    """The graph compiled twice: all cores on one image, and one core on each.

    Cores that share an image wait for each other at every layer: two take a fifth more CPU time for a ResNet50 in
    INT8. So an image that is alone gets all of them, and otherwise each core takes the next image as soon as it
    is free. The last of many waits for the other cores where all of them have it done sooner than the one that is.
    """

    def __init__(self, model: Path, *, threads: int, precision: str) -> None:
        network = read_for_cpu(str(model))
        compiled = compile_for_cpu(network, precision=precision, threads=threads)
        self._shared = compiled.create_infer_request()
        self._cores = threads
        self._free: SimpleQueue[Any] = SimpleQueue()  # an infer request for each core without an image
        self._workers = ThreadPoolExecutor(threads)
        self._began = 0.0  # when the latest image was begun by one core
        self._by_all, self._by_one = float("inf"), 0.0  # seconds of the latest image
        if threads > 1:
            compiled = compile_for_cpu(network, precision=precision, threads=threads, streams=threads)
            for _ in range(threads):
                self._free.put(compiled.create_infer_request())

    def run(self, images: Sequence[Image], done: Callable[[int, Found], None]) -> None:
        """Call `done(number, found)` for each image, in any order; return as soon as a core is free.

        Other cores may be at the last images still, and what they lie in must be kept for that.
        """
        if self._cores == 1 or (len(images) == 1 and self._sooner_by_all()):
            for number, image in enumerate(images):
                began = time.perf_counter()
                found = _infer(self._shared, image)
                self._by_all = time.perf_counter() - began
                done(number, found)
            return
        for number, image in enumerate(images):
            request = self._free.get()
            self._began = time.perf_counter()
            try:
                self._workers.submit(self._apart, request, image, number, done)
            except Exception as error:  # raised where others are answered, it would end the server (2.51)
                self._free.put(request)
                done(number, error)
        self._free.put(self._free.get())

    def _sooner_by_all(self) -> bool:
        """Wait for all cores, if they are free or have an image done sooner than the one that is; say so."""
        left = max(0.0, self._began + self._by_one - time.perf_counter())  # until they are, by the latest image
        if self._free.qsize() < self._cores and left + self._by_all >= self._by_one:
            return False
        for request in [self._free.get() for _ in range(self._cores)]:
            self._free.put(request)
        return True

    def _apart(self, request: Any, image: Image, number: int, done: Callable[[int, Found], None]) -> None:
        began = time.perf_counter()
        found = _infer(request, image)
        self._by_one = time.perf_counter() - began
        self._free.put(request)  # before the answer goes out: the core must not wait for that
        done(number, found)

    def close(self) -> None:
        """Return when the last image is done."""
        self._workers.shutdown()


def _infer(request: Any, image: Image) -> Found:
    try:
        request.infer(dict(zip(INPUTS, image, strict=True)), share_inputs=True)
        return {port.any_name: request.get_tensor(port).data.copy() for port in request.model_outputs}
    except Exception as error:
        return error


class Answer:
    """The answer to one request, sent when all of its images are done; they lie in what it keeps."""

    def __init__(self, sender: Any, images: int, kept: Any = None) -> None:
        self._sender, self._kept = sender, kept
        self._found: list[Found | None] = [None] * images
        self._missing = images
        self._lock = Lock()

    def put(self, row: int, found: Found) -> None:
        """Take what became of an image."""
        with self._lock:
            self._found[row] = found
            self._missing -= 1
            if self._missing:
                return
        try:
            response = self._response()
        except Exception as error:
            response = _failure(error)
        try:
            self._sender.send(response, flags=FINAL)
        except Exception as error:  # /dev/shm has no room; Triton (2.51) takes no other answer of this sender then
            pb_utils.Logger.log_error(f"retinanet could not answer: {error}")

    def _response(self) -> Any:
        for found in self._found:
            if isinstance(found, Exception):
                return _failure(found)
        columns = {name: np.concatenate([found[name] for found in self._found]) for name in self._found[0]}
        return pb_utils.InferenceResponse([to_tensor(*column) for column in columns.items()])


class TritonPythonModel:
    """One engine over all cores; each image of a dynamic batch is answered as soon as it is done."""

    def initialize(self, args: dict[str, str]) -> None:
        parameters = json.loads(args["model_config"])["parameters"]
        model = Path(args["model_repository"]) / args["model_version"] / "model.onnx"
        threads = int(os.environ.get("RETINASERVE_THREADS", "0")) or len(os.sched_getaffinity(0))
        self._engine = Engine(model, threads=threads, precision=parameters["precision"]["string_value"])

    def finalize(self) -> None:
        self._engine.close()

    def execute(self, requests: list[Any]) -> None:
        """Return when a core is free for the next batch; what is not done then is answered later."""
        images: list[Image] = []
        owners: list[tuple[Answer, int]] = []
        for request in requests:
            rows = list(_images(request))
            answer = Answer(request.get_response_sender(), len(rows), request)
            owners += [(answer, row) for row in range(len(rows))]
            images += rows

        def done(number: int, found: Found) -> None:
            answer, row = owners[number]
            answer.put(row, found)

        self._engine.run(images, done)


def _images(request: Any) -> Iterator[Image]:
    images, letterboxes = (np.from_dlpack(pb_utils.get_input_tensor_by_name(request, name)) for name in INPUTS)
    for row in range(len(images)):
        yield images[row : row + 1], letterboxes[row : row + 1]


def _failure(error: Exception) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(f"retinanet failed: {error}"))


def to_tensor(name: str, values: Any) -> Any:
    """Return an output tensor; preprocess/1/model.py says why."""
    return (pb_utils.Tensor.from_dlpack if np.__version__ >= "2" else pb_utils.Tensor)(name, values)
