"""What is known of this machine without TensorRT."""

import hashlib
import re
from importlib import metadata
from pathlib import Path

import pytest

from retinaserve.build_tools.engine.manifest import find_gpus, tensorrt_cuda, tensorrt_version, this_target
from retinaserve.training.errors import UserError

NAMES = {(each.metadata["Name"] or "").lower().replace("-", "_") for each in metadata.distributions()}


def test_cuda_is_that_of_nvidia_s_container(monkeypatch: pytest.MonkeyPatch) -> None:
    if any(re.fullmatch(r"tensorrt_cu\d+", name) for name in NAMES):
        pytest.skip("a TensorRT wheel says it first")
    monkeypatch.delenv("CUDA_VERSION", raising=False)
    assert tensorrt_cuda() == ""  # TensorRT for RTX, which is installed, does not count
    monkeypatch.setenv("CUDA_VERSION", "12.9.1.010")
    assert tensorrt_cuda() == "12.9"


def test_the_target_holds_what_is_here(tmp_path: Path) -> None:
    library = tmp_path / "libplugins.so"
    library.write_bytes(b"code")
    target = this_target(library)
    assert target.plugins_sha256 == hashlib.sha256(b"code").hexdigest()
    assert target.tensorrt == tensorrt_version()
    assert bool(target.compute_capability) == bool(find_gpus())
    with pytest.raises(UserError, match="can't be read"):
        this_target(tmp_path / "none.so")


@pytest.mark.gpu
def test_a_gpu_has_a_name_and_a_capability() -> None:
    gpus = find_gpus()
    if not gpus:
        pytest.skip("needs an NVIDIA GPU")
    assert all(gpu.name and re.fullmatch(r"\d+\.\d", gpu.compute_capability) and gpu.memory > 1e9 for gpu in gpus)
