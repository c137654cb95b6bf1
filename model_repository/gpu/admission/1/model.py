"""Triton python-backend model `admission`: lets an encoded image through, or fails its request.

It stands in front of the dali backend, which fails every request of a batch for one image that it can't decode.
What the GPU's decoders would not decode, or not right, goes on as pixels.
`pixels/` beside this file is a copy of the project's one definition, put there by `retinaserve build`; it
needs neither DALI nor a GPU.
"""

import json
from functools import partial
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from pixels import BadImage, gate, trial


class TritonPythonModel:
    """Reads each image where it lies in shared memory; nothing is copied and nothing is kept."""

    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        parameters = {key: value["string_value"] for key, value in config["parameters"].items()}
        self._limits = {
            "max_bytes": int(parameters["max_image_bytes"]),
            "max_pixels": int(parameters["max_image_pixels"]),
            "value_range": json.loads(parameters.get("value_range", "null")),
        }
        formats = tuple(json.loads(parameters["trial_formats"]))
        self._trial = None
        if formats:
            self._trial = partial(trial, kinds=formats)
        # The server's own failure counter does not count errors that a python model returns (2.51).
        # The family must outlive its metrics. Its description is that of repositories built before: versions that
        # are served side by side share it.
        self._family = pb_utils.MetricFamily(
            name="retinaserve_bad_images",
            description="Pictures refused as empty, damaged, unsupported or too large",
            kind=pb_utils.MetricFamily.COUNTER,
        )
        self._bad_images = self._family.Metric(labels={"model": "admission", "version": args["model_version"]})

    def finalize(self) -> None:
        # A metric that outlives the server's side of it crashes the process on its way out.
        del self._bad_images
        del self._family

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._answer(pb_utils.get_input_tensor_by_name(request, "image_bytes")) for request in requests]

    def _answer(self, tensor: Any) -> Any:
        rows = [memoryview(row) for row in tensor.as_numpy()]
        found = [self._pass(row) for row in rows]
        bad = [each for each in found if isinstance(each, BadImage)]
        if bad:
            self._bad_images.increment(len(bad))
            return pb_utils.InferenceResponse(
                error=pb_utils.TritonError(bad[0].message, pb_utils.TritonError.INVALID_ARG)
            )
        if all(each is row for each, row in zip(found, rows, strict=True)):
            # The very tensor that came in: it lies in shared memory already, a new one would be copied there.
            return pb_utils.InferenceResponse([tensor])
        longest = max(map(len, found))
        padded = np.stack([np.frombuffer(bytes(each).ljust(longest, b"\0"), np.uint8) for each in found])
        return pb_utils.InferenceResponse([pb_utils.Tensor("image_bytes", padded)])

    def _pass(self, data: memoryview) -> Any:
        """Return what the decoder may be given: the data itself, or its pixels; or why it is refused."""
        found = gate(data, **self._limits)
        return (self._trial and found is data and self._trial(data)) or found
