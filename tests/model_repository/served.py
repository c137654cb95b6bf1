"""The model that is served, as a module: Triton's python backend brings what it imports."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

from retinaserve.build_tools import openvino_cpu, preprocess
from retinaserve.scripts.server.installation import Installation

CPU = Path(__file__).parents[2] / "model_repository" / "cpu"


def load_retinanet(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the CPU profile's `retinanet`, on the tests' one openvino.Core."""
    monkeypatch.setitem(sys.modules, "openvino_cpu", openvino_cpu)
    return _load(monkeypatch, "retinanet")


def load_preprocess(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the CPU profile's `preprocess`."""
    monkeypatch.setitem(sys.modules, "preprocess", preprocess)
    return _load(monkeypatch, "preprocess")


def _load(monkeypatch: pytest.MonkeyPatch, model: str) -> Any:
    monkeypatch.syspath_prepend(Installation.find().root / "backends" / "python")
    spec = importlib.util.spec_from_file_location("served_model", CPU / model / "1" / "model.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Sender:
    """A response sender of Triton 2.51: after a response, even one that found no room, it takes the end only."""

    def __init__(self, *, full: bool = False) -> None:
        self.full, self.sent, self.ended = full, [], False
        self._tried = False

    def send(self, response: Any = None, flags: int = 0) -> None:
        """Take a response, or fail as the stub does."""
        if self.ended or (response is not None and self._tried) or (response is None and not self._tried):
            raise RuntimeError("Unable to send response")
        self._tried, self.ended = True, bool(flags)
        if response is not None and self.full:
            raise RuntimeError("Failed to increase the shared memory pool")
        if response is not None:
            self.sent.append(response)
