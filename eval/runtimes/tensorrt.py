"""A TensorRT plan on the GPU it was built for.

    TensorRtRuntime(Path("model.plan"), plugins=Path("libretinaserve_plugins.so")).run(batch)

It needs the `gpu` extra, a torch with CUDA (whose tensors are the buffers) and the manifest that is written beside
a plan, since a plan says neither classes nor anchors. For comparisons, not for speed: every batch is copied to the
GPU, run and copied back, one after the other.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from retinaserve.build_tools.engine.manifest import read_manifest
from retinaserve.build_tools.engine.tensorrt import load_plugins, message_log
from retinaserve.training.errors import Exit, UserError
from retinaserve.training.spec import IMAGE, LETTERBOX, OUTPUTS

Arrays = Mapping[str, npt.NDArray[Any]]
DEFAULT_PLUGINS = Path("build/plugins/libretinaserve_plugins.so")  # where `make plugins` leaves it


class TensorRtRuntime:
    """A plan run by TensorRT; heads are answered where the plan has them among its outputs."""

    name, note = "TensorRT", ""

    def __init__(self, path: Path, *, heads: bool = False, plugins: Path | None = None) -> None:
        """Load a plan; `plugins` None takes what `make plugins` built, where it did."""
        manifest = read_manifest(path)
        self.path, self.spec, self.precision = path, manifest.spec, manifest.precision
        self._torch, trt = _packages()
        plugins = plugins or (DEFAULT_PLUGINS if DEFAULT_PLUGINS.is_file() else None)
        self._engine, self._keep_alive = _deserialize(trt, path, path.read_bytes(), plugins)
        self._context = self._engine.create_execution_context()
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        missing = [name for name in (IMAGE, LETTERBOX, *OUTPUTS) if name not in names]
        if missing:
            raise UserError(f"{path}: the plan has no tensor {missing[0]!r}", f"its tensors: {', '.join(names)}")
        raw = tuple(name for pair in self.spec.head_names for name in pair)
        self.output_names = (*OUTPUTS, *raw) if heads and set(raw) <= set(names) else tuple(OUTPUTS)
        self._outputs = [name for name in names if self._engine.get_tensor_mode(name) == trt.TensorIOMode.OUTPUT]
        least, _, most = self._engine.get_tensor_profile_shape(IMAGE, 0)
        self._batches = (int(least[0]), int(most[0]))

    def run(self, batch: Arrays) -> dict[str, npt.NDArray[Any]]:
        """Return the outputs of a batch of any size, in as many runs as the plan's profile needs."""
        least, most = self._batches
        parts = []
        for start in range(0, len(batch[IMAGE]), most):
            images, letterboxes = (batch[name][start : start + most] for name in (IMAGE, LETTERBOX))
            count = len(images)
            spare = [(0, max(0, least - count)), *[(0, 0)] * 3]  # a profile may want more than one image
            padded = np.pad(images, spare), np.pad(letterboxes, spare[:2], constant_values=1)
            parts.append({name: rows[:count] for name, rows in self._run_once(*padded).items()})
        return {name: np.concatenate([part[name] for part in parts]) for name in self.output_names}

    def _run_once(self, images: npt.NDArray[Any], letterboxes: npt.NDArray[Any]) -> Arrays:
        torch, context = self._torch, self._context
        buffers = {IMAGE: torch.from_numpy(images).cuda(), LETTERBOX: torch.from_numpy(letterboxes).cuda()}
        for name, tensor in buffers.items():
            context.set_input_shape(name, tuple(tensor.shape))
        for name in self._outputs:
            # TensorRT's DataType.FLOAT, .HALF, .INT32
            kind = getattr(torch, self._engine.get_tensor_dtype(name).name.lower())
            buffers[name] = torch.zeros(tuple(context.get_tensor_shape(name)), dtype=kind, device="cuda")
        for name, tensor in buffers.items():
            context.set_tensor_address(name, tensor.data_ptr())
        stream = torch.cuda.current_stream()
        if not context.execute_async_v3(stream.cuda_stream):
            raise UserError(f"{self.path}: TensorRT could not run the plan", "its log above says why")
        stream.synchronize()
        return {name: buffers[name].cpu().numpy() for name in self.output_names}


def _packages() -> tuple[Any, Any]:
    try:
        import tensorrt
    except ImportError:
        raise UserError(
            "a plan needs TensorRT, which is not installed", "pip install 'retinaserve[gpu]'", code=Exit.USAGE
        ) from None
    import torch

    if not torch.cuda.is_available():
        raise UserError(
            "a plan needs an NVIDIA GPU that torch can use, and there is none",
            "compare the plan on the machine it was built on, with a torch of the same CUDA",
            code=Exit.USAGE,
        )
    return torch, tensorrt


def _deserialize(trt: Any, path: Path, content: bytes, plugins: Path | None) -> tuple[Any, tuple[Any, ...]]:
    """Return the engine, and what has to live as long as it."""
    log = message_log(trt)
    if plugins:
        load_plugins(trt, plugins)
    runtime = trt.Runtime(log)
    engine = runtime.deserialize_cuda_engine(content)
    if engine is None:
        without = "" if plugins else "; if it has this project's plugins, name the library with --plugins"
        raise UserError(
            f"{path}: TensorRT {trt.__version__} refuses the plan: {log.first_error()}",
            f"a plan fits one GPU and one TensorRT: build it on this machine{without}",
        )
    return engine, (runtime, log)
