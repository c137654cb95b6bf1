"""From a checkpoint to a deployable graph or plan.

export("model.pth", "model.onnx")
export("model.pth", "model.onnx", precision="int8", calibration_images="train/")
export("model.pth", "model.plan", precision="fp16", engine=EngineOptions(plugins=library))
"""

import copy
import json
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retinaserve.training.errors import Exit, UserError
from retinaserve.training.files import sha256, whole, write_json
from retinaserve.training.spec import (
    METADATA_CHECKPOINT,
    METADATA_CLASSES,
    METADATA_SPEC,
    NETWORK_INPUT,
    DetectorSpec,
)

if TYPE_CHECKING:
    import onnx
    from torch import nn

    from retinaserve.build_tools.engine.builder import BuiltPlan, EngineOptions
    from retinaserve.build_tools.engine.tensorrt import Progress as BuildProgress
    from retinaserve.build_tools.graph.graft import Flavour
    from retinaserve.build_tools.graph.onnx_io import Precision
    from retinaserve.build_tools.quantize.calibrate import Int8Options, Progress
    from retinaserve.training.model.retinanet import RetinaNet

OPSET = 18  # torch's exporter's own; ONNX Runtime, OpenVINO and TensorRT 10 and later all parse it
TRACED = (256, 384)  # where sides are dynamic: multiples of every rule's, and of more than one cell on every level
CUTS = ("max_detections", "nms_iou", "score_threshold")  # what of the spec is decided after training

__all__ = ["ExportOptions", "Exported", "export", "export_detector"]


@dataclass(frozen=True)
class ExportOptions:
    """What becomes of the checkpoint."""

    size: tuple[int, int] | None = None  # H, W; the checkpoint's own if None
    flavour: "Flavour" = "standard"
    int8: "Int8Options | None" = None  # float if None
    half: bool = False  # what is in float otherwise, in FP16; on GPUs, INT8 too stands best among FP16
    # Of CUTS; the checkpoint's own where one is missing.
    cuts: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Exported:
    """What was written."""

    path: Path
    spec: DetectorSpec
    flavour: "Flavour"
    calibration: Mapping[str, Any]  # the record that lies beside an INT8 graph, or nothing
    plan: "BuiltPlan | None" = None


def export(
    model: str | Path,
    output: str | Path,
    *,
    size: tuple[int, int] | None = None,
    precision: "Precision" = "fp32",
    flavour: "Flavour | None" = None,
    calibration_images: "str | Path | Int8Options | None" = None,
    engine: "EngineOptions | None" = None,
    max_detections: int | None = None,
    nms_iou: float | None = None,
    score_threshold: float | None = None,
    progress: "Progress | None" = None,
    build_progress: "BuildProgress | None" = None,
) -> Exported:
    """Write a checkpoint as an ONNX graph, or as a TensorRT plan for this machine's GPU, as `output` ends.

    size: H, W, multiples of the largest stride, or the shorter and the longest side, as the checkpoint's resize
    rule has it; the checkpoint's own if None.
    precision: what the network computes in; decode and NMS are float always. With flavour "tensorrt", what is not
    INT8 of an int8 network is in FP16.
    flavour: decode and NMS in standard operators for any runtime, or in this project's TensorRT plugins;
    "tensorrt" for a plan and "standard" for a graph if None.
    calibration_images: for int8, a folder or a COCO JSON; Int8Options says more than that.
    engine: how a plan is built. `model` can be an exported graph there, which has its size and precision already.
    max_detections: of an image; nms_iou: of two boxes of a class that overlap more, the weaker goes;
    score_threshold: what scores less is left out. The checkpoint's own if None.
    progress, build_progress: pass calibration's images on; are called with a build's share and phase.

    Raises UserError; the output appears whole or not at all.
    """
    model, output = Path(model), Path(output)
    if output.suffix not in (".onnx", ".plan"):
        raise UserError(f"{output}: a file name that ends in .onnx or .plan is expected", code=Exit.USAGE)
    if precision == "int8" and calibration_images is None:
        raise UserError("INT8 needs calibration_images", "a folder of images, or a COCO JSON", code=Exit.USAGE)
    flavour = flavour or ("tensorrt" if output.suffix == ".plan" else "standard")
    int8 = None
    if precision == "int8" and calibration_images:
        from retinaserve.build_tools.quantize.calibrate import Int8Options

        images = calibration_images
        int8 = images if isinstance(images, Int8Options) else Int8Options(Path(images))
    half = precision == "fp16" or (precision == "int8" and flavour == "tensorrt")
    cuts = zip(CUTS, (max_detections, nms_iou, score_threshold), strict=True)
    options = ExportOptions(size, flavour, int8, half, {name: cut for name, cut in cuts if cut is not None})
    if output.suffix == ".plan":
        return _export_plan(model, output, options, engine, progress, build_progress)

    from retinaserve.build_tools.graph.onnx_io import OnnxGraph

    record = export_detector(model, output, options, progress=progress)
    return Exported(output, OnnxGraph.read(output).spec, flavour, record)


def _export_plan(
    model: Path,
    plan: Path,
    options: ExportOptions,
    engine: "EngineOptions | None",
    progress: "Progress | None",
    build_progress: "BuildProgress | None",
) -> Exported:
    from retinaserve.build_tools.engine.builder import EngineOptions, build_plan, load_tensorrt
    from retinaserve.build_tools.graph.onnx_io import OnnxGraph

    engine = engine or EngineOptions()
    trt = load_tensorrt()  # what is missing is named before the minutes that come first
    with tempfile.TemporaryDirectory(prefix="retinaserve-") as scratch:
        graph, record = model, {}
        if model.suffix != ".onnx":
            graph = Path(scratch) / "model.onnx"
            record = export_detector(model, graph, options, progress=progress)
        if not OnnxGraph.read(graph).custom_operators():
            engine = replace(engine, plugins=None)
        built = build_plan(graph, plan, engine, trt=trt, progress=build_progress)
    if record:
        write_json(record_path(plan), record)
    return Exported(plan, built.manifest.spec, options.flavour, record, built)


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

    options = options or ExportOptions()
    record: dict[str, Any] = {}
    spec, network = load_network(checkpoint, options.size)
    spec = replace(spec, **options.cuts)
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


def heads_graph(
    model: "nn.Module", spec: DetectorSpec, *, metadata: Mapping[str, str] | None = None
) -> "onnx.ModelProto":
    """Return the graph of a network's raw heads, which is where the graft begins; the model is left as it is.

    Dynamic batch, names from the spec, batch norms folded into the convolutions; at the spec's size, or for all
    canvases of its resize rule. The same model gives the same bytes on every machine.

    model: FP32 (B, 3, H, W) to a pair (class logits, box deltas) a level, as spec.head_names describes them.
    metadata: further metadata_props of the graph.
    """
    import onnx
    import torch

    model = copy.deepcopy(model).cpu().eval()
    size, sides, multiple = spec.size, {}, spec.resizing.multiple
    if not spec.resizing.fixed:
        size = TRACED
        sides = {2 + axis: multiple * torch.export.Dim(name) for axis, name in enumerate(("rows", "columns"))}
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            model,
            (torch.zeros(2, 3, *size),),  # a batch of one would be taken for a constant
            input_names=[NETWORK_INPUT],
            output_names=[name for pair in spec.head_names for name in pair],
            dynamic_shapes=({0: torch.export.Dim("batch"), **sides},),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None  # only the exporter of TorchScript returns nothing
    proto = program.model_proto
    graph = proto.graph
    # The exporter leaves stack traces and file names on every node.
    for item in (graph, *graph.node, *graph.initializer, *graph.input, *graph.output, *graph.value_info):
        item.ClearField("metadata_props")
        item.ClearField("doc_string")
    described = {METADATA_SPEC: spec.to_json(), METADATA_CLASSES: json.dumps(spec.classes)}
    onnx.helper.set_model_props(proto, {**(metadata or {}), **described})
    onnx.checker.check_model(proto, full_check=True)
    return proto


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's remarks on packages it does without and on its own deprecated calls."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def load_network(checkpoint: Path, size: tuple[int, int] | None = None) -> tuple[DetectorSpec, "RetinaNet"]:
    """Return a checkpoint's spec, at another size if one is given, and its network. Raises UserError."""
    from retinaserve.training.checkpoint import load_model

    spec, network = load_model(checkpoint)
    if size:
        check_size(spec, size)
        spec = spec.with_size(*size)
    return spec, network


def check_size(spec: DetectorSpec, size: tuple[int, int]) -> None:
    """Raise UserError unless the sides are multiples of the largest stride, or the size is the checkpoint's.

    A rule that makes canvases of each image's own size sees to that itself.
    """
    if not spec.resizing.fixed:
        return
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
