"""RetinaNet from labelled images to boxes over HTTP and gRPC, on NVIDIA's serving stack.

    with Client("localhost:8001") as client:
        detections = client.predict([Path("photo.jpg").read_bytes()])

The names below are the public ones (docs/api.md). Each is imported when it is first asked for.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from retinaserve.build_tools.export import export as export
    from retinaserve.build_tools.repository.builder import build as build
    from retinaserve.eval.client.client import AsyncClient as AsyncClient
    from retinaserve.eval.client.client import Client as Client
    from retinaserve.eval.runtimes.detector import open_detector as open_detector
    from retinaserve.scripts.server.triton import Server as Server
    from retinaserve.training.detections import Detections as Detections
    from retinaserve.training.detections import ImageError as ImageError
    from retinaserve.training.errors import UserError as UserError
    from retinaserve.training.trainer.trainer import train as train

_HOMES = {  # name: module
    "AsyncClient": "eval.client.client",
    "Client": "eval.client.client",
    "Detections": "training.detections",
    "ImageError": "training.detections",
    "Server": "scripts.server.triton",
    "UserError": "training.errors",
    "build": "build_tools.repository.builder",
    "export": "build_tools.export",
    "open_detector": "eval.runtimes.detector",
    "train": "training.trainer.trainer",
}

__all__ = [
    "AsyncClient",
    "Client",
    "Detections",
    "ImageError",
    "Server",
    "UserError",
    "build",
    "export",
    "open_detector",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"retinaserve.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
