"""Graphs to try NVIDIA's compiler on: published sizes, random weights, every precision.

    make_graphs(Path("runs/compile"), "resnet18")      # [.../resnet18_fp32.onnx, ..._fp16.onnx, ..._int8.onnx]

What a compiler makes of a graph does not depend on what the weights were trained for. INT8 is calibrated with
synthetic pictures all the same, so that scales are those of real tensors.
"""

import tempfile
from pathlib import Path

import torch

from retinaserve.scripts.shapes.draw import draw_dataset
from retinaserve.training.checkpoint import Checkpoint, save
from retinaserve.training.model import build_model
from retinaserve.training.spec import DetectorSpec

SIZE, CLASSES = (640, 640), 80
PICTURES = 8


def make_graphs(folder: Path, backbone: str, *, size: tuple[int, int] = SIZE) -> list[Path]:
    """Write a detector of 80 classes as <backbone>_<precision>.onnx in each precision, and return the files."""
    from retinaserve.build_tools.export import ExportOptions, export_detector
    from retinaserve.build_tools.quantize.calibrate import Int8Options

    torch.manual_seed(0)
    spec = DetectorSpec.create([f"class {number}" for number in range(CLASSES)], size=size, backbone=backbone)
    with tempfile.TemporaryDirectory(prefix="retinaserve-") as scratch:
        checkpoint, pictures = Path(scratch) / "model.pth", Path(scratch) / "pictures"
        save(checkpoint, Checkpoint(spec, build_model(spec).state_dict()))
        draw_dataset(pictures, images=PICTURES, seed=0)
        int8 = Int8Options(pictures / "images", count=PICTURES, calibrator="minmax")
        flavours = {
            "fp32": ExportOptions(),
            "fp16": ExportOptions(half=True),
            "int8": ExportOptions(half=True, int8=int8),
        }
        files = {folder / f"{backbone}_{name}.onnx": options for name, options in flavours.items()}
        for file, options in files.items():
            export_detector(checkpoint, file, options)
    return list(files)
