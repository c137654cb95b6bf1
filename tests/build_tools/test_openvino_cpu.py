"""The settings of OpenVINO that are compared with are those that are served."""

import os
import platform
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


QUANTIZED = """
import numpy as np
from onnx import TensorProto, helper, numpy_helper
from retinaserve.build_tools.openvino_cpu import compile_for_cpu, int8_overflows

rng = np.random.default_rng(1)
codes = rng.integers(90, 128, (1, 8, 4, 4))
weights = 2 * rng.integers(45, 64, (8, 8, 1, 1))  # even: exact in 7 bits
pairs = [("scale", np.float32(0.5)), ("zero", np.int8(0)), ("weights", weights.astype(np.int8))]
nodes = [
    helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
    helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["rounded"]),
    helper.make_node("DequantizeLinear", ["weights", "scale", "zero"], ["filter"]),
    helper.make_node("Conv", ["rounded", "filter"], ["y"]),
]
given, result = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 8, 4, 4]) for name in "xy")
initial = [numpy_helper.from_array(np.array(value), name) for name, value in pairs]
graph = helper.make_graph(nodes, "g", [given], [result], initial)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
model.ir_version = 9
(seen,) = compile_for_cpu(model.SerializeToString(), threads=1)({"x": (codes * 0.5).astype(np.float32)}).values()
expected = np.einsum("oi,nihw->nohw", weights[:, :, 0, 0], codes) * 0.25
print(int8_overflows(), float(np.abs(seen - expected).max() / expected.max()) < 1e-5)
"""


@pytest.mark.skipif(
    platform.machine() != "x86_64", reason="only x86 has vector units that add products in 16 bits"
)
@pytest.mark.parametrize(("processor", "overflows"), [("AVX2", True), ("AVX512_CORE", True), ("ALL", None)])
def test_products_of_8_bits_never_overflow(processor: str, overflows: bool | None) -> None:
    """As on processors without VNNI, where quantized convolutions of OpenVINO stop at 32767."""
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": processor}
    done = subprocess.run(
        [sys.executable, "-c", QUANTIZED], env=environment, capture_output=True, text=True, check=True
    )
    saw, right = done.stdout.split()
    assert right == "True"
    assert overflows is None or saw == str(overflows)
