"""What a TensorRT plan was made of and for, in a file beside it; a plan itself says neither.

    write_plan(Path("model.plan"), engine, manifest)         # and model.plan.json
    read_manifest(Path("model.plan")).spec.classes
    check_plan(Path("model.plan"), Target(tensorrt="10.13.3", compute_capability="8.9", plugins_sha256=...))

It needs neither TensorRT nor a GPU: what a target has is handed in; `this_target` asks the driver of this machine.
"""

import ctypes
import json
import os
import re
from dataclasses import dataclass, fields
from importlib import metadata
from pathlib import Path
from typing import Self

from retinaserve.training.errors import UserError
from retinaserve.training.files import from_json, sha256, whole
from retinaserve.training.spec import DetectorSpec

FORMAT = 1
VERSION_PARTS = 4  # a plan fits one major.minor.patch.build of TensorRT
# CUdevice_attribute of cuda.h
CAPABILITY_MAJOR, CAPABILITY_MINOR = 75, 76


@dataclass(frozen=True)
class Manifest:
    """A plan's origin. Hashes are SHA-256 in hexadecimal; an empty one means that there is no such file."""

    spec: DetectorSpec
    precision: str  # "fp32", "fp16", "int8"
    batch: tuple[int, int, int]  # minimum, optimum, maximum
    tensorrt: str  # "10.13.3.9"
    cuda: str  # of that TensorRT: "12", "13.0"
    compute_capability: str  # "8.9"
    gpu: str  # its name, for people
    plan_sha256: str
    onnx_sha256: str
    plugins_sha256: str = ""
    calibration_sha256: str = ""
    builder: str = "tensorrt"  # or "tensorrt_rtx", whose plans Triton can't load
    created: str = ""  # ISO 8601, UTC

    def to_json(self) -> str:
        """Return the manifest as JSON; `from_json` gives back an equal one."""
        spec = json.loads(self.spec.to_json())
        content = {field.name: getattr(self, field.name) for field in fields(self)}
        return json.dumps({"format": FORMAT, **content, "spec": spec}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, source: str = "the manifest") -> Self:
        """Read `to_json`'s text. Raises UserError, which begins with `source`, for anything else."""
        values = from_json(text, source, FORMAT)
        try:
            values["spec"] = DetectorSpec.from_json(json.dumps(values["spec"]))
            low, best, high = (int(size) for size in values["batch"])
            return cls(**{**values, "batch": (low, best, high)})
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{source} is incomplete: {error}", "build the plan again") from None


@dataclass(frozen=True)
class Target:
    """Where a plan is to run; what is empty is not known, and not compared."""

    tensorrt: str = ""
    cuda: str = ""
    compute_capability: str = ""
    plugins_sha256: str = ""
    max_batch: int = 0


def manifest_path(plan: Path) -> Path:
    """Return where a plan's manifest lies."""
    return plan.with_name(f"{plan.name}.json")


def write_plan(plan: Path, engine: bytes, manifest: Manifest) -> None:
    """Write a plan and its manifest, both or neither. Raises UserError where the disk is full."""
    with whole(plan, manifest_path(plan)) as (engine_file, manifest_file):
        engine_file.write_bytes(engine)
        manifest_file.write_text(manifest.to_json())


def read_manifest(plan: Path) -> Manifest:
    """Return the manifest of a plan. Raises UserError where there is none, or it is another plan's."""
    path = manifest_path(plan)
    if not plan.is_file():
        raise UserError(f"{plan}: no such file", "a plan written by `retinaserve export` is expected")
    try:
        text = path.read_text()
    except OSError:
        raise UserError(
            f"{plan} has no manifest: {path.name} is missing",
            "a plan says nothing of what it was built for; build it by `retinaserve export`",
        ) from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not text", "build the plan again") from None
    manifest = Manifest.from_json(text, str(path))
    found = sha256(plan)
    if found != manifest.plan_sha256:
        raise UserError(
            f"{path} is the manifest of another plan: {plan.name} has the hash {found[:12]}, "
            f"{manifest.plan_sha256[:12]} is expected",
            "copy a plan and its manifest together, or build it again",
        )
    return manifest


def misfits(manifest: Manifest, target: Target) -> list[str]:
    """Return why a plan can't run on a target, a sentence a reason; an empty list where it can."""
    reasons = []
    if manifest.builder != "tensorrt":
        reasons.append(f"it was built by {manifest.builder}, whose plans only {manifest.builder} runs")
    elif target.tensorrt and not _same_release(manifest.tensorrt, target.tensorrt):
        reasons.append(f"it was built by TensorRT {manifest.tensorrt}, the target has {target.tensorrt}")
    if target.cuda and manifest.cuda and manifest.cuda.split(".")[0] != target.cuda.split(".")[0]:
        reasons.append(f"it was built for CUDA {manifest.cuda}, the target has {target.cuda}")
    capability = target.compute_capability
    if capability and capability != manifest.compute_capability:
        where = f"compute capability {manifest.compute_capability} ({manifest.gpu})"
        reasons.append(f"it was built for {where}, the target has {capability}")
    plugins = target.plugins_sha256
    if plugins and manifest.plugins_sha256 and plugins != manifest.plugins_sha256:
        reasons.append(
            f"it was built with the plugin library {manifest.plugins_sha256[:12]}, the target has {plugins[:12]}"
        )
    if target.max_batch > manifest.batch[2]:
        reasons.append(f"it takes batches up to {manifest.batch[2]}, {target.max_batch} are asked for")
    return reasons


def check_plan(plan: Path, target: Target) -> Manifest:
    """Return a plan's manifest. Raises UserError with every reason why it does not fit the target."""
    manifest = read_manifest(plan)
    reasons = misfits(manifest, target)
    if reasons:
        raise UserError(f"{plan} does not fit: {'; '.join(reasons)}", "build it on the machine that will run it")
    return manifest


def _same_release(one: str, other: str) -> bool:
    """Whether two versions are the same as far as both state them: a user may leave out the build."""
    parts = (re.split(r"[.+-]", version)[:VERSION_PARTS] for version in (one, other))
    return all(a == b for a, b in zip(*parts, strict=False))


@dataclass(frozen=True)
class Gpu:
    """A device as its driver describes it."""

    name: str
    compute_capability: str
    memory: int  # bytes


class Driver:
    """NVIDIA's driver library. Raises OSError where there is none, or it does not start."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL("libcuda.so.1")
        code = self._library.cuInit(0)
        if code:
            raise OSError(f"cuInit failed with error {code}")

    @property
    def cuda(self) -> str:
        """The newest CUDA that the driver serves."""
        version = ctypes.c_int()
        self._library.cuDriverGetVersion(ctypes.byref(version))
        return f"{version.value // 1000}.{version.value % 1000 // 10}"

    def gpus(self) -> list[Gpu]:
        """Return the devices, in CUDA's order."""
        count, device, value, memory = ctypes.c_int(), ctypes.c_int(), ctypes.c_int(), ctypes.c_size_t()
        name, found = ctypes.create_string_buffer(256), []
        self._library.cuDeviceGetCount(ctypes.byref(count))
        for number in range(count.value):
            self._library.cuDeviceGet(ctypes.byref(device), number)
            self._library.cuDeviceGetName(name, len(name), device)
            self._library.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
            parts = []
            for attribute in (CAPABILITY_MAJOR, CAPABILITY_MINOR):
                self._library.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
                parts.append(str(value.value))
            found.append(Gpu(name.value.decode(errors="replace"), ".".join(parts), memory.value))
        return found


def find_gpus() -> list[Gpu]:
    """Return the GPUs that the driver sees; none without a driver."""
    try:
        return Driver().gpus()
    except OSError:
        return []


def tensorrt_version() -> str:
    """Return the version of the TensorRT that is installed for Python, or nothing."""
    try:
        return metadata.version("tensorrt")
    except metadata.PackageNotFoundError:
        return ""


def tensorrt_cuda() -> str:
    """Return the CUDA that the installed TensorRT is made for, or nothing.

    TensorRT does not say. Its wheels have it in their name (tensorrt_cu13), NVIDIA's containers in CUDA_VERSION.
    """
    for name in (each.metadata["Name"] or "" for each in metadata.distributions()):
        package, _, cuda = name.lower().replace("-", "_").partition("_cu")
        if package == "tensorrt" and cuda[:2].isdigit():
            return cuda[:2]
    return ".".join(os.environ.get("CUDA_VERSION", "").split(".")[:2])


def this_target(plugins: Path | None = None) -> Target:
    """Return what a plan meets on this machine; what can't be found out stays empty.

    Raises UserError where the plugin library can't be read.
    """
    gpus = find_gpus()
    return Target(
        tensorrt=tensorrt_version(),
        cuda=tensorrt_cuda(),
        compute_capability=gpus[0].compute_capability if gpus else "",
        plugins_sha256=sha256(plugins) if plugins else "",
    )
