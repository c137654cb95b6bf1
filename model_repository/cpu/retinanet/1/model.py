"""Triton python-backend model `retinanet`: the grafted ONNX beside this file, run by OpenVINO on the CPU.

Decode, NMS and the undoing of the letterbox are in the graph; this file only moves tensors, and chooses how the
cores share a batch.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import triton_python_backend_utils as pb_utils

INPUTS = ("image", "letterbox")
OUTPUTS = ("num_detections", "boxes", "scores", "classes")


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

    def run(self, images: np.ndarray, letterboxes: np.ndarray) -> list[np.ndarray]:
        """Return OUTPUTS for images (B, 3, H, W) and letterboxes (B, 4), a row a picture."""
        count = len(images)
        even = count - count % len(self._apart) if self._apart else 0
        parts = (
            [
                {"image": image, "letterbox": letterbox}
                for image, letterbox in zip(
                    *(np.split(rows[:even], len(self._apart)) for rows in (images, letterboxes)), strict=True
                )
            ]
            if even
            else []
        )
        for request, part in zip(self._apart, parts, strict=False):
            request.start_async(part, share_inputs=True)
        found = []
        for request, _ in zip(self._apart, parts, strict=False):
            request.wait()
            found.append(_outputs(request))
        if even < count:
            self._shared.infer({"image": images[even:], "letterbox": letterboxes[even:]}, share_inputs=True)
            found.append(_outputs(self._shared))
        return found[0] if len(found) == 1 else [np.concatenate(rows) for rows in zip(*found, strict=True)]


def _outputs(request: Any) -> Sequence[np.ndarray]:
    return [request.get_tensor(name).data.copy() for name in OUTPUTS]


class TritonPythonModel:
    """One engine over all cores; a dynamic batch is one execution."""

    def initialize(self, args: dict[str, str]) -> None:
        parameters = json.loads(args["model_config"])["parameters"]
        model = Path(args["model_repository"]) / args["model_version"] / "model.onnx"
        threads = int(os.environ.get("RETINASERVE_THREADS", "0")) or len(os.sched_getaffinity(0))
        self._engine = Engine(model, threads=threads, precision=parameters["precision"]["string_value"])

    def execute(self, requests: list[Any]) -> list[Any]:
        tensors = [
            [pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in INPUTS]
            for request in requests
        ]
        images, letterboxes = (np.concatenate(rows) for rows in zip(*tensors, strict=True))
        outputs = self._engine.run(images, letterboxes)

        responses, start = [], 0
        for image, _ in tensors:
            rows = slice(start, start + len(image))
            start = rows.stop
            responses.append(
                pb_utils.InferenceResponse(
                    [pb_utils.Tensor(name, value[rows]) for name, value in zip(OUTPUTS, outputs, strict=True)]
                )
            )
        return responses
