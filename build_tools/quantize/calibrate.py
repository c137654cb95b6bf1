"""From float heads and real images to INT8 heads, and the record of how they came about.

    options = Int8Options(Path("train/"), calibrator="percentile")
    images = draw(spec, options)    # as they are served: resized by the spec's rule
    model, record = to_int8(raw_model, spec, images, options)

Files that can't be read are named and replaced by others of the set; a set without a readable image is refused.
"""

import hashlib
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from retinaserve.build_tools.graph.onnx_io import metadata_of
from retinaserve.build_tools.preprocess import BadImage, Decoding, Preprocessor
from retinaserve.build_tools.quantize.qdq import Layer, layers_of, quantize, tensors_of
from retinaserve.build_tools.quantize.ranges import (
    PERCENTILE,
    THRESHOLDS,
    Calibrator,
    Histogram,
    cached,
    collect,
    normalise,
)
from retinaserve.training.check.findings import refuse_errors
from retinaserve.training.coco import read_labels
from retinaserve.training.errors import UserError
from retinaserve.training.images.letterbox import SUFFIXES, Canvas
from retinaserve.training.spec import METADATA_CALIBRATION, METADATA_PRECISION, DetectorSpec

Inputs = Iterator[npt.NDArray[np.float32]]
Progress = Callable[[Inputs, int], Inputs]
COUNT = 300
DECODED_AT_ONCE = 16
SHOWN = 3
DECODING = Decoding()


@dataclass(frozen=True)
class Int8Options:
    """Which images are looked at, and what is made of them."""

    images: Path  # a folder, or a COCO JSON
    count: int = COUNT
    calibrator: Calibrator = "minmax"
    seed: int = 0
    exclude: tuple[str, ...] = ()  # layers that stay in float
    cache: Path | None = None  # a folder
    decoding: Decoding = DECODING


@dataclass(frozen=True, eq=False)
class Drawn:
    """What was drawn of a set: `images` (3, H, W) RGB each, resized as they are served."""

    source: Path
    seed: int
    available: int  # files of the set
    images: Sequence[Canvas]
    files: Mapping[str, str]  # the SHA-256 of each file by its name in the set, in the images' order
    unreadable: Mapping[str, str]  # the reason by the name

    @property
    def digest(self) -> str:
        """The hash of the prepared images, whatever their names and their order on disk."""
        found = hashlib.sha256()
        for image in self.images:
            found.update(image.tobytes())
        return found.hexdigest()

    def record(self) -> dict[str, Any]:
        """Return the list for JSON, with its hash."""
        return {
            "source": str(self.source),
            "available": self.available,
            "seed": self.seed,
            "count": len(self.files),
            "sha256": self.digest,
            "images": [{"file": name, "sha256": sha256} for name, sha256 in self.files.items()],
            "unreadable": [{"file": name, "reason": reason} for name, reason in self.unreadable.items()],
        }


@dataclass(frozen=True, eq=False)
class Calibrated:
    """Float heads and the ranges of their tensors: what any choice of layers and calibrator can be made from."""

    model: onnx.ModelProto
    spec: DetectorSpec
    histograms: dict[str, Histogram]

    def quantize(self, calibrator: Calibrator, layers: Sequence[Layer]) -> onnx.ModelProto:
        """Return the heads with these layers in INT8."""
        thresholds = {name: THRESHOLDS[calibrator](each) for name, each in self.histograms.items()}
        return quantize(self.model, self.spec, thresholds, layers)

    @property
    def layers(self) -> list[Layer]:
        """All layers that INT8 can be had for."""
        return layers_of(self.model, self.spec)


def draw(spec: DetectorSpec, options: Int8Options) -> Drawn:
    """Return images of a folder or a COCO JSON at the spec's size: as many as the options say, or all there are.

    Raises UserError where there are none, or none of them can be read.
    """
    files = image_files(options.images)
    names = sorted(files)
    random.Random(options.seed).shuffle(names)  # before the cut: the first files of a folder are often of one kind
    preprocessor = Preprocessor(**spec.preprocessing, max_batch=DECODED_AT_ONCE, decoding=options.decoding)
    images: list[Canvas] = []
    drawn: dict[str, str] = {}
    unreadable: dict[str, str] = {}
    rest = iter(names)
    while missing := options.count - len(drawn):
        chunk = list(islice(rest, min(DECODED_AT_ONCE, missing)))
        if not chunk:
            break
        encoded: dict[str, bytes] = {}
        for name in chunk:
            try:
                encoded[name] = files[name].read_bytes()
            except OSError as error:
                unreadable[name] = f"the file can't be read: {error.strerror}"
        for (name, data), result in zip(encoded.items(), preprocessor.run(list(encoded.values())), strict=True):
            if isinstance(result, BadImage):
                unreadable[name] = result.message
            else:
                images.append(result.image)
                drawn[name] = hashlib.sha256(data).hexdigest()
    if not drawn:
        first = [f"{name}: {reason}" for name, reason in islice(unreadable.items(), SHOWN)]
        raise UserError(
            f"{options.images}: none of its {len(files)} images can be read", f"the first are: {'; '.join(first)}"
        )
    return Drawn(options.images, options.seed, len(files), images, drawn, unreadable)


def image_files(source: Path) -> dict[str, Path]:
    """Return the images of a folder, with all below it, or of a COCO JSON, by name. Raises UserError.

    The images of a JSON lie beside it, in `images` beside it, or in `images` beside its folder.
    """
    if source.is_dir():
        found = (path for path in source.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
        files = {path.relative_to(source).as_posix(): path for path in found}
        if not files:
            raise UserError(
                f"{source}: no images to calibrate with in this folder",
                f"suffixes: {' '.join(sorted(SUFFIXES))}",
            )
        return files
    if not source.is_file():
        raise UserError(
            f"{source}: no such folder or file",
            "quantization needs real images: a folder of them, or a COCO JSON that names them",
        )
    labels = read_labels(source, lists=("images",))
    refuse_errors(labels.findings, source)
    names = list(labels.images.values())
    folders = (source.parent, source.parent / "images", source.parent.parent / "images")
    for folder in folders:
        files = {name: folder / name for name in names if (folder / name).is_file()}
        if files:
            return files
    raise UserError(
        f"{source}: none of the {len(names)} images it names is there",
        f"looked in {', '.join(map(str, dict.fromkeys(folders)))}; images elsewhere: name their folder instead",
    )


def calibrate(
    model: onnx.ModelProto,
    spec: DetectorSpec,
    drawn: Drawn,
    options: Int8Options,
    *,
    progress: Progress | None = None,
) -> Calibrated:
    """Run raw heads on the images; `progress(inputs, total)` passes the inputs on.

    Raises UserError for a layer name that means none.
    """
    layers_of(model, spec, options.exclude)  # a wrong name is named before the long work
    tensors = tensors_of(model, layers_of(model, spec))

    def run() -> dict[str, Histogram]:
        inputs = (normalise(spec, image) for image in drawn.images)
        return collect(model, tensors, progress(inputs, len(drawn.images)) if progress else inputs)

    return Calibrated(model, spec, cached(options.cache, model, drawn.digest, run))


def to_int8(
    model: onnx.ModelProto,
    spec: DetectorSpec,
    drawn: Drawn,
    options: Int8Options,
    *,
    progress: Progress | None = None,
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """Return raw heads in INT8, with the essence of the record in their metadata, and the record for JSON.

    Raises UserError for a layer name that means none.
    """
    calibrated = calibrate(model, spec, drawn, options, progress=progress)
    layers = layers_of(model, spec, options.exclude)
    quantized = calibrated.quantize(options.calibrator, layers)
    names = [layer.name for layer in layers]
    how: dict[str, Any] = {
        "calibrator": options.calibrator,
        **({"percentile": PERCENTILE} if options.calibrator == "percentile" else {}),
        "size": spec.size,
        "pictures": len(drawn.files),
        "pictures_sha256": drawn.digest,
        "quantized": len(names),
        "excluded": [layer.name for layer in calibrated.layers if layer.name not in names],
    }
    stated = {METADATA_PRECISION: "int8", METADATA_CALIBRATION: json.dumps(how)}
    onnx.helper.set_model_props(quantized, metadata_of(quantized) | stated)
    return quantized, {**how, "layers": names, "pictures": drawn.record()}
