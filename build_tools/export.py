"""The one call from a checkpoint to a deployable graph.

    export_detector(Path("model.pth"), Path("model.onnx"))
    export_detector(Path("model.pth"), Path("model.onnx"), ExportOptions(size=(640, 640)))

It joins the checkpoint and the export of the heads, left of this folder, with the graft. It writes no Triton
repository (build_tools/repository.py).
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from build_tools.graft import Flavour


@dataclass(frozen=True)
class ExportOptions:
    """What becomes of the checkpoint."""

    size: tuple[int, int] | None = None  # H, W; the checkpoint's own if None
    flavour: "Flavour" = "standard"


def export_detector(checkpoint: Path, output: Path, options: ExportOptions | None = None) -> None:
    """Write a checkpoint as a grafted ONNX file at `output`, whole or not at all. Raises UserError."""
    from build_tools.graft import graft, save
    from training.checkpoint import load_model
    from training.export import export_heads

    options = options or ExportOptions()
    spec, model = load_model(checkpoint)
    if options.size:
        spec = spec.with_size(*options.size)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="retinaserve-") as scratch:
        raw = Path(scratch) / "heads.onnx"
        export_heads(model, spec, raw)
        save(graft(raw, flavour=options.flavour), output)
