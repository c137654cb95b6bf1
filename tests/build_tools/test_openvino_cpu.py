"""The settings of OpenVINO that are compared with are those that are served."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest

from retinaserve.build_tools.openvino_cpu import HINTS, compile_for_cpu
from tests.model_repository.served import load_retinanet


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """The settings of every network that is compiled from now on."""
    seen: list[dict[str, str]] = []
    compile_model = openvino.Core.compile_model

    def remember(core: Any, model: Any, device: str, config: dict[str, str]) -> Any:
        seen.append(config)
        return compile_model(core, model, device, config)

    monkeypatch.setattr(openvino.Core, "compile_model", remember)
    return seen


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The engine of the model that is served, with the module that Triton's python backend brings."""
    return load_retinanet(monkeypatch).Engine


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("threads", [1, 2])
def test_they_are_the_served_ones(
    settings: list[dict[str, str]], engine: Any, toy_onnx: Path, precision: str, threads: int
) -> None:
    engine(toy_onnx, threads=threads, precision=HINTS[precision])  # as a config has it
    served = list(settings)
    assert len(served) == threads, "with two cores, the second network of it has a core a picture"
    settings.clear()
    for streams in range(1, threads + 1):
        compile_for_cpu(str(toy_onnx), precision=precision, threads=threads, streams=streams)
    assert settings == served and {each["INFERENCE_NUM_THREADS"] for each in served} == {str(threads)}


def test_a_file_and_its_content_are_the_same(toy_onnx: Path) -> None:
    network = compile_for_cpu(str(toy_onnx))
    feeds = {
        "image": np.full(network.input("image").partial_shape.get_max_shape()[1:], 90, np.uint8)[None],
        "letterbox": np.array([[100, 100, 1, 1]], np.float32),
    }
    for other in (compile_for_cpu(toy_onnx.read_bytes()), compile_for_cpu(str(toy_onnx), threads=1)):
        np.testing.assert_allclose(other(feeds)["boxes"], network(feeds)["boxes"], atol=1e-3)


OUT_OF_ORDER = """
import faulthandler, gc, os, signal, sys
from retinaserve.build_tools.openvino_cpu import compile_for_cpu
faulthandler.enable()  # with a stack of its own for signals, as pytest does
first, second = compile_for_cpu(sys.argv[1]), compile_for_cpu(sys.argv[1])
del first
gc.collect()
del second
gc.collect()
signal.signal(signal.SIGUSR1, lambda *_: print("caught"))
os.kill(os.getpid(), signal.SIGUSR1)
"""


def test_a_process_whose_networks_are_gone_still_takes_signals(toy_onnx: Path) -> None:
    # A second openvino.Core leaves it without a stack for them: it dies of SIGSEGV, and says nothing.
    run = subprocess.run([sys.executable, "-c", OUT_OF_ORDER, str(toy_onnx)], capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (0, "caught\n"), run.stderr
