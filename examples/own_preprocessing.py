"""Send pixels that are already decoded, such as a camera's frames, to the model `retinanet`.

    python examples/own_preprocessing.py IMAGE.jpg [localhost:8001 [0.3]]

The caller then does what `preprocess` does for encoded images: scale to fit, place at the top left, pad with the
mean colour. Boxes come back in the frame's own pixels. Any other scaling costs accuracy.
"""

import json
import sys

import numpy as np
from PIL import Image, ImageOps
from tritonclient.grpc import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException


def fit(frame: np.ndarray, size: tuple[int, int], fill: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return `image` (3, H, W) uint8 and `letterbox` (4,) of a frame (h, w, 3) RGB uint8."""
    height, width = frame.shape[:2]
    scale = min(size[0] / height, size[1] / width)
    resized = (max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5)))
    small = Image.fromarray(frame).resize(resized[::-1], Image.Resampling.BILINEAR)
    canvas = np.full((*size, 3), fill, np.uint8)
    canvas[: resized[0], : resized[1]] = small
    letterbox = np.array([height, width, *resized], np.float32)
    return canvas.transpose(2, 0, 1), letterbox


def main(path: str, server: str = "localhost:8001", lowest: str = "0.3") -> None:
    """Print one line per box: class, score, and x1 y1 x2 y2 in pixels of the frame."""
    client = InferenceServerClient(server)

    def parameter(model: str, name: str) -> list:
        config = client.get_model_config(model, as_json=True)["config"]
        return json.loads(config["parameters"][name]["string_value"])

    rule = client.get_model_config("preprocess", as_json=True)["config"]["parameters"].get("resize")
    if rule:
        sys.exit(f"this detector's images are resized as {rule['string_value']} does, and not letterboxed")
    names = parameter("detector", "classes")
    size, fill = parameter("preprocess", "size"), parameter("preprocess", "fill")
    frame = np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))  # stands for a camera's frame

    image, letterbox = fit(frame, tuple(size), tuple(fill))
    inputs = [InferInput("image", [1, *image.shape], "UINT8"), InferInput("letterbox", [1, 4], "FP32")]
    inputs[0].set_data_from_numpy(np.ascontiguousarray(image)[None])
    inputs[1].set_data_from_numpy(letterbox[None])
    answer = client.infer("retinanet", inputs)
    count = int(answer.as_numpy("num_detections")[0, 0])
    boxes, scores, classes = (answer.as_numpy(name)[0, :count] for name in ("boxes", "scores", "classes"))
    for box, score, index in zip(boxes, scores, classes, strict=True):
        if score < float(lowest):
            break  # sorted by score
        print(f"{names[index]:<12}{score:6.2f}  " + " ".join(f"{side:7.1f}" for side in box))


if __name__ == "__main__":
    if not 2 <= len(sys.argv) <= 4:
        sys.exit(f"usage: {sys.argv[0]} IMAGE [SERVER [SCORE]]")
    try:
        main(*sys.argv[1:])
    except (InferenceServerException, OSError) as error:  # no server, or no such file
        sys.exit(f"error: {error}")
