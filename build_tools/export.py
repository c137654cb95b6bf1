"""The one call from a checkpoint to a deployable graph.

    export_detector(Path("model.pth"), Path("model.onnx"))
    export_detector(Path("model.pth"), Path("model.onnx"), ExportOptions(int8=Int8Options(Path("train/"))))

It joins the checkpoint and the export of the heads, left of this folder, with quantization and graft. It writes no
Triton repository (build_tools/repository/builder.py).
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from retinaserve.training.errors import Exit, UserError
from retinaserve.training.spec import METADATA_CHECKPOINT, DetectorSpec

if TYPE_CHECKING:
    from retinaserve.build_tools.graph.graft import Flavour
    from retinaserve.build_tools.quantize.calibrate import Int8Options, Progress
    from retinaserve.training.model.retinanet import RetinaNet

__all__ = ["ExportOptions", "export_detector"]

Precision = Literal["fp32", "fp16", "int8"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")


@dataclass(frozen=True)
class ExportOptions:
    """What becomes of the checkpoint."""

    size: tuple[int, int] | None = None  # H, W; the checkpoint's own if None
    flavour: "Flavour" = "standard"
    int8: "Int8Options | None" = None  # float if None
    half: bool = False  # what is in float otherwise, in FP16; on GPUs, INT8 too stands best among FP16

    @property
    def precision(self) -> Precision:
        """What the network computes in."""
        if self.int8:
            return "int8"
        return "fp16" if self.half else "fp32"


def export_detector(
    checkpoint: Path,
    output: Path,
    options: ExportOptions | None = None,
    *,
    progress: "Progress | None" = None,
) -> dict[str, Any]:
    """Write a checkpoint as a grafted ONNX file at `output`, whole or not at all, and return the calibration
    record.

    The record is empty for a float graph, and stored beside an INT8 one. Raises UserError.
    """
    import onnx

    from retinaserve.build_tools.graph.float16 import to_float16
    from retinaserve.build_tools.graph.graft import graft
    from retinaserve.build_tools.quantize.calibrate import draw, to_int8
    from retinaserve.training.export import heads_graph
    from retinaserve.training.files import sha256, whole

    options = options or ExportOptions()
    record: dict[str, Any] = {}
    spec, network = load_network(checkpoint, options.size)
    # Before the heads are traced: images are what a user gets wrong first.
    images = draw(spec, options.int8) if options.int8 else None
    stored = record_path(output)
    with whole(output, *([stored] if images else [])) as (partial, *partial_record):
        origin = {METADATA_CHECKPOINT: sha256(checkpoint)}
        raw = heads_graph(network, spec, metadata=origin)
        if options.int8 and images:
            raw, record = to_int8(raw, spec, images, options.int8, progress=progress)
        if options.half:
            raw, _ = to_float16(raw, source=str(checkpoint))
        onnx.save(graft(raw, flavour=options.flavour), partial)
        for file in partial_record:
            file.write_text(json.dumps(record, indent=2) + "\n")
    if not record:
        stored.unlink(missing_ok=True)  # of an INT8 graph that was here before
    return record


def load_network(checkpoint: Path, size: tuple[int, int] | None = None) -> tuple[DetectorSpec, "RetinaNet"]:
    """Return a checkpoint's spec, at another size if one is given, and its network. Raises UserError."""
    from retinaserve.training.checkpoint import load_model

    spec, network = load_model(checkpoint)
    if size:
        check_size(spec, size)
        spec = spec.with_size(*size)
    return spec, network


def check_size(spec: DetectorSpec, size: tuple[int, int]) -> None:
    """Raise UserError unless the sides are multiples of the largest stride, or the size is the checkpoint's."""
    stride = max(spec.strides)
    if size != spec.size and any(side % stride for side in size):
        height, width = (max(stride, round(side / stride) * stride) for side in size)
        raise UserError(
            f"--size {size[0]} {size[1]}: both sides have to be multiples of {stride}, the largest stride",
            f"{height} {width} is near; the checkpoint's own size is {spec.size[0]} {spec.size[1]}",
            code=Exit.USAGE,
        )


def record_path(artefact: Path) -> Path:
    """Return where the calibration record of an artefact lies."""
    return artefact.with_suffix(".calibration.json")
