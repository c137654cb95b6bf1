"""The one call from a checkpoint to a deployable graph.

    export_detector(Path("model.pth"), Path("model.onnx"))
    export_detector(Path("model.pth"), Path("model.onnx"), ExportOptions(int8=Int8Options(Path("train/"))))

It joins the checkpoint and the export of the heads, left of this folder, with quantization and graft. It writes no
Triton repository (build_tools/repository.py).
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from training.errors import Exit, UserError
from training.spec import DetectorSpec

if TYPE_CHECKING:
    from build_tools.graft import Flavour
    from build_tools.int8 import Int8Options, Progress

__all__ = ["ExportOptions", "export_detector"]

Precision = Literal["fp32", "int8"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "int8")


@dataclass(frozen=True)
class ExportOptions:
    """What becomes of the checkpoint."""

    size: tuple[int, int] | None = None  # H, W; the checkpoint's own if None
    flavour: "Flavour" = "standard"
    int8: "Int8Options | None" = None  # float if None

    @property
    def precision(self) -> Precision:
        """What the network computes in."""
        return "int8" if self.int8 else "fp32"


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

    from build_tools.calibration import picture_files
    from build_tools.graft import graft
    from build_tools.int8 import to_int8
    from build_tools.staging import staging

    options = options or ExportOptions()
    if options.int8:
        picture_files(options.int8.images)  # refuses what is not there, before the long work
    record: dict[str, Any] = {}
    with staging(output) as folder:
        spec, raw = export_raw(checkpoint, folder / "heads.onnx", options.size)
        if options.int8:
            quantized = to_int8(raw, spec, options.int8, progress=progress)
            raw, record = quantized.model, quantized.record
        onnx.save(graft(raw, flavour=options.flavour), folder / output.name)
        stored = record_path(output)
        if record:
            (folder / stored.name).write_text(json.dumps(record, indent=2) + "\n")
        (folder / output.name).replace(output)
        if record:
            (folder / stored.name).replace(stored)
        else:
            stored.unlink(missing_ok=True)  # of an INT8 graph that was here before
    return record


def export_raw(checkpoint: Path, heads: Path, size: tuple[int, int] | None = None) -> tuple[DetectorSpec, Any]:
    """Return the spec and the raw heads (an onnx.ModelProto) of a checkpoint, by way of the file `heads`."""
    import onnx

    from training.checkpoint import load_model
    from training.export import export_heads

    spec, model = load_model(checkpoint)
    if size:
        check_size(spec, size)
        spec = spec.with_size(*size)
    export_heads(model, spec, heads)
    return spec, onnx.load(heads)


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
