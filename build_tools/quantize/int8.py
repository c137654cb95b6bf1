"""From float heads and real pictures to INT8 heads, and the record of how they came about.

    options = Int8Options(Path("train/"), calibrator="percentile")
    quantized = to_int8(raw_model, spec, draw(spec, options), options)
    graft(quantized.model), quantized.record

It joins the pictures (calibration.py), the ranges (ranges.py) and the Q/DQ nodes (quantize.py), and writes nothing
but the cache that it is given.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from retinaserve.build_tools.graph.onnx_io import metadata_of
from retinaserve.build_tools.quantize.calibration import Pictures, draw_pictures
from retinaserve.build_tools.quantize.layers import Layer
from retinaserve.build_tools.quantize.qdq import layers_of, quantize, tensors_of
from retinaserve.build_tools.quantize.ranges import (
    PERCENTILE,
    THRESHOLDS,
    Calibrator,
    Histogram,
    cached,
    collect,
    normalise,
)
from retinaserve.training.spec import METADATA_CALIBRATION, METADATA_PRECISION, DetectorSpec

Inputs = Iterator[npt.NDArray[np.float32]]
Progress = Callable[[Inputs, int], Inputs]
PICTURES = 300


@dataclass(frozen=True)
class Int8Options:
    """Which pictures are looked at, and what is made of them."""

    images: Path  # a folder, or a COCO JSON
    count: int = PICTURES
    calibrator: Calibrator = "minmax"
    seed: int = 0
    exclude: tuple[str, ...] = ()  # layers that stay in float
    cache: Path | None = None  # a folder


@dataclass(frozen=True, eq=False)
class Quantized:
    """INT8 heads, and what they were made with, for JSON."""

    model: onnx.ModelProto
    record: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Calibrated:
    """Float heads and the ranges of their tensors: what any choice of layers and calibrator can be made from."""

    model: onnx.ModelProto
    spec: DetectorSpec
    pictures: Pictures
    histograms: dict[str, Histogram]

    def quantize(self, calibrator: Calibrator, layers: Sequence[Layer]) -> onnx.ModelProto:
        """Return the heads with these layers in INT8."""
        thresholds = {name: THRESHOLDS[calibrator](each) for name, each in self.histograms.items()}
        return quantize(self.model, self.spec, thresholds, layers)

    @property
    def layers(self) -> list[Layer]:
        """All layers that INT8 can be had for."""
        return layers_of(self.model, self.spec)


def draw(spec: DetectorSpec, options: Int8Options) -> Pictures:
    """Return the pictures that the options ask for, at the spec's size. Raises UserError."""
    return draw_pictures(options.images, spec, count=options.count, seed=options.seed)


def calibrate(
    model: onnx.ModelProto,
    spec: DetectorSpec,
    pictures: Pictures,
    options: Int8Options,
    *,
    progress: Progress | None = None,
) -> Calibrated:
    """Run raw heads on the pictures; `progress(inputs, total)` passes the inputs on.

    Raises UserError for a layer name that means none.
    """
    layers_of(model, spec, options.exclude)  # a wrong name is said before the long work
    tensors = tensors_of(model, layers_of(model, spec))

    def run() -> dict[str, Histogram]:
        inputs = (normalise(spec, image) for image in pictures.images)
        return collect(model, tensors, progress(inputs, len(pictures.images)) if progress else inputs)

    return Calibrated(model, spec, pictures, cached(options.cache, model, pictures.digest, run))


def to_int8(
    model: onnx.ModelProto,
    spec: DetectorSpec,
    pictures: Pictures,
    options: Int8Options,
    *,
    progress: Progress | None = None,
) -> Quantized:
    """Return raw heads in INT8, with the essence of the record in their metadata. Raises UserError."""
    calibrated = calibrate(model, spec, pictures, options, progress=progress)
    layers = layers_of(model, spec, options.exclude)
    quantized = calibrated.quantize(options.calibrator, layers)
    how: dict[str, Any] = {"calibrator": options.calibrator}
    if options.calibrator == "percentile":
        how["percentile"] = PERCENTILE
    kept = {layer.name for layer in layers}
    how |= {
        "size": spec.size,
        "pictures": len(pictures.drawn),
        "pictures_sha256": pictures.digest,
        "quantized": len(layers),
        "excluded": [layer.name for layer in calibrated.layers if layer.name not in kept],
    }
    metadata = metadata_of(quantized) | {METADATA_PRECISION: "int8", METADATA_CALIBRATION: json.dumps(how)}
    onnx.helper.set_model_props(quantized, metadata)
    return Quantized(quantized, {**how, "layers": [layer.name for layer in layers], "pictures": pictures.record()})
