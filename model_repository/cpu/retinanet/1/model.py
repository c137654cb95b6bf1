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
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from threading import Barrier, Lock
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from openvino_cpu import compile_for_cpu, read_for_cpu

INPUTS = ("image", "letterbox")
FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL

Image = tuple[np.ndarray, np.ndarray]  # image (1, 3, H, W) and letterbox (1, 4)
Found = dict[str, np.ndarray] | Exception  # the outputs of an image, one row each
Answering = Callable[[Found], None]
Task = tuple[Image, Answering]


class Engine:
    """The graph compiled twice: all cores on one image, and one core on each.

    Cores that share an image wait for each other at every layer: two take a fifth more CPU time for a ResNet50 in
    INT8. So an image that is alone gets all of them, and otherwise each core takes the next image as soon as it
    is free. The first of many is alone when it comes: it begins anew on one core if others follow early enough.
    The last one waits for the other cores where all of them have it done sooner than the one that is free.
    """

    def __init__(self, model: Path, *, threads: int, precision: str) -> None:
        network = read_for_cpu(str(model))
        compiled = compile_for_cpu(network, precision=precision, threads=threads)
        self._shared = compiled.create_infer_request()
        self._cores = threads
        self._free: SimpleQueue[Any] = SimpleQueue()  # an infer request for each core without an image
        self._workers = ThreadPoolExecutor(threads)
        started = Barrier(threads)  # all now: a thread that can't be started later would end the server (2.51)
        list(self._workers.map(lambda _: started.wait(), range(threads)))
        self._ended: SimpleQueue[list[Task]] = SimpleQueue()  # by all cores: nothing, or the image taken back
        self._sharing = self._taken_back = False  # all cores are at an image; it is wanted back
        self._began = 0.0  # when the latest image was begun
        self._by_all, self._by_one = float("inf"), 0.0  # seconds of the latest image
        if threads > 1:
            compiled = compile_for_cpu(network, precision=precision, threads=threads, streams=threads)
            for _ in range(threads):
                self._free.put(compiled.create_infer_request())

    def run(self, images: Sequence[Image], done: Callable[[int, Found], None]) -> None:
        """Call `done(number, found)` for each image, in any order; return as soon as there is room for another.

        Images may be worked on still, and what they lie in must be kept for that.
        """
        tasks = [(image, partial(done, number)) for number, image in enumerate(images)]
        if self._cores == 1:
            for image, answer in tasks:
                answer(_infer(self._shared, image))
            return
        if self._sharing and tasks:
            tasks = self._first(len(tasks)) + tasks
        if len(tasks) == 1 and (self._free.qsize() == self._cores or self._left() + self._by_all < self._by_one):
            for request in [self._free.get() for _ in range(self._cores)]:
                self._free.put(request)
            self._sharing, self._taken_back = True, False
            self._start(self._by_all_cores, *tasks[0])
            return
        for image, answer in tasks:
            self._start(self._by_one_core, self._free.get(), image, answer)
        self._free.put(self._free.get())

    def _start(self, work: Callable[..., None], *given: Any) -> None:
        self._began = time.perf_counter()
        self._workers.submit(work, *given)

    def _first(self, more: int) -> list[Task]:
        """Wait for the image that has all cores; take it back if it has had them for less than sharing costs."""
        spent = time.perf_counter() - self._began
        apart = self._by_one < (1 + more) * self._by_all  # not so where cores are many
        if apart and spent < self._by_all - self._by_one / self._cores:
            self._taken_back = True
            self._shared.cancel()
        self._sharing = False
        return self._ended.get()

    def _left(self) -> float:
        """Return the seconds until all cores are free, by what the latest image took."""
        return max(0.0, self._began + self._by_one - time.perf_counter())

    def _by_all_cores(self, image: Image, answer: Answering) -> None:
        found = _infer(self._shared, image)
        if self._taken_back and isinstance(found, Exception):
            self._ended.put([(image, answer)])
            return
        self._by_all = time.perf_counter() - self._began
        self._ended.put([])  # before the answer goes out: the cores must not wait for that
        answer(found)

    def _by_one_core(self, request: Any, image: Image, answer: Answering) -> None:
        began = time.perf_counter()
        found = _infer(request, image)
        self._by_one = time.perf_counter() - began
        self._free.put(request)
        answer(found)

    def close(self) -> None:
        """Return when the last image is done."""
        self._workers.shutdown()


def _infer(request: Any, image: Image) -> Found:
    try:
        # A copy: of a graph with open sides OpenVINO (2026.4.1) writes over shared inputs of earlier calls.
        request.infer(dict(zip(INPUTS, image, strict=True)))
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
        """Return when there is room for the next batch; what is not done then is answered later."""
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
