"""A graph becomes a plan for the GPU of this machine, with its manifest beside it.

    built = build_plan(Path("model.onnx"), Path("model.plan"), EngineOptions(batch=(1, 8, 16), plugins=library))
    built.manifest.compute_capability, built.engine.report.fallen

A plan runs on one kind of GPU and one release of TensorRT: it is built where it is served, in the container that
serves it. What it was built from and for is in the manifest, which `build` and `doctor` check.
"""

import os
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256 as hashed
from pathlib import Path
from typing import Any

from retinaserve.build_tools.engine.builder import Engine, EngineOptions, build_engine, load_tensorrt
from retinaserve.build_tools.engine.gpu import find_gpus, tensorrt_cuda
from retinaserve.build_tools.engine.listeners import Progress
from retinaserve.build_tools.engine.manifest import Manifest, write_plan
from retinaserve.build_tools.graph.onnx_io import calibration_sha256, load_graph, precision_of, read_spec
from retinaserve.training.errors import UserError
from retinaserve.training.files import sha256


@dataclass(frozen=True)
class BuiltPlan:
    """The engine that was built, and what was written beside it."""

    manifest: Manifest
    engine: Engine


def build_plan(
    graph: Path,
    plan: Path,
    options: EngineOptions,
    *,
    trt: Any = None,
    progress: Progress | None = None,
) -> BuiltPlan:
    """Write a plan and its manifest, both or neither. `trt` is TensorRT's module if not the installed one.

    Raises UserError where TensorRT or a GPU is missing, for what TensorRT refuses, and where the disk is full.
    """
    model = load_graph(graph)
    spec = read_spec(model, str(graph))
    trt = trt or load_tensorrt()
    capability, gpu = _device(options)
    _check_room(plan, graph.stat().st_size)
    engine = build_engine(trt, graph, options, progress=progress)
    manifest = Manifest(
        spec=spec,
        precision=precision_of(model),
        batch=options.batch,
        tensorrt=trt.__version__,
        cuda=tensorrt_cuda(),
        compute_capability=capability,
        gpu=gpu,
        plan_sha256=hashed(engine.data).hexdigest(),
        onnx_sha256=sha256(graph),
        plugins_sha256=sha256(options.plugins) if options.plugins else "",
        calibration_sha256=calibration_sha256(model),
        builder=trt.__name__,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    write_plan(plan, engine.data, manifest)
    return BuiltPlan(manifest, engine)


def _device(options: EngineOptions) -> tuple[str, str]:
    """Return the compute capability that is built for, and the GPU's name."""
    if options.compute_capability:
        return options.compute_capability, ""
    gpus = find_gpus()
    if not gpus:
        raise UserError(
            "there is no GPU here, or no driver for it: a plan is built on the GPU that it is for",
            "an .onnx of the same options can be built anywhere and turned into a plan there",
        )
    return gpus[0].compute_capability, gpus[0].name


def _check_room(plan: Path, needed: int) -> None:
    """Refuse before the minutes of building what would fail after them; a plan is about as large as its graph."""
    folder = plan.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise UserError(f"{plan} could not be written: {error.strerror}") from None
    if not os.access(folder, os.W_OK):
        raise UserError(f"{plan} could not be written: {folder} is not writable")
    if free < needed:
        raise UserError(f"{plan} needs about {needed / 1e6:.0f} MB, {free / 1e6:.0f} MB are free")
