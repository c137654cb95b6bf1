"""Triton python-backend model `retinanet`: the grafted ONNX beside this file, run by OpenVINO on the CPU.

Decode, NMS and the undoing of the letterbox are in the graph; this file only moves tensors, and chooses how the
cores share what there is to do.
"""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from threading import Lock
from typing import Any

import numpy as np
import openvino as ov
import triton_python_backend_utils as pb_utils

INPUTS = ("image", "letterbox")
OUTPUTS = ("num_detections", "boxes", "scores", "classes")
FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL

Picture = tuple[np.ndarray, np.ndarray]  # image (1, 3, H, W) and letterbox (1, 4)
Found = list[np.ndarray] | Exception  # OUTPUTS of a picture, one row each


class Engine:
    """The graph compiled twice: all cores on one picture, and a core a picture.

    Cores that share a picture wait for each other at every layer. So a picture that is alone gets all of them, and
    otherwise each core takes the next picture as soon as it is free.
    """

    def __init__(self, model: Path, *, threads: int, precision: str) -> None:
        core = ov.Core()
        # Without the processor's help OpenVINO would emulate bf16, many times slower.
        if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            precision = "f32"
        graph = core.read_model(str(model))
        settings = {"INFERENCE_NUM_THREADS": str(threads), "INFERENCE_PRECISION_HINT": precision}
        shared = {**settings, "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1"}
        self._shared = core.compile_model(graph, "CPU", shared).create_infer_request()
        self._cores = threads
        self._free: SimpleQueue[Any] = SimpleQueue()  # an infer request for each core without a picture
        self._workers = ThreadPoolExecutor(threads)
        if threads > 1:
            apart = {**settings, "PERFORMANCE_HINT": "THROUGHPUT", "NUM_STREAMS": str(threads)}
            compiled = core.compile_model(graph, "CPU", apart)
            for _ in range(threads):
                self._free.put(compiled.create_infer_request())

    def run(self, pictures: Sequence[Picture], done: Callable[[int, Found], None]) -> None:
        """Call `done(number, found)` for each picture, in any order; return as soon as a core is free.

        Other cores may be at the last pictures still: they have copies, as Triton takes its tensors back.
        """
        alone = len(pictures) == 1 and self._free.qsize() == self._cores
        if alone or self._cores == 1:
            for number, picture in enumerate(pictures):
                done(number, _infer(self._shared, picture))
            return
        for number, (image, letterbox) in enumerate(pictures):
            request = self._free.get()
            self._workers.submit(self._apart, request, (image.copy(), letterbox.copy()), number, done)
        self._free.put(self._free.get())

    def _apart(self, request: Any, picture: Picture, number: int, done: Callable[[int, Found], None]) -> None:
        found = _infer(request, picture)
        self._free.put(request)  # before the answer goes out: the core must not wait for that
        done(number, found)

    def close(self) -> None:
        """Return when the last picture is done."""
        self._workers.shutdown()


def _infer(request: Any, picture: Picture) -> Found:
    try:
        request.infer(dict(zip(INPUTS, picture, strict=True)), share_inputs=True)
        return [request.get_tensor(name).data.copy() for name in OUTPUTS]
    except Exception as error:
        return error


class Answer:
    """The answer to one request, sent when all of its pictures are done."""

    def __init__(self, sender: Any, pictures: int) -> None:
        self._sender = sender
        self._found: list[Found | None] = [None] * pictures
        self._missing = pictures
        self._lock = Lock()

    def put(self, row: int, found: Found) -> None:
        """Take what became of a picture."""
        with self._lock:
            self._found[row] = found
            self._missing -= 1
            if self._missing:
                return
        try:
            self._sender.send(self._response(), flags=FINAL)
        except Exception as error:  # /dev/shm has no room for the tensors
            pb_utils.Logger.log_error(f"retinanet could not answer: {error}")
            self._sender.send(_failure(error), flags=FINAL)

    def _response(self) -> Any:
        for found in self._found:
            if isinstance(found, Exception):
                return _failure(found)
        columns = zip(*self._found, strict=True)
        tensors = [
            pb_utils.Tensor(name, np.concatenate(column)) for name, column in zip(OUTPUTS, columns, strict=True)
        ]
        return pb_utils.InferenceResponse(tensors)


class TritonPythonModel:
    """One engine over all cores; each picture of a dynamic batch is answered as soon as it is done."""

    def initialize(self, args: dict[str, str]) -> None:
        parameters = json.loads(args["model_config"])["parameters"]
        model = Path(args["model_repository"]) / args["model_version"] / "model.onnx"
        threads = int(os.environ.get("RETINASERVE_THREADS", "0")) or len(os.sched_getaffinity(0))
        self._engine = Engine(model, threads=threads, precision=parameters["precision"]["string_value"])

    def finalize(self) -> None:
        self._engine.close()

    def execute(self, requests: list[Any]) -> None:
        """Return when a core is free for the next batch; what is not done then is answered later."""
        pictures: list[Picture] = []
        owners: list[tuple[Answer, int]] = []
        for request in requests:
            rows = list(_pictures(request))
            answer = Answer(request.get_response_sender(), len(rows))
            owners += [(answer, row) for row in range(len(rows))]
            pictures += rows

        def done(number: int, found: Found) -> None:
            answer, row = owners[number]
            answer.put(row, found)

        self._engine.run(pictures, done)


def _pictures(request: Any) -> Iterator[Picture]:
    images, letterboxes = (pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in INPUTS)
    for row in range(len(images)):
        yield images[row : row + 1], letterboxes[row : row + 1]


def _failure(error: Exception) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(f"retinanet failed: {error}"))
