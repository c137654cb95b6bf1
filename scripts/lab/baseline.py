"""What one would write without Triton: a small asyncio web service around the same network, to compare with.

    python -m retinaserve.scripts.lab.baseline model.onnx --port 8080    # POST /detect answers JSON

The graph that Triton serves, cut off at its heads, with the same threads and OpenVINO settings; images decoded by
Pillow beside the running inference; decode and NMS by the NumPy reference. No batches, no queue limit, no metrics.
"""

import argparse
import asyncio
import io
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from aiohttp import web
from PIL import Image, ImageOps

from retinaserve.build_tools.graph.onnx_io import OnnxGraph
from retinaserve.build_tools.openvino_cpu import compile_for_cpu
from retinaserve.plugins import reference

LARGEST_BODY = 32 * 1024 * 1024


class Detector:
    """Bytes to boxes in one call; calls may come from several threads, and infer one after the other."""

    def __init__(self, graph: Path, *, threads: int, precision: str = "fp32") -> None:
        self.spec = OnnxGraph.read(graph).spec
        surgeon = gs.import_onnx(onnx.load(graph))
        tensors = surgeon.tensors()
        surgeon.inputs = [each for each in surgeon.inputs if each.name == "image"]
        surgeon.outputs = [tensors[name] for pair in self.spec.head_names for name in pair]
        heads = gs.export_onnx(surgeon.cleanup()).SerializeToString()
        self._infer = compile_for_cpu(heads, precision=precision, threads=threads).create_infer_request()
        self._turn = threading.Lock()

    def detect(self, data: bytes) -> list[dict[str, Any]]:
        """Return the boxes of an encoded image in its own pixels, best first."""
        spec = self.spec
        image = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
        height, width = spec.size
        ratio = min(height / image.height, width / image.width)
        resized = image.resize(
            (round(image.width * ratio), round(image.height * ratio)), Image.Resampling.BILINEAR
        )
        canvas = Image.new("RGB", (width, height), spec.pad_value)
        canvas.paste(resized)
        letterbox = np.array([[image.height, image.width, resized.height, resized.width]], np.float32)
        with self._turn:
            answer = self._infer.infer({"image": np.asarray(canvas).transpose(2, 0, 1)[None]})  # (1, 3, H, W)
            logits, deltas = ([answer[pair[part]].copy() for pair in spec.head_names] for part in (0, 1))
        candidates = reference.decode(
            logits,
            deltas,
            letterbox,
            **spec.decoding,
        )
        count, boxes, scores, classes = reference.nms(
            *candidates, letterbox, iou=spec.nms_iou, max_detections=spec.max_detections
        )
        return [
            {"box": box.tolist(), "score": float(score), "class": spec.classes[index]}
            for box, score, index, _ in zip(boxes[0], scores[0], classes[0], range(count[0, 0]), strict=False)
        ]


def application(detector: Detector, *, workers: int) -> web.Application:
    """Return the service; `workers` images are decoded or inferred at a time."""
    pool = ThreadPoolExecutor(workers)

    async def detect(request: web.Request) -> web.Response:
        data = await request.read()
        try:
            boxes = await asyncio.get_running_loop().run_in_executor(pool, detector.detect, data)
        except (OSError, ValueError) as error:
            return web.json_response({"error": str(error)}, status=400)
        return web.json_response({"boxes": boxes})

    app = web.Application(client_max_size=LARGEST_BODY)
    app.router.add_post("/detect", detect)
    return app


def main() -> None:
    """Serve until stopped."""
    parser = argparse.ArgumentParser(description="A hand-written web service, to compare with.")
    parser.add_argument("graph", type=Path)
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", default="fp32")
    options = parser.parse_args()
    detector = Detector(options.graph, threads=options.threads, precision=options.precision)
    # One more than the threads: the next image is decoded while the network runs.
    app = application(detector, workers=options.threads + 1)
    web.run_app(app, host="127.0.0.1", port=options.port, print=None)


if __name__ == "__main__":
    main()
