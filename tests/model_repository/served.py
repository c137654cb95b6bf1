"""The model that is served, as a module: Triton's python backend brings what it imports."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

from retinaserve.build_tools import openvino_cpu
from retinaserve.scripts.server.installation import Installation

RETINANET = Path(__file__).parents[2] / "model_repository" / "cpu" / "retinanet" / "1" / "model.py"


def load_retinanet(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the CPU profile's `retinanet`, on the tests' one openvino.Core."""
    monkeypatch.syspath_prepend(Installation.find().root / "backends" / "python")
    monkeypatch.setitem(sys.modules, "openvino_cpu", openvino_cpu)
    spec = importlib.util.spec_from_file_location("served_model", RETINANET)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
