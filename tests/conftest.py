"""What many tests share: one toy detector, one repository, and one real tritonserver a session."""

import functools
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
import torch

from retinaserve.build_tools.graph.graft import graft, save
from retinaserve.build_tools.repository.builder import build_repository
from retinaserve.build_tools.repository.configs import read_config, write_config
from retinaserve.scripts.server.triton import Server, TritonServer
from retinaserve.training.checkpoint import Checkpoint
from retinaserve.training.checkpoint import save as save_checkpoint
from tests.shared import SHARED, digest, once
from tests.toys import export_heads, toy_model, toy_spec


def pytest_configure() -> None:
    """Undo what `nohup make test &` leaves: background jobs ignore Ctrl-C, and so would all that they start."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the tests of servers, the longest: xdist hands files out in order, and none should end alone."""
    items.sort(key=lambda item: item.get_closest_marker("server") is None)


@pytest.fixture(scope="session", autouse=True)
def temporary_files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Give all tests, and what they start, a folder for temporary files; pytest removes it some sessions later."""
    folder, base = tmp_path_factory.mktemp("t"), tmp_path_factory.getbasetemp()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(folder))
        patch.setenv(SHARED, str(base.parent if "PYTEST_XDIST_WORKER" in os.environ else base))
        patch.setattr(tempfile, "tempdir", None)  # what was asked for before
        yield


@pytest.fixture(scope="session", autouse=True)
def exports_once(temporary_files: None) -> Iterator[None]:
    """torch takes seconds to export a network: the same one, asked for alike, is exported once in a test run."""
    export = torch.onnx.export

    @functools.wraps(export)
    def shared(model: Any, *inputs: Any, **options: Any) -> Any:
        def make(path: Path) -> None:
            path.write_bytes(export(model, *inputs, **options).model_proto.SerializeToString())

        return SimpleNamespace(model_proto=onnx.load(once(f"{digest(model, inputs, repr(options))}.onnx", make)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.onnx, "export", shared)
        yield


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy detector as `train` writes it; tests must not change it."""
    path = tmp_path_factory.mktemp("checkpoint") / "toy.pth"
    save_checkpoint(path, Checkpoint(toy_spec(), toy_model(toy_spec()).state_dict()))
    return path


@pytest.fixture(scope="session")
def toy_heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The raw heads of a detector."""
    folder, spec = tmp_path_factory.mktemp("toy"), toy_spec()
    export_heads(toy_model(spec), spec, folder / "heads.onnx")
    return folder / "heads.onnx"


@pytest.fixture(scope="session")
def toy_onnx(toy_heads: Path) -> Path:
    """The grafted detector."""
    save(graft(toy_heads), toy_heads.parent / "model.onnx")
    return toy_heads.parent / "model.onnx"


@pytest.fixture(scope="session")
def repository(toy_onnx: Path) -> Path:
    """The toy detector's repository, CPU profile; tests must not change it."""
    return build_repository(toy_onnx, toy_onnx.parent / "repository").repository


@pytest.fixture(scope="session")
def server(repository: Path) -> Iterator[TritonServer]:
    """A tritonserver on free ports that serves the toy detector."""
    with Server(repository) as running:
        yield running


@pytest.fixture
def narrow(repository: Path, tmp_path: Path) -> Iterator[TritonServer]:
    """A server of a test's own, whose queues hold two requests."""
    shutil.copytree(repository, tmp_path / "repository")
    for model in ("preprocess", "retinanet"):
        path = tmp_path / "repository" / model / "config.pbtxt"
        config = read_config(path)
        config.dynamic_batching.default_queue_policy.max_queue_size = 2
        write_config(path, config)
    with Server(tmp_path / "repository") as running:
        yield running
