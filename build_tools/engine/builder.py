"""A graph becomes a TensorRT plan for the GPU of this machine, with its manifest beside it.

    built = build_plan(Path("model.onnx"), Path("model.plan"), EngineOptions(batch=(1, 8, 16), plugins=library))
    built.manifest.compute_capability, built.engine.report.fallen

A plan runs on one kind of GPU and one release of TensorRT: it is built where it is served, in the container that
serves it. The network is strongly typed: precision is the graph's, and TensorRT 10 and 11 build the same. The
module is handed in, because TensorRT for RTX has the same interface and needs no GPU: scripts/lab/compile_check.py
runs all of this with it.
"""

import importlib
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256 as hashed
from pathlib import Path
from typing import Any

import onnx

from retinaserve.build_tools.engine.manifest import Manifest, find_gpus, tensorrt_cuda, write_plan
from retinaserve.build_tools.engine.report import LayerReport, parse_inspector, parse_listing
from retinaserve.build_tools.engine.tensorrt import (
    Progress,
    interruptible,
    load_plugins,
    message_log,
    progress_monitor,
    tidy,
)
from retinaserve.build_tools.graph.detection import DOMAIN
from retinaserve.build_tools.graph.onnx_io import calibration_sha256, load_graph, precision_of, read_spec
from retinaserve.training.errors import Exit, UserError
from retinaserve.training.files import sha256, whole
from retinaserve.training.spec import DetectorSpec

OLDEST = (10, 12)  # the first TensorRT whose strongly typed networks take all of our graphs
RTX = "tensorrt_rtx"
INSTALL = {
    "tensorrt": "pip install 'retinaserve[gpu]' on a machine with an NVIDIA GPU, or NVIDIA's TensorRT container",
    RTX: "pip install tensorrt-rtx-cu12",
}


@dataclass(frozen=True)
class EngineOptions:
    """How to build."""

    batch: tuple[int, int, int] = (1, 8, 16)  # minimum, optimum, maximum
    plugins: Path | None = None  # our plugin library
    timing_cache: Path | None = None  # read if it is there, and written
    compute_capability: str = ""  # of TensorRT for RTX: build for this GPU rather than the one in the machine

    def __post_init__(self) -> None:
        low, best, high = self.batch
        if not 1 <= low <= best <= high:
            raise UserError(
                f"batch sizes {low} {best} {high}",
                "MIN OPT MAX are expected, 1 or more and none below the last",
                code=Exit.USAGE,
            )


@dataclass(frozen=True)
class Engine:
    """What was built."""

    data: bytes
    report: LayerReport
    seconds: float
    remarks: tuple[str, ...] = ()  # what a user should know, and could do nothing about while building


@dataclass(frozen=True)
class BuiltPlan:
    """The engine that was built, and what was written beside it."""

    manifest: Manifest
    engine: Engine


def load_tensorrt(name: str = "tensorrt") -> Any:
    """Import TensorRT. Raises UserError, which says how to get it, where it is missing or too old."""
    try:
        trt = importlib.import_module(name)
    except ImportError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"TensorRT can't be imported: {reason}", INSTALL[name]) from None
    version = tuple(int(part) for part in trt.__version__.split(".")[:2])
    if name == "tensorrt" and version < OLDEST:
        wanted = ".".join(map(str, OLDEST))
        raise UserError(f"TensorRT {trt.__version__} is installed, {wanted} or later is needed", INSTALL[name])
    return trt


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


def build_engine(trt: Any, graph: Path, options: EngineOptions, *, progress: Progress | None = None) -> Engine:
    """Build an engine. Raises UserError for whatever TensorRT refuses, and KeyboardInterrupt when interrupted."""
    model = load_graph(graph)
    _check(model, graph, options, trt)
    log = message_log(trt)
    if options.plugins:
        load_plugins(trt, options.plugins)
    builder, flags = trt.Builder(log), 0
    if trt.__name__ == "tensorrt" and trt.__version__.startswith("10."):
        # TensorRT 10 is told that types are the graph's; later they always are, and the flag is deprecated.
        flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(graph)):
        raise UserError(
            f"{graph}: NVIDIA's parser refuses {_parse_error(parser)}",
            "it is not of `retinaserve export`, or this TensorRT is too old",
        )
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    for profile in profiles(builder, network, options.batch, read_spec(model, str(graph))):
        config.add_optimization_profile(profile)
    if options.compute_capability:
        config.num_compute_capabilities = 1
        config.set_compute_capability(compute_capability(trt, options.compute_capability), 0)
    cache = _read_cache(config, options.timing_cache, log) if options.timing_cache else None
    monitor = progress_monitor(trt, progress or (lambda share, doing: None))
    config.progress_monitor = monitor
    started = time.perf_counter()
    with interruptible(monitor):
        serialized = builder.build_serialized_network(network, config)
    seconds = time.perf_counter() - started
    if monitor.failure:
        raise monitor.failure
    if monitor.cancelled:
        raise KeyboardInterrupt
    if serialized is None:
        raise UserError(f"{graph}: NVIDIA's builder refuses it: {log.first_error()}")
    if options.timing_cache and cache is not None:
        with whole(options.timing_cache) as (partial,):
            partial.write_bytes(bytes(config.get_timing_cache().serialize()))
    data = bytes(serialized)
    layers = parse_listing(log.listing) if options.compute_capability else _inspect(trt, data, log)
    report = LayerReport.of(model, layers)
    if report.unnamed:  # a plan is worth keeping that can't be read about: it took minutes to build
        count = f"{len(report.unnamed)} of {sum(report.asked.values())}"
        log.remarks.append(
            f"TensorRT names no layer for {count} convolutions ({report.unnamed[0]!r}, ...): "
            "their precision is not known; its notation may have changed with the version"
        )
    return Engine(data, report, seconds, tuple(log.remarks))


def _check(model: onnx.ModelProto, graph: Path, options: EngineOptions, trt: Any) -> None:
    """Refuse what TensorRT would refuse without a reason, and TensorRT for RTX by ending the process."""
    custom = sorted({node.op_type for node in model.graph.node if node.domain == DOMAIN})
    if custom and trt.__name__ == RTX:
        raise UserError(f"{graph} needs the plugins {' and '.join(custom)}, TensorRT for RTX takes none")
    if custom and not options.plugins:
        raise UserError(
            f"{graph} needs the plugins {' and '.join(custom)}",
            "name the library: --plugins build/plugins/libretinaserve_plugins.so",
        )
    low, _, high = options.batch
    for value in model.graph.input:
        size = value.type.tensor_type.shape.dim[0]
        if size.HasField("dim_value") and not low == high == size.dim_value:
            raise UserError(
                f"{graph}: input {value.name!r} has a fixed batch of {size.dim_value}, "
                f"batches of {low} to {high} are asked for",
                "export it again with a dynamic batch, or ask for "
                f"--batch {size.dim_value} {size.dim_value} {size.dim_value}",
            )


def profiles(builder: Any, network: Any, batch: tuple[int, int, int], spec: DetectorSpec) -> Iterator[Any]:
    """Yield an optimization profile of these batch sizes, or two where canvases differ: landscape and portrait.

    One for both would reserve memory for a square of the longest side, and be tuned for neither.
    """
    rule, size = spec.resizing, spec.size
    smallest, typical, largest = rule.canvas((1, 1), size), rule.typical(size), rule.largest(size)
    for turn in (1,) if rule.fixed else (1, -1):
        profile = builder.create_optimization_profile()
        for number in range(network.num_inputs):
            tensor = network.get_input(number)
            rest = tuple(tensor.shape)[1:]
            canvases = (smallest, typical[::turn], largest[::turn])
            shapes = [(rest[0], *canvas) if -1 in rest else rest for canvas in canvases]
            profile.set_shape(tensor.name, *((each, *shape) for each, shape in zip(batch, shapes, strict=True)))
        yield profile


def compute_capability(trt: Any, capability: str) -> Any:
    """Return TensorRT's constant for a compute capability. Raises UserError where it is no target of it."""
    known = trt.ComputeCapability.__members__
    name = f"SM{capability.replace('.', '')}"
    if name not in known:
        targets = ", ".join(f"{each[2:-1]}.{each[-1]}" for each in known if each.startswith("SM"))
        raise UserError(
            f"compute capability {capability} is no target of {trt.__name__}",
            f"one of: {targets}",
            code=Exit.USAGE,
        )
    return known[name]


def _read_cache(config: Any, path: Path, log: Any) -> Any:
    """Give the builder the timings of earlier builds; of another GPU or TensorRT they say nothing."""
    try:
        content = path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise UserError(f"timing cache {path} can't be read: {error.strerror}") from None
    cache = config.create_timing_cache(content)
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        log.remarks.append(f"timing cache {path} is of another GPU or TensorRT; it is begun anew")
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, ignore_mismatch=False)
    return cache


def _parse_error(parser: Any) -> str:
    if not parser.num_errors:
        return "it, without a reason"
    error = parser.get_error(0)
    what = f"node {error.node_name()!r} ({error.node_operator()})" if error.node_operator() else "it"
    return f"{what}: {tidy(error.desc())}"


def _inspect(trt: Any, data: bytes, log: Any) -> Any:
    log.errors.clear()
    runtime = trt.Runtime(log)
    engine = runtime.deserialize_cuda_engine(data)
    if engine is None:
        raise UserError(f"the engine was built and can't be read back: {log.first_error()}")
    text = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    return parse_inspector(text)


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
