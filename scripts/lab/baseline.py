"""What one would write without Triton: a small asyncio web service around the same network, to compare with.

    python -m retinaserve.scripts.lab.baseline model.onnx --port 8080    # POST /detect answers JSON

It is meant to be fair rather than clever: the very graph that Triton serves, cut off at its heads; the same
threads and OpenVINO settings; pictures decoded by Pillow beside the running inference; decode and NMS in NumPy, as
in most tutorials, though thresholds are applied to logits first. It has no batches, no queue limit and no metrics,
and it is not part of the product.
"""

import argparse
import asyncio
import io
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from aiohttp import web
from PIL import Image, ImageOps

from retinaserve.build_tools.openvino_cpu import compile_for_cpu
from retinaserve.training.spec import DELTA_CLAMP, DetectorSpec

FloatArray = npt.NDArray[np.float32]
LARGEST_BODY = 32 * 1024 * 1024


class Detector:
    """Bytes to boxes in one call; calls may come from several threads, and infer one after the other."""

    def __init__(self, graph: Path, *, threads: int, precision: str = "f32") -> None:
        from retinaserve.build_tools.graph.onnx_io import OnnxGraph

        self.spec = OnnxGraph.read(graph).spec
        heads, names = _cut_at_heads(graph, self.spec)
        network = compile_for_cpu(heads, precision=precision, threads=threads)
        self._infer = network.create_infer_request()
        self._names = names
        self._turn = threading.Lock()

    def detect(self, data: bytes) -> list[dict[str, Any]]:
        """Return the boxes of an encoded picture in its own pixels, best first."""
        image = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
        height, width = self.spec.size
        ratio = min(height / image.height, width / image.width)
        resized = image.resize(
            (round(image.width * ratio), round(image.height * ratio)), Image.Resampling.BILINEAR
        )
        canvas = Image.new("RGB", (width, height), self.spec.pad_value)
        canvas.paste(resized)
        pixels = np.asarray(canvas).transpose(2, 0, 1)[None]  # (1, 3, H, W)
        with self._turn:
            answer = self._infer.infer({"image": pixels})
            heads = [(answer[logits].copy(), answer[deltas].copy()) for logits, deltas in self._names]
        boxes, scores, classes = self._decode(heads)
        kept = _nms(boxes, scores, classes, self.spec.nms_iou)[: self.spec.max_detections]
        boxes = np.clip(boxes[kept] / ratio, 0, [image.width, image.height] * 2)
        return [
            {"box": box.tolist(), "score": float(score), "class": self.spec.classes[int(index)]}
            for box, score, index in zip(boxes, scores[kept], classes[kept], strict=True)
        ]

    def _decode(
        self, heads: list[tuple[FloatArray, FloatArray]]
    ) -> tuple[FloatArray, FloatArray, npt.NDArray[Any]]:
        spec, found = self.spec, []
        for (logits, deltas), anchors, stride in zip(heads, spec.anchors, spec.strides, strict=True):
            classes, (_, channels, h, w) = len(spec.classes), logits.shape
            flat = logits.reshape(channels // classes, classes, h, w)  # (A, C, h, w)
            index = np.flatnonzero(flat > spec.score_threshold_logit)
            if len(index) > spec.topk_candidates:
                index = index[np.argpartition(-flat.ravel()[index], spec.topk_candidates)[: spec.topk_candidates]]
            a, c, y, x = np.unravel_index(index, flat.shape)
            dx, dy, dw, dh = deltas.reshape(-1, 4, h, w)[a, :, y, x].T
            x1, y1, x2, y2 = (np.asarray(anchors, np.float32)[a] + stride * np.stack((x, y, x, y), 1)).T
            sides = x2 - x1, y2 - y1
            middle = x1 + sides[0] * (0.5 + dx), y1 + sides[1] * (0.5 + dy)
            half = [side * np.exp(np.minimum(d, DELTA_CLAMP)) / 2 for side, d in zip(sides, (dw, dh), strict=True)]
            boxes = np.stack(
                (middle[0] - half[0], middle[1] - half[1], middle[0] + half[0], middle[1] + half[1]), 1
            )
            found.append((boxes.astype(np.float32), 1 / (1 + np.exp(-flat.ravel()[index])), c))
        boxes, scores, classes_found = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return boxes, scores, classes_found


def _nms(boxes: FloatArray, scores: FloatArray, classes: npt.NDArray[Any], iou: float) -> list[int]:
    """Greedy suppression within each class; the indices of what stays, best first."""
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    left, kept = np.argsort(-scores, kind="stable"), []
    while len(left):
        best, rest = int(left[0]), left[1:]
        kept.append(best)
        low = np.maximum(boxes[rest, :2], boxes[best, :2])
        high = np.minimum(boxes[rest, 2:], boxes[best, 2:])
        shared = np.prod(np.maximum(high - low, 0), axis=1)
        overlap = shared / (areas[rest] + areas[best] - shared)
        left = rest[(overlap <= iou) | (classes[rest] != classes[best])]
    return kept


def _cut_at_heads(graph: Path, spec: DetectorSpec) -> tuple[bytes, tuple[tuple[str, str], ...]]:
    """Return the graph without what is behind the heads, and the names of its outputs."""
    import onnx
    import onnx_graphsurgeon as gs

    surgeon = gs.import_onnx(onnx.load(graph))
    tensors = surgeon.tensors()
    surgeon.inputs = [each for each in surgeon.inputs if each.name == "image"]
    surgeon.outputs = [tensors[name] for pair in spec.head_names for name in pair]
    return gs.export_onnx(surgeon.cleanup()).SerializeToString(), spec.head_names


def application(detector: Detector, *, workers: int) -> web.Application:
    """Return the service; `workers` pictures are decoded or inferred at a time."""
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
    parser.add_argument("--precision", default="f32")
    options = parser.parse_args()
    detector = Detector(options.graph, threads=options.threads, precision=options.precision)
    # One more than the threads: the next picture is decoded while the network runs.
    web.run_app(
        application(detector, workers=options.threads + 1), host="127.0.0.1", port=options.port, print=None
    )


if __name__ == "__main__":
    main()
