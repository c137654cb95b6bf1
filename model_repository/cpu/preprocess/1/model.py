"""Triton python-backend model `preprocess`: encoded images to letterboxed tensors, by DALI on the CPU.

`preprocess/` beside this file is a copy of the project's one definition, put there by `retinaserve build`.
A bad image fails its own request with INVALID_ARG; the others of the batch are answered.
"""

import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from threading import Lock
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from preprocess import BadImage, Decoding, Preprocessor

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
SHARED_MEMORY, SCARCE = "/dev/shm", 32 * 2**20  # bytes: less may be gone before an answer lies there


class TritonPythonModel:
    """A pipeline for each core: each takes the next request as soon as it is free, and answers it.

    A batch that shares a pipeline would leave cores idle behind its last image.
    """

    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        parameters = {key: value["string_value"] for key, value in config["parameters"].items()}
        height, width = json.loads(parameters["size"])
        red, green, blue = json.loads(parameters["fill"])
        types = {each["name"]: each["data_type"] for each in config["output"]}
        pixels = "float32" if types["image"] == "TYPE_FP32" else "uint8"
        self._fill = np.array((red, green, blue), pixels).reshape(3, 1, 1)
        decoding = Decoding(
            max_bytes=int(parameters["max_image_bytes"]),
            max_pixels=int(parameters["max_image_pixels"]),
            full=parameters["decode"] == "full",
            value_range=json.loads(parameters.get("value_range", "null")),
        )
        resize = parameters.get("resize", "letterbox")
        threads = int(os.environ.get("RETINASERVE_THREADS", "0")) or len(os.sched_getaffinity(0))
        self._workers = ThreadPoolExecutor(threads)
        self._free: SimpleQueue[Preprocessor] = SimpleQueue()  # one for each core without a request
        for _ in range(threads):
            self._free.put(
                Preprocessor(
                    (height, width),
                    (red, green, blue),
                    resize=resize,
                    pixels=pixels,
                    threads=1,
                    max_batch=1,
                    decoding=decoding,
                )
            )
        # Triton 2.51 leaves its own failure counter at 0 for errors a python model returns.
        # The family must outlive its metrics. Its description is that of repositories built before: versions that
        # are served side by side share it.
        self._family = pb_utils.MetricFamily(
            name="retinaserve_bad_images",
            description="Pictures refused as empty, damaged, unsupported or too large",
            kind=pb_utils.MetricFamily.COUNTER,
        )
        self._counting = Lock()  # two increments at a time would mix their messages
        self._bad_images = self._family.Metric(labels={"model": "preprocess", "version": args["model_version"]})

    def finalize(self) -> None:
        self._workers.shutdown()
        # A metric that outlives the server's side of it crashes the process on its way out.
        del self._bad_images
        del self._family

    def execute(self, requests: list[Any]) -> None:
        """Return when a core is free for the next request; what is not done then is answered later.

        It raises nothing: the server (2.51) does not survive that where others of the batch are answered already.
        """
        for request in requests:
            sender, preprocessor = request.get_response_sender(), self._free.get()
            try:
                self._workers.submit(self._answer, preprocessor, request, sender)
            except Exception as error:
                self._free.put(preprocessor)
                send(sender, _failure(f"preprocess failed: {error}"))
        self._free.put(self._free.get())

    def _answer(self, preprocessor: Preprocessor, request: Any, sender: Any) -> None:
        try:
            # Where Triton put them: the request keeps that memory as long as it is kept itself.
            tensor = pb_utils.get_input_tensor_by_name(request, "image_bytes")
            response = self._response(preprocessor.run([memoryview(row) for row in np.from_dlpack(tensor)]))
        except Exception as error:
            response = _failure(f"preprocess failed: {error}")
        self._free.put(preprocessor)  # before the answer goes out: the core must not wait for that
        send(sender, response)

    def _response(self, results: Sequence[Any]) -> Any:
        bad = [result for result in results if isinstance(result, BadImage)]
        if bad:
            with self._counting:
                self._bad_images.increment(len(bad))
            return _failure(bad[0].message, pb_utils.TritonError.INVALID_ARG)
        return pb_utils.InferenceResponse(
            [
                to_tensor("image", self._stack([result.image for result in results])),
                to_tensor("letterbox", np.stack([result.letterbox for result in results])),
            ]
        )

    def _stack(self, images: list[np.ndarray]) -> np.ndarray:
        """Return the images of one request as one array, as large as the largest of them."""
        if len(images) == 1:  # a copy of 10 MB, in memory that is new each time, takes longer than the resize
            return images[0][None]
        height, width = np.max([image.shape[1:] for image in images], axis=0)
        if all(image.shape[1:] == (height, width) for image in images):
            return np.stack(images)
        stacked = np.empty((len(images), 3, height, width), self._fill.dtype)
        stacked[:] = self._fill
        for row, image in zip(stacked, images, strict=True):
            row[:, : image.shape[1], : image.shape[2]] = image
        return stacked


def _failure(*message: Any) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(*message))


def send(sender: Any, response: Any) -> None:
    """Answer a request, in two steps where /dev/shm may have no room for the tensors.

    Of a sender whose response found no room, Triton (2.51) takes no other one. It takes the end, and answers with
    an error of its own; without it the request would wait forever. It is apart only there: where it comes last to
    a gRPC call that was cancelled, the server dies.
    """
    room = os.statvfs(SHARED_MEMORY)
    apart = room.f_bavail * room.f_frsize < SCARCE
    try:
        try:
            sender.send(response, flags=0 if apart else FINAL)
        finally:
            if apart:
                sender.send(flags=FINAL)
    except Exception as error:
        pb_utils.Logger.log_error(f"preprocess could not answer: {error}")


def to_tensor(name: str, values: Any) -> Any:
    """Return an output tensor.

    The backend (2.51) takes NumPy 2's arrays for NumPy 1's: `as_numpy` repeats a tensor's first byte, and `Tensor`
    comes out empty. DLPack is right with both on the way in; on the way out the server does not survive NumPy 1's.
    """
    return (pb_utils.Tensor.from_dlpack if np.__version__ >= "2" else pb_utils.Tensor)(name, values)
