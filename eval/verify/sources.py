"""What `verify` compares: files as offline detectors, servers as clients, and all of them the same detector.

    reference = open_reference(Path("model.pth"))
    with ExitStack() as stack:
        candidates = [*open_file(Path("model.onnx")), open_server("localhost:8001", stack)]
        check_same(reference.spec, str(reference.path), candidates)

Files are given prepared pictures, a server the encoded ones: it has its own preprocessing, which is compared too.
"""

import importlib.util
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from retinaserve.eval.client.client import Client
from retinaserve.eval.client.server_info import ServedModel
from retinaserve.eval.client.transport import TlsFiles
from retinaserve.eval.runtimes.detector import (
    Heads,
    OfflineDetector,
    OnnxDetector,
    Runtime,
    TorchDetector,
    open_detector,
)
from retinaserve.eval.verify.tolerances import loosest, precision_named
from retinaserve.training.detections import Detections, ImageError
from retinaserve.training.errors import Exit, UserError
from retinaserve.training.spec import RETINANET, DetectorSpec

Answers = Sequence[Detections | ImageError]
RUNTIMES: tuple[Runtime, ...] = ("openvino", "onnxruntime")
# What may differ: how the network is built; its weights show in the heads.
FREE_FIELDS = frozenset({"network"})


@dataclass(frozen=True, eq=False)
class Candidate:
    """One thing to compare; `ask(encoded, prepared)` answers a picture each, and the heads it exposes."""

    name: str
    runtime: str
    precision: str  # empty where it is not known
    described: DetectorSpec | ServedModel
    ask: Callable[[Sequence[bytes], Sequence[Any]], tuple[Answers, Heads]]
    note: str = ""

    @property
    def title(self) -> str:
        """The name with what runs it, unlike that of any other candidate."""
        return f"{self.name} ({self.runtime})"


def open_reference(
    path: Path,
    *,
    size: tuple[int, int] | None = None,
    threads: int = 0,
    batch: int = 8,
    plugins: Path | None = None,
) -> OfflineDetector:
    """Open the model that is right by definition; a checkpoint may be given another input size."""
    detector = _open(path, threads=threads, batch=batch, plugins=plugins)
    if size and size != detector.spec.size:
        if not isinstance(detector, TorchDetector):
            raise UserError(f"{path}: its size is fixed", "--size is for a checkpoint (.pth)", code=Exit.USAGE)
        detector.at_size(*size)
    return detector


def open_file(
    path: Path,
    *,
    runtimes: Sequence[Runtime] = RUNTIMES,
    threads: int = 0,
    batch: int = 8,
    plugins: Path | None = None,
) -> list[Candidate]:
    """Open a file, an ONNX file once for each of the runtimes that are installed."""
    if path.suffix == ".onnx":
        installed = [name for name in runtimes if importlib.util.find_spec(name)] or list(runtimes)
        detectors: list[OfflineDetector] = [
            OnnxDetector(path, runtime=name, threads=threads, batch=batch, keep_heads=True)
            for name in installed
            if path.is_file() or open_detector(path)
        ]
    else:
        detectors = [_open(path, threads=threads, batch=batch, plugins=plugins)]
    return [
        Candidate(
            name=str(path),
            runtime=detector.runtime,
            precision=detector.precision,
            described=detector.spec,
            ask=lambda _, prepared, detector=detector: detector.observe(prepared),  # type: ignore[misc]
            note=detector.note,
        )
        for detector in detectors
    ]


def open_server(
    server: str,
    stack: ExitStack,
    *,
    timeout: float = 60.0,
    concurrency: int = 8,
    tls: TlsFiles | None = None,
) -> Candidate:
    """Connect to a server until `stack` is closed. Its precision is what its config says of it, if anything."""
    client = stack.enter_context(Client(server, timeout=timeout, concurrency=concurrency, tls=tls))
    told = client.parameters(RETINANET) if RETINANET in client.served.steps else {}
    # `precision` is of the arithmetic, `graph` of the file: an INT8 graph runs with f32 around its INT8 layers.
    known = [name for key in ("precision", "graph") if (name := precision_named(told.get(key, "")))]
    return Candidate(
        name=str(client.endpoint),
        runtime="Triton",
        precision=loosest(*known) if known else "",
        described=client.served,
        ask=lambda encoded, _: (list(client.predict_many(encoded)), {}),
    )


def check_same(reference: DetectorSpec, name: str, candidates: Iterable[Candidate]) -> None:
    """Raise UserError for the first candidate that is another detector: other classes, size, anchors or limits."""
    for candidate in candidates:
        for field, wanted, found in _differences(reference, candidate.described):
            hint = "compare what was exported from this checkpoint"
            if field == "size":
                hint = f"a checkpoint can be run at that size: --size {found[0]} {found[1]}"
            raise UserError(
                f"{candidate.name} is another detector than {name}: {_difference(field, wanted, found)}", hint
            )


def _open(path: Path, *, threads: int, batch: int, plugins: Path | None) -> OfflineDetector:
    if path.suffix == ".plan" and path.is_file():
        from retinaserve.eval.runtimes.tensorrt import EngineDetector

        return EngineDetector(path, plugins=plugins, threads=threads, batch=batch, keep_heads=True)
    return open_detector(path, threads=threads, batch=batch, keep_heads=True)


def _differences(reference: DetectorSpec, found: DetectorSpec | ServedModel) -> Iterable[tuple[str, Any, Any]]:
    """Yield the fields that differ among those both have, classes first; a server tells only some."""
    told = {field.name for field in fields(found)}
    for field in fields(reference):
        name = field.name
        if name in FREE_FIELDS or name not in told:
            continue
        wanted, value = getattr(reference, name), getattr(found, name)
        if value != wanted and not (isinstance(found, ServedModel) and not value):
            yield name, wanted, value


def _difference(field: str, wanted: Any, found: Any) -> str:
    """Say the first place where two values of a field part, as a list of 80 classes is not to be read."""
    what = field.replace("_", " ")
    if not isinstance(wanted, tuple) or field == "size":
        return f"its {what} is {_text(found)}, not {_text(wanted)}"
    if len(found) != len(wanted):
        return f"it has {len(found)} {what}, not {len(wanted)}"
    place = next(index for index, pair in enumerate(zip(found, wanted, strict=True)) if pair[0] != pair[1])
    if field == "anchors":
        return f"its anchors differ from level {place} on"
    return f"number {place} of its {what} is {_text(found[place])}, not {_text(wanted[place])}"


def _text(value: Any) -> str:
    return " x ".join(map(str, value)) if isinstance(value, tuple) else repr(value)
