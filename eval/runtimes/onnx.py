"""A grafted graph run by OpenVINO or ONNX Runtime on the CPU: `OnnxRuntime(Path("model.onnx")).run(batch)`."""

from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from retinaserve.build_tools.graph.onnx_io import STANDARD, OnnxGraph
from retinaserve.build_tools.openvino_cpu import compile_for_cpu
from retinaserve.training.errors import Exit, UserError
from retinaserve.training.spec import IMAGE, LETTERBOX, OUTPUTS

Arrays = Mapping[str, npt.NDArray[Any]]
Run = Callable[[Arrays], list[npt.NDArray[Any]]]


class OnnxRuntime:
    """Answers what the graph answers, in the precision of the file.

    A graph with TensorRT's plugins runs up to its heads, and `note` says so.
    """

    def __init__(self, path: Path, *, threads: int = 0, heads: bool = False, backend: str | None = None) -> None:
        """Load a graph, with its raw heads as outputs if they are wanted; `backend` is a key of BACKENDS.

        Raises UserError for a file that is no detector, or that the backend refuses, and where none is installed.
        """
        graph = OnnxGraph.read(path)
        custom = ", ".join(graph.custom_operators(known=STANDARD | {"com.microsoft"}))  # ONNX Runtime's own
        self.path, self.spec, self.note = path, graph.spec, ""
        self.precision: str = graph.precision
        self._inputs: tuple[str, ...] = (IMAGE, LETTERBOX)
        self.output_names = tuple(OUTPUTS)
        source: bytes | str = str(path)
        if custom:
            if not graph.head_names:
                raise UserError(
                    f"{path} has operators that only TensorRT runs: {custom}",
                    "and no heads of the names in its spec, up to which it could run here",
                )
            source = graph.up_to_heads().SerializeToString()
            self._inputs, self.output_names = (IMAGE,), graph.head_names
            self.note = f"{custom} need TensorRT; decode and NMS are done in NumPy here"
        elif heads and graph.head_names:
            source = graph.with_heads().SerializeToString()
            self.output_names = (*OUTPUTS, *graph.head_names)
        self.name, self._run = self._load(source, threads, (backend,) if backend else tuple(BACKENDS))

    def _load(self, source: bytes | str, threads: int, wanted: Sequence[str]) -> tuple[str, Run]:
        for title, load in (BACKENDS[key] for key in wanted):
            try:
                return title, load(source, self.output_names, threads)
            except ImportError:
                continue
            except Exception as error:  # ONNX Runtime's own have no base in common
                raise UserError(f"{self.path}: {title} can't load this graph: {_reason(error)}") from None
        raise UserError(
            f"{'neither ' if len(wanted) > 1 else 'no '}{' nor '.join(wanted)} is installed",
            "pip install 'retinaserve[train]'",
            code=Exit.USAGE,
        )

    def run(self, batch: Arrays) -> dict[str, npt.NDArray[Any]]:
        """Return the outputs of a batch of any size."""
        outputs = self._run({name: batch[name] for name in self._inputs})
        return dict(zip(self.output_names, outputs, strict=True))


def installed_backends() -> list[str]:
    """Return which of BACKENDS are installed."""
    return [name for name in BACKENDS if find_spec(name)]


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # OpenVINO begins with the places in its own source
    said = [line for line in lines if not line.startswith(("Exception from", "Check '"))]
    return " ".join(said or lines)[:300] or "no reason given"


def _openvino(source: str | bytes, names: Sequence[str], threads: int) -> Run:
    request = compile_for_cpu(source, threads=threads).create_infer_request()

    def run(feeds: Arrays) -> list[npt.NDArray[Any]]:
        results = request.infer(feeds)
        return [np.array(results[name]) for name in names]  # OpenVINO's own memory is the next batch's

    return run


def _onnxruntime(source: str | bytes, names: Sequence[str], threads: int) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    return lambda feeds: session.run(list(names), feeds)


BACKENDS: Mapping[str, tuple[str, Callable[[str | bytes, Sequence[str], int], Run]]] = {
    "openvino": ("OpenVINO", _openvino),
    "onnxruntime": ("ONNX Runtime", _onnxruntime),
}
