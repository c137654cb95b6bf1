"""The model that is served, as a module: Triton's python backend brings what it imports."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from retinaserve.eval.runtimes.openvino import shared_core
from retinaserve.scripts.server.installation import Installation

RETINANET = Path(__file__).parents[2] / "model_repository" / "cpu" / "retinanet" / "1" / "model.py"


def load_retinanet(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the CPU profile's `retinanet`, on the tests' one openvino.Core (eval/runtimes/openvino.py)."""
    monkeypatch.syspath_prepend(Installation.find().root / "backends" / "python")
    spec = importlib.util.spec_from_file_location("served_model", RETINANET)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    core = shared_core()
    monkeypatch.setattr(module.ov, "Core", lambda: core)
    return module
