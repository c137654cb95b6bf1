"""Triton python-backend model `retinanet`: the grafted ONNX beside this file, run by OpenVINO on the CPU.

Decode, NMS and the undoing of the letterbox are in the graph; this file only moves tensors, and chooses how the
cores share a batch.
"""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import triton_python_backend_utils as pb_utils

INPUTS = ("image", "letterbox")
OUTPUTS = ("num_detections", "boxes", "scores", "classes")
FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL

Picture = tuple[np.ndarray, np.ndarray]  # image (1, 3, H, W) and letterbox (1, 4)


class Engine:
    """The graph compiled twice: all cores on one picture, and a core a picture.

    Cores that share a picture wait for each other at every layer, so as soon as there is a picture for every core
    each works by itself. What is left over is shared, and so is a lone picture.
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
        self._apart: list[Any] = []
        if threads > 1:
            apart = {**settings, "PERFORMANCE_HINT": "THROUGHPUT", "NUM_STREAMS": str(threads)}
            compiled = core.compile_model(graph, "CPU", apart)
            self._apart = [compiled.create_infer_request() for _ in range(threads)]

    def run(self, pictures: Sequence[Picture]) -> Iterator[list[np.ndarray]]:
        """Yield OUTPUTS of each picture, one row each, in order and as soon as they are known."""
        even = len(pictures) - len(pictures) % len(self._apart) if self._apart else 0
        for request, picture in zip(self._apart, pictures[:even], strict=False):
            request.start_async(_inputs(picture), share_inputs=True)
        for number in range(even):
            request, following = self._apart[number % len(self._apart)], number + len(self._apart)
            request.wait()
            found = _outputs(request)
            if following < even:  # before the answer goes out: its core must not wait for that
                request.start_async(_inputs(pictures[following]), share_inputs=True)
            yield found
        for picture in pictures[even:]:
            self._shared.infer(_inputs(picture), share_inputs=True)
            yield _outputs(self._shared)


def _inputs(picture: Picture) -> dict[str, np.ndarray]:
    return dict(zip(INPUTS, picture, strict=True))


def _outputs(request: Any) -> list[np.ndarray]:
    return [request.get_tensor(name).data.copy() for name in OUTPUTS]


class TritonPythonModel:
    """One engine over all cores; a dynamic batch is one execution, answered picture by picture."""

    def initialize(self, args: dict[str, str]) -> None:
        parameters = json.loads(args["model_config"])["parameters"]
        model = Path(args["model_repository"]) / args["model_version"] / "model.onnx"
        threads = int(os.environ.get("RETINASERVE_THREADS", "0")) or len(os.sched_getaffinity(0))
        self._engine = Engine(model, threads=threads, precision=parameters["precision"]["string_value"])

    def execute(self, requests: list[Any]) -> None:
        """Answer each request as soon as its pictures are done: later ones of the batch don't hold it up."""
        rows = [list(_pictures(request)) for request in requests]
        senders = [request.get_response_sender() for request in requests]
        found = self._engine.run([picture for pictures in rows for picture in pictures])
        answered = 0
        try:
            for pictures, sender in zip(rows, senders, strict=True):
                columns = zip(*(next(found) for _ in pictures), strict=True)
                tensors = [
                    pb_utils.Tensor(name, np.concatenate(column))
                    for name, column in zip(OUTPUTS, columns, strict=True)
                ]
                sender.send(pb_utils.InferenceResponse(tensors), flags=FINAL)
                answered += 1
        except Exception as error:
            # Some have their answer already, so an exception, which Triton reports to all, would come too late.
            failed = pb_utils.InferenceResponse(error=pb_utils.TritonError(f"retinanet failed: {error}"))
            for sender in senders[answered:]:
                sender.send(failed, flags=FINAL)


def _pictures(request: Any) -> Iterator[Picture]:
    images, letterboxes = (pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in INPUTS)
    for row in range(len(images)):
        yield images[row : row + 1], letterboxes[row : row + 1]
