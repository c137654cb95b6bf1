"""sahi on one image with a graph of ours, in an environment that has sahi and openvino; lab/tiles.py runs it.

    python sahi_side.py model.onnx mosaic.tif answer.json

Pillow decodes all of the image before the clock starts, as sahi would within. Slices are as large as the network's
input, so the graph sees the same pixels as it does behind our tiles.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import openvino
from PIL import Image
from sahi.models.base import DetectionModel
from sahi.predict import get_sliced_prediction
from sahi.prediction import ObjectPrediction

OUTPUTS = ("num_detections", "boxes", "scores", "classes")
SCORE, CLASSES, ROUNDS = 0.3, 100, 4


class OpenVino(DetectionModel):  # type: ignore[misc]
    """The served graph: uint8 (1, 3, H, W) and its letterbox in, boxes out."""

    def load_model(self) -> None:
        """Compile for throughput, as the server does with its cores."""
        core = openvino.Core()
        self.model = core.compile_model(self.model_path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        self.category_mapping = {str(index): str(index) for index in range(CLASSES)}

    def perform_inference(self, image: Any) -> None:
        """Ask for one slice."""
        height, width = image.shape[:2]
        letterbox = np.array([[height, width, height, width]], np.float32)
        result = self.model({"image": image.transpose(2, 0, 1)[None], "letterbox": letterbox})
        self._original_predictions = [result[name][0] for name in OUTPUTS]

    def _create_object_prediction_list_from_original_predictions(
        self, shift_amount_list: Any = ((0, 0),), full_shape_list: Any = None
    ) -> None:
        count, boxes, scores, classes = self._original_predictions
        keep = [row for row in range(int(count[0])) if scores[row] >= self.confidence_threshold]
        self._object_prediction_list_per_image = [
            [
                ObjectPrediction(
                    bbox=boxes[row].tolist(),
                    score=float(scores[row]),
                    category_id=int(classes[row]),
                    category_name=str(int(classes[row])),
                    shift_amount=shift_amount_list[0],
                    full_shape=full_shape_list[0] if full_shape_list else None,
                )
                for row in keep
            ]
        ]


def main() -> None:
    """Write the least seconds of some rounds after a first, and the boxes."""
    graph, image, output = map(Path, sys.argv[1:])
    Image.MAX_IMAGE_PIXELS = None
    pixels = np.asarray(Image.open(image).convert("RGB"))
    model = OpenVino(model_path=str(graph), confidence_threshold=SCORE, device="cpu")
    height, width = model.model.input("image").partial_shape.get_max_shape()[2:]
    options = {"slice_height": height, "slice_width": width, "perform_standard_pred": False, "verbose": 0}
    rounds = []
    for _ in range(ROUNDS):
        start, spent = time.perf_counter(), time.process_time()
        result = get_sliced_prediction(pixels, model, **options)
        rounds.append((time.perf_counter() - start, time.process_time() - spent))
    seconds, cpu = (min(column) for column in zip(*rounds[1:], strict=True))
    boxes = [[*each.bbox.to_xyxy(), each.score.value, each.category.id] for each in result.object_prediction_list]
    answer = {"seconds": seconds, "cpu_seconds": cpu, "count": len(boxes), "boxes": boxes}
    output.write_text(json.dumps(answer))


if __name__ == "__main__":
    main()
