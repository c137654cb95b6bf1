"""sahi and DeepForest on one image with a graph of ours, in an environment that has them; lab/tiles.py runs it.

    python tiles_side.py model.onnx mosaic.tif answer.json          # sahi, deepforest, openvino and pillow

Pillow decodes all of the image before the clock starts, as both would within. Slices are as large as the network's
input, so the graph sees the same pixels as it does behind our tiles; the overlap is ours, thresholds are theirs.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import torch
from deepforest.main import deepforest
from PIL import Image
from sahi.models.base import DetectionModel
from sahi.predict import get_sliced_prediction
from sahi.prediction import ObjectPrediction

OUTPUTS = ("num_detections", "boxes", "scores", "classes")
SCORE, CLASSES, ROUNDS, OVERLAP = 0.3, 100, 4, 0.2
Boxes = list[list[float]]  # x1 y1 x2 y2 score class


class Graph:
    """The served graph; asked for images uint8 (3, H, W)."""

    def __init__(self, path: str) -> None:
        self.model = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        self.size = self.model.input("image").partial_shape.get_max_shape()[2:]

    def __call__(self, image: Any) -> list[Any]:
        """Return boxes, scores and classes above SCORE."""
        height, width = image.shape[1:]
        letterbox = np.array([[height, width, height, width]], np.float32)
        result = self.model({"image": image[None], "letterbox": letterbox})
        count, boxes, scores, classes = (result[name][0] for name in OUTPUTS)
        keep = np.flatnonzero(scores[: int(count[0])] >= SCORE)
        return [boxes[keep], scores[keep], classes[keep]]


class ForSahi(DetectionModel):  # type: ignore[misc]
    """A graph as sahi asks it."""

    def load_model(self) -> None:
        """Compile."""
        self.model = Graph(self.model_path)
        self.category_mapping = {str(index): str(index) for index in range(CLASSES)}

    def perform_inference(self, image: Any) -> None:
        """Ask for one slice."""
        self._original_predictions = self.model(image.transpose(2, 0, 1))

    def _create_object_prediction_list_from_original_predictions(
        self, shift_amount_list: Any = ((0, 0),), full_shape_list: Any = None
    ) -> None:
        self._object_prediction_list_per_image = [
            [
                ObjectPrediction(
                    bbox=box.tolist(),
                    score=float(score),
                    category_id=int(kind),
                    category_name=str(int(kind)),
                    shift_amount=shift_amount_list[0],
                    full_shape=full_shape_list[0] if full_shape_list else None,
                )
                for box, score, kind in zip(*self._original_predictions, strict=True)
            ]
        ]


class ForDeepForest(torch.nn.Module):
    """A graph as DeepForest asks it: (3, H, W) from 0 to 1."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.graph = Graph(path)

    def forward(self, images: Any) -> Any:
        """Return torchvision's dictionaries."""
        answers = [self.graph((255 * image).round().to(torch.uint8).numpy()) for image in images]
        names = ("boxes", "scores", "labels")
        return [dict(zip(names, map(torch.from_numpy, answer), strict=True)) for answer in answers]


def by_sahi(graph: str) -> Callable[[Any], Boxes]:
    """Return sahi's boxes of an image."""
    model = ForSahi(model_path=graph, confidence_threshold=SCORE, device="cpu")
    height, width = model.model.size
    options = {"slice_height": height, "slice_width": width, "perform_standard_pred": False, "verbose": 0}
    options |= {"overlap_height_ratio": OVERLAP, "overlap_width_ratio": OVERLAP}

    def boxes(pixels: Any) -> Boxes:
        found = get_sliced_prediction(pixels, model, **options).object_prediction_list
        return [[*each.bbox.to_xyxy(), each.score.value, each.category.id] for each in found]

    return boxes


def by_deepforest(graph: str) -> Callable[[Any], Boxes]:
    """Return those of DeepForest's predict_tile."""
    model = deepforest(model=ForDeepForest(graph))
    model.create_trainer(logger=False, enable_progress_bar=False, enable_checkpointing=False, accelerator="cpu")
    model.numeric_to_label_dict = {index: index for index in range(CLASSES)}
    side = model.model.graph.size[0]

    def boxes(pixels: Any) -> Boxes:
        found = model.predict_tile(image=pixels, patch_size=side, patch_overlap=OVERLAP)
        rows: Boxes = found[["xmin", "ymin", "xmax", "ymax", "score", "label"]].to_numpy(float).tolist()
        return rows

    return boxes


def main() -> None:
    """Write the least seconds of some rounds after a first, and the boxes, by package."""
    graph, image, output = sys.argv[1:]
    Image.MAX_IMAGE_PIXELS = None
    pixels = np.asarray(Image.open(image).convert("RGB"))
    answers: dict[str, Any] = {}
    for name, make in {"sahi": by_sahi, "deepforest": by_deepforest}.items():
        side, rounds = make(graph), []
        for _ in range(ROUNDS):
            start, spent = time.perf_counter(), time.process_time()
            boxes = side(pixels)
            rounds.append((time.perf_counter() - start, time.process_time() - spent))
        seconds, cpu = (min(column) for column in zip(*rounds[1:], strict=True))
        answers[name] = {"seconds": seconds, "cpu_seconds": cpu, "count": len(boxes), "boxes": boxes}
    Path(output).write_text(json.dumps(answers))


if __name__ == "__main__":
    main()
