"""The `config.pbtxt` of each model: read, written, and specialised for one detector.

    config = read_config(Path("repository/detector/config.pbtxt"))
    write_config(path, config)
    configs = specialise(spec, "cpu", BuildOptions(), image_bytes=20_000)    # by model

The schema is that of tritonclient, which is as old as the embedded server (2.51), and the fields that came later
and that we set. Reading goes by it, so that what Triton would refuse fails here.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import product
from pathlib import Path
from typing import Any, Literal

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from tritonclient.grpc import model_config_pb2

from retinaserve.build_tools.engine.manifest import Manifest
from retinaserve.build_tools.openvino_cpu import HINTS
from retinaserve.build_tools.preprocess import MAX_BYTES, MAX_PIXELS
from retinaserve.plugins.tiles import OVERLAP
from retinaserve.training import spec as contract
from retinaserve.training.errors import Exit, UserError
from retinaserve.training.files import write_text
from retinaserve.training.spec import DetectorSpec, Tensor

Profile = Literal["cpu", "gpu"]
MODELS: Mapping[str, tuple[str, ...]] = {
    "cpu": (contract.PREPROCESS, contract.RETINANET, contract.DETECTOR),
    "gpu": (contract.ADMISSION, contract.PREPROCESS, contract.RETINANET, contract.DETECTOR),
}
TEMPLATES = Path(__file__).parents[2] / "model_repository"
DEFAULT_BATCH = 4  # on CPUs: cores take images one by one, and more would only be decoded earlier
# The output convolutions of an INT8 graph are float and, in fp32, take as long as all the others together.
INT8_ARITHMETIC = "bf16"
# Versions of Triton: that of the nvidia-pytriton wheel, the oldest that is built for, and that of container 26.08.
EMBEDDED, PRODUCTION = (2, 51), (2, 72)
WARMUP = (480, 640)  # h, w of the image that models are warmed up with
# Triton's version by container, from NVIDIA's release notes; a month in which it counted on by one is left out.
CONTAINERS = {(24, 10): (2, 51), (25, 6): (2, 59), (25, 7): (2, 59), (25, 8): (2, 60)}
POOLED = {model_config_pb2.TYPE_UINT8: 1, model_config_pb2.TYPE_FP32: 4}  # bytes of what `preprocess` answers
POOL_STEP, LEAST_POOL = 512, 64 << 20  # the unit of Triton's allocator, and its pool where nobody asks for another
MAX_INFLIGHT_SINCE = (2, 63)  # container 25.11; an older server refuses a config with a field it does not know
TYPES = {"int32": "TYPE_INT32", "float32": "TYPE_FP32", "uint8": "TYPE_UINT8"}  # of training/spec.py
UINT32 = descriptor_pb2.FieldDescriptorProto.TYPE_UINT32
OPTIONAL = descriptor_pb2.FieldDescriptorProto.LABEL_OPTIONAL
# Message, field, number, type: from model_config.proto of triton-inference-server/common.
LATER_FIELDS = (("ModelEnsembling", "max_inflight_requests", 2, UINT32),)


def _model_config() -> Any:
    """Return the class ModelConfig of tritonclient's schema with LATER_FIELDS in it."""
    schema = descriptor_pb2.FileDescriptorProto()
    model_config_pb2.DESCRIPTOR.CopyToProto(schema)
    messages = {message.name: message for message in schema.message_type}
    for message, name, number, kind in LATER_FIELDS:
        if name not in {field.name for field in messages[message].field}:  # a newer tritonclient has it
            messages[message].field.add(name=name, number=number, type=kind, label=OPTIONAL, json_name=name)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(schema)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{schema.package}.ModelConfig"))


ModelConfig = _model_config()
STRING = re.compile(r'"(?:\\.|[^"\\])*"')


def read_config(path: Path) -> Any:
    """Parse a config.pbtxt with Triton's own schema. Raises UserError with the line that is wrong."""
    try:
        return text_format.Parse(path.read_text(), ModelConfig())
    except FileNotFoundError:
        raise UserError(f"{path}: no such file", "a Triton repository has one config a model") from None
    except text_format.ParseError as error:
        raise UserError(f"{path}: {error}") from None


def write_config(path: Path, config: Any) -> None:
    """Write a config as text, as Triton reads it, and leave the comments of the file that is there.

    A server that looks meanwhile sees the old one.
    """
    text = text_format.MessageToString(config, as_utf8=True)
    write_text(path, _with_comments(path, config, text) if path.is_file() else text)


def _with_comments(path: Path, config: Any, text: str) -> str:
    """Return the file with what changes in it changed; its comments and the new text where that is not enough."""
    lines = path.read_text().splitlines()
    # Where comments begin, or -1.
    begins = [STRING.sub(lambda match: " " * len(match[0]), line).find("#") for line in lines]
    if max(begins, default=-1) < 0:
        return text
    bare = [(line if begin < 0 else line[:begin]).strip() for line, begin in zip(lines, begins, strict=True)]
    before, after = text_format.MessageToString(read_config(path), as_utf8=True).splitlines(), text.splitlines()
    same = SequenceMatcher(None, [line.strip() for line in before], bare, autojunk=False).get_matching_blocks()
    place = {block.a + step: block.b + step for block in same for step in range(block.size)}
    edited = list(lines)
    changes = SequenceMatcher(None, before, after, autojunk=False).get_opcodes()
    for kind, start, stop, first, last in reversed(changes):
        if kind == "equal":
            continue
        if any(line not in place for line in range(max(0, start - 1), stop)):
            break
        begin = place[start] if start < stop else place[start - 1] + 1
        end = place[stop - 1] + 1 if start < stop else begin
        comments = [line for line in lines[begin:end] if line.strip().startswith("#")]
        edited[begin:end] = [*comments, *after[first:last]]
    merged = "\n".join(edited) + "\n"
    try:
        if text_format.Parse(merged, ModelConfig()) == config:
            return merged
    except text_format.ParseError:
        pass
    comments = [line[begin:] for line, begin in zip(lines, begins, strict=True) if begin >= 0]
    return "\n".join([*comments, text])


@dataclass(frozen=True)
class BuildOptions:
    """What the deployer chooses; everything else comes from the model."""

    arithmetic: str = "fp32"  # what the CPU computes in where the graph is float: fp32, or bf16 if it can
    max_batch: int | None = None  # 4, or the largest that a plan takes
    max_image_bytes: int = MAX_BYTES
    max_image_pixels: int = MAX_PIXELS
    full_decode: bool = False  # CPU profile: all pixels of a JPEG, as the GPU's decoder does
    triton: tuple[int, int] = PRODUCTION  # GPU profile: the server that it is for
    max_queue: int | None = None  # CPU profile: requests that wait, at most; the template's, or two batches
    tile: tuple[int, int] | Literal["auto"] | None = None  # of `detector_tiled`; auto: as trained, or the input
    overlap: float = OVERLAP  # of its tiles
    max_inflight: int = 0  # GPU profile: requests between two steps of the ensemble, at most; 0: no limit
    asked: frozenset[str] = frozenset()  # those that were asked for with the value above: they change a repository


def specialise(
    spec: DetectorSpec,
    profile: Profile,
    options: BuildOptions,
    *,
    image_bytes: int,
    precision: str = "fp32",
    identity: Mapping[str, str] | None = None,
    manifest: Manifest | None = None,
) -> dict[str, Any]:
    """Return the profile's configs (ModelConfig by model name) made for one detector.

    `image_bytes` is the length of the encoded warm-up image, which Triton wants as a dimension, `precision`
    the graph's, `identity` the hashes that a client is told. The GPU profile needs the plan's manifest. Raises
    UserError where configs, model and target do not fit together.
    """
    max_batch = options.max_batch or (manifest.batch[2] if manifest else DEFAULT_BATCH)
    encoded = Tensor("uint8", (image_bytes,))
    tensors = spec.inputs | spec.outputs
    sample = spec.resizing.canvas(spec.resizing.resized(WARMUP, spec.size), spec.size)
    parameters = _parameters(spec, profile, options, precision, manifest)
    for key, text in (identity or {}).items():
        parameters[contract.DETECTOR][key] = text
    configs = {}
    for name in MODELS[profile]:
        config = read_config(template(profile, name) / "config.pbtxt")
        config.max_batch_size = max_batch
        if profile == "cpu" and config.dynamic_batching.HasField("default_queue_policy"):
            # Two full batches keep the engine busy.
            policy = config.dynamic_batching.default_queue_policy
            policy.max_queue_size = options.max_queue or max(policy.max_queue_size, 2 * max_batch)
        if name in (contract.RETINANET, contract.DETECTOR):
            _write_outputs(config, spec)
        for tensor in (*config.input, *config.output):
            if tensor.name in tensors:
                tensor.dims[:] = tensors[tensor.name].shape
                tensor.data_type = _data_type(tensors[tensor.name])
        if profile == "cpu" and name == contract.RETINANET and not spec.resizing.fixed:
            # The python backend gets requests one by one; TensorRT's takes batches of one canvas.
            next(each for each in config.input if each.name == contract.IMAGE).allow_ragged_batch = True
        _write_warmup(config, {**spec.inputs, contract.IMAGE_BYTES: encoded}, sample)
        for key, text in parameters[name].items():
            config.parameters[key].string_value = text
        if profile == "gpu" and name == contract.RETINANET and not spec.resizing.fixed:
            config.instance_group[0].profile[:] = ["0", "1"]  # landscape, portrait: engine/builder.py
        if config.optimization.cuda.graphs:
            _write_graph_specs(config, spec, sample)
        configs[name] = config
    if options.tile:
        configs[contract.DETECTOR_TILED] = _tiled(spec, configs[contract.DETECTOR], options)
    if options.max_inflight:
        release = EMBEDDED if profile == "cpu" else options.triton
        if release < MAX_INFLIGHT_SINCE:
            raise UserError(
                f"{contract.DETECTOR}/config.pbtxt: Triton {version_text(release)} does not know "
                "ensemble_scheduling.max_inflight_requests (known from Triton "
                f"{version_text(MAX_INFLIGHT_SINCE)}, container 25.11, on)",
                "leave it out, or build for a later server with --triton-version",
                code=Exit.USAGE,
            )
        configs[contract.DETECTOR].ensemble_scheduling.max_inflight_requests = options.max_inflight
    return configs


def _data_type(tensor: Tensor) -> Any:
    return model_config_pb2.DataType.Value(TYPES[tensor.dtype])


def _write_outputs(config: Any, spec: DetectorSpec) -> None:
    """Write the detector's outputs before those that the template states, and pass them through an ensemble."""
    stated = list(config.output)
    del config.output[:]
    for name, tensor in spec.outputs.items():
        config.output.add(name=name, data_type=TYPES[tensor.dtype], dims=tensor.shape)
    config.output.extend(stated)
    for step in config.ensemble_scheduling.step:
        if step.model_name == contract.RETINANET:
            step.output_map.update({name: name for name in spec.outputs})


def _write_warmup(config: Any, tensors: Mapping[str, Tensor], canvas: tuple[int, int]) -> None:
    """Write the dimensions of the warm-up image, and those of an upright one where canvases differ."""
    open_canvas = -1 in tensors[contract.IMAGE].shape
    for sample in tuple(config.model_warmup):
        for key, value in sample.inputs.items():
            value.dims[:] = (3, *canvas) if key == contract.IMAGE else tensors[key].shape
            value.data_type = _data_type(tensors[key])
        if open_canvas and contract.IMAGE in sample.inputs:
            upright = config.model_warmup.add()
            upright.CopyFrom(sample)
            upright.name += " upright"
            upright.inputs[contract.IMAGE].dims[:] = (3, *canvas[::-1])


def template(profile: Profile, name: str) -> Path:
    """Return the folder that a model is made from; `detector_tiled` is the same in both profiles."""
    return TEMPLATES / ("cpu" if name == contract.DETECTOR_TILED else profile) / name


def _tiled(spec: DetectorSpec, detector: Any, options: BuildOptions) -> Any:
    """Return the config of `detector_tiled`, which tells clients what `detector` tells them."""
    config = read_config(template("cpu", contract.DETECTOR_TILED) / "config.pbtxt")
    for key, value in detector.parameters.items():
        config.parameters[key].string_value = value.string_value
    tile = (spec.tile or spec.size) if options.tile == "auto" else options.tile
    config.parameters["tile"].string_value = json.dumps(tile)
    config.parameters["overlap"].string_value = json.dumps(options.overlap)
    return config


def _parameters(
    spec: DetectorSpec, profile: Profile, options: BuildOptions, precision: str, manifest: Manifest | None
) -> dict[str, dict[str, str]]:
    """Return the parameters that depend on the detector, by model."""
    limits = {name: str(getattr(options, name)) for name in ("max_image_bytes", "max_image_pixels")}
    rule = {} if spec.resize == contract.Design.resize_rule else {"resize": spec.resize}
    preparation = {"size": json.dumps(spec.size), "fill": json.dumps(spec.pad_value), **rule}
    values = {"value_range": json.dumps(spec.value_range)} if spec.value_range else {}
    detector = {
        "classes": json.dumps(spec.classes, ensure_ascii=False),
        "category_ids": json.dumps(spec.category_ids),
        "size": json.dumps(spec.size),
        **rule,
        "score_threshold": repr(spec.score_threshold),
        **({"tile": json.dumps(spec.tile)} if spec.tile else {}),
        **values,
        **limits,
    }
    if profile == "cpu":
        decode = {"decode": "full" if options.full_decode else "scaled"}
        return {
            contract.PREPROCESS: preparation | values | limits | decode,
            contract.RETINANET: {"precision": HINTS[options.arithmetic], "graph": precision},
            contract.DETECTOR: detector,
        }
    if manifest is None:
        raise UserError("the gpu profile needs the manifest of the plan", "a plan written by `retinaserve export`")
    if manifest.batch[0] != 1:
        raise UserError(
            f"the plan takes no batch below {manifest.batch[0]}, and a lone request makes a batch of 1",
            "build it again: retinaserve export --batch 1 OPT MAX",
        )
    built = ("precision", "tensorrt", "compute_capability")
    return {
        contract.ADMISSION: values | limits,
        contract.PREPROCESS: preparation,
        contract.RETINANET: {key: getattr(manifest, key) for key in built},
        contract.DETECTOR: detector,
    }


def _write_graph_specs(config: Any, spec: DetectorSpec, canvas: tuple[int, int]) -> None:
    """Write a CUDA graph for each power of two up to the largest batch, and for that one.

    Each serves the sizes between it and the one before, so that no batch runs without a graph. Of a network that
    takes any canvas, photos of four by three in both orientations have graphs.
    """
    canvases = [canvas] if spec.resizing.fixed else [canvas, canvas[::-1]]
    most = config.max_batch_size
    sizes = [*(2**power for power in range(most.bit_length()) if 2**power < most), most]
    del config.optimization.cuda.graph_spec[:]
    for (before, size), sides in product(zip([0, *sizes], sizes, strict=False), canvases):
        graph = config.optimization.cuda.graph_spec.add(batch_size=size)
        bounds = [graph] if before + 1 == size else [graph, graph.graph_lower_bound]
        if before + 1 < size:
            graph.graph_lower_bound.batch_size = before + 1
        for name, tensor in spec.inputs.items():
            for bound in bounds:
                bound.input[name].dim[:] = (3, *sides) if name == contract.IMAGE else tensor.shape


def cuda_pool_bytes(configs: Mapping[str, Any]) -> int:
    """Return the bytes of GPU memory that images take between two models: --cuda-memory-pool-byte-size.

    Triton's own 64 MiB do not grow: what finds no room goes through the host and back, with one warning in the
    log. There are as many images as wait, and a batch for every instance: two at `retinanet`, which gathers the
    next one while it computes.
    """
    preprocess, retinanet = configs[contract.PREPROCESS], configs[contract.RETINANET]
    count = {name: sum(group.count for group in configs[name].instance_group) for name in configs}
    batches = count[contract.PREPROCESS] + count[contract.RETINANET] * (1 + retinanet.optimization.eager_batching)
    images = retinanet.dynamic_batching.default_queue_policy.max_queue_size + batches * retinanet.max_batch_size
    sizes = [math.prod(tensor.dims) * POOLED[tensor.data_type] for tensor in preprocess.output]
    return max(LEAST_POOL, int(images * sum(-(-size // POOL_STEP) * POOL_STEP for size in sizes)))


def triton_version(text: str) -> tuple[int, int]:
    """Read a version of Triton (2.69, 2.69.0) or of its container (26.05, 26.05-py3). Raises UserError."""
    match = re.fullmatch(r"v?(\d{1,2})\.(\d{1,2})(?:\.\d+|-.*)?", text.strip())
    if not match:
        raise UserError(
            f"{text!r} is no version of Triton",
            "a version like 2.69, or a container's like 26.05, is expected",
            code=Exit.USAGE,
        )
    version = year, month = int(match[1]), int(match[2])
    if year > PRODUCTION[0]:
        if not 1 <= month <= 12:
            raise UserError(
                f"{year}.{month:02} is no version of Triton's container", "a year and a month", code=Exit.USAGE
            )
        # Containers come monthly, and Triton counts on by one each, with the exceptions in CONTAINERS.
        known = max((each for each in CONTAINERS if each <= version), default=min(CONTAINERS))
        major, minor = CONTAINERS[known]
        version = major, minor + (year - known[0]) * 12 + month - known[1]
    if version < EMBEDDED:
        raise UserError(
            f"Triton {text} is older than what repositories are built for",
            f"{version_text(EMBEDDED)} (24.10) or later is expected",
            code=Exit.USAGE,
        )
    return version


def version_text(version: tuple[int, int]) -> str:
    """Return a version as Triton writes it."""
    return f"{version[0]}.{version[1]}"
