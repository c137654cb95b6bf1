"""Triton python-backend model `retinanet`: the grafted ONNX beside this file, run by OpenVINO on the CPU.

Decode, NMS and the undoing of the letterbox are in the graph; this file only moves tensors.
"""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import triton_python_backend_utils as pb_utils

INPUTS = ("image", "letterbox")
OUTPUTS = ("num_detections", "boxes", "scores", "classes")


class TritonPythonModel:
    """One compiled model over all cores; a dynamic batch is one inference."""

    def initialize(self, args: dict[str, str]) -> None:
        parameters = json.loads(args["model_config"])["parameters"]
        model = Path(args["model_repository"]) / args["model_version"] / "model.onnx"
        threads = int(os.environ.get("RETINASERVE_THREADS", "0")) or len(os.sched_getaffinity(0))
        compiled = ov.Core().compile_model(
            str(model),
            "CPU",
            {
                "PERFORMANCE_HINT": "LATENCY",
                "NUM_STREAMS": "1",
                "INFERENCE_NUM_THREADS": str(threads),
                "INFERENCE_PRECISION_HINT": parameters["precision"]["string_value"],
            },
        )
        self._infer = compiled.create_infer_request()

    def execute(self, requests: list[Any]) -> list[Any]:
        tensors = [
            [pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in INPUTS]
            for request in requests
        ]
        images, letterboxes = (np.concatenate(rows) for rows in zip(*tensors, strict=True))
        results = self._infer.infer({"image": images, "letterbox": letterboxes})
        outputs = [results[name] for name in OUTPUTS]

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
