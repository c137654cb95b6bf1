"""Triton python-backend model `detector_tiled`: one large image cut into tiles for `detector`, and merged.

`merging/` and `pixels/` beside this file are copies of the client's arithmetic and of the rules of admission, put
there by `retinaserve build`: a client that cuts the image itself gets the same boxes.
"""

import asyncio
import io
import json
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from merging.tiles import encode_bmp, merge_tiles, tile_windows
from PIL import Image, ImageOps
from pixels import BadImage, admit, undecodable

OUTPUTS = ("num_detections", "boxes", "scores", "classes")
IN_FLIGHT = 8  # tiles that are asked for at a time: two batches, and `detector` has room for others
PAUSES = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2)  # seconds, after which a refused tile is sent again


class Refused(Exception):
    """A tile without an answer: Triton's error."""


class TritonPythonModel:
    """Decodes one image at a time and asks for a few of its tiles at a time."""

    def initialize(self, args: dict[str, str]) -> None:
        parameters = json.loads(args["model_config"])["parameters"]
        names = ("tile", "overlap", "max_image_bytes", "max_image_pixels")
        values = {name: json.loads(parameters[name]["string_value"]) for name in names}
        self._tile = tuple(values["tile"])
        self._overlap = values["overlap"]
        self._limits = {"max_bytes": values["max_image_bytes"], "max_pixels": values["max_image_pixels"]}
        Image.MAX_IMAGE_PIXELS = None  # admission has looked

    async def execute(self, requests: list[Any]) -> list[Any]:
        return [await self._respond(request) for request in requests]

    async def _respond(self, request: Any) -> Any:
        data = np.from_dlpack(pb_utils.get_input_tensor_by_name(request, "image_bytes")).tobytes()
        pixels = admit(data, **self._limits) or decode(data)
        if isinstance(pixels, BadImage):
            error = pb_utils.TritonError(pixels.message, pb_utils.TritonError.INVALID_ARG)
            return pb_utils.InferenceResponse(error=error)
        size = pixels.shape[:2]
        windows = tile_windows(size, self._tile, self._overlap)
        slots = asyncio.Semaphore(IN_FLIGHT)

        async def ask(window: np.ndarray) -> list[np.ndarray]:
            async with slots:
                x1, y1, x2, y2 = window
                # A single tile goes as it came.
                return await detect(data if len(windows) == 1 else encode_bmp(pixels[y1:y2, x1:x2]))

        tasks = [asyncio.create_task(ask(window)) for window in windows]
        try:
            parts = await asyncio.gather(*tasks)
        except Refused as refused:
            for task in tasks:
                task.cancel()
            return pb_utils.InferenceResponse(error=refused.args[0])
        counts = [int(part[0][0, 0]) for part in parts]
        boxes, scores, classes = (
            np.concatenate([part[place][0, :count] for part, count in zip(parts, counts, strict=True)])
            for place in (1, 2, 3)
        )
        owners = np.repeat(np.arange(len(windows)), counts)
        boxes = boxes + np.tile(windows[owners, :2], 2).astype(np.float32)
        boxes, scores, classes = merge_tiles(windows, boxes, scores, classes, owners, size=size)
        answer = {
            "num_detections": np.array([[len(boxes)]], np.int32),
            "boxes": boxes[None],
            "scores": scores[None],
            "classes": classes[None],
            "letterbox": np.array([[*size, *size]], np.float32),
        }
        return pb_utils.InferenceResponse([to_tensor(name, values) for name, values in answer.items()])


def decode(data: bytes) -> np.ndarray | BadImage:
    """Return the upright image (h, w, 3), as the client's training/images/raster.py reads it."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except (OSError, ValueError, SyntaxError):
        return undecodable(data)


async def detect(encoded: bytes) -> list[np.ndarray]:
    """Return OUTPUTS of a tile, a row each. Raises Refused when `detector` goes on refusing."""
    image = to_tensor("image_bytes", np.frombuffer(encoded, np.uint8)[None])
    memory = pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU)
    for pause in (*PAUSES, None):
        request = pb_utils.InferenceRequest(
            model_name="detector", requested_output_names=list(OUTPUTS), inputs=[image], preferred_memory=memory
        )
        response = await request.async_exec()
        if not response.has_error():
            tensors = [pb_utils.get_output_tensor_by_name(response, name) for name in OUTPUTS]
            return [np.array(np.from_dlpack(tensor)) for tensor in tensors]
        if pause is None or response.error().code() != pb_utils.TritonError.UNAVAILABLE:
            break
        await asyncio.sleep(pause)
    raise Refused(response.error())


def to_tensor(name: str, values: Any) -> Any:
    """Return a tensor; preprocess/1/model.py says why."""
    return (pb_utils.Tensor.from_dlpack if np.__version__ >= "2" else pb_utils.Tensor)(name, values)
