"""The GPU profile's repository: what `build` makes of a plan, what it refuses, and its DALI pipeline."""

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from retinaserve.build_tools.engine.manifest import Target, find_gpus, read_manifest, write_plan
from retinaserve.build_tools.preprocess import Decoding, Prepared, Preprocessor, preprocess_pipeline
from retinaserve.build_tools.preprocess.pipeline import OUTPUTS, serialise
from retinaserve.build_tools.repository.builder import CUDA_POOL, build_repository
from retinaserve.build_tools.repository.configs import MODELS, BuildOptions, read_config
from retinaserve.scripts.cli.main import main
from retinaserve.training.errors import UserError
from tests.damage import good_images
from tests.toys import PLAN, toy_manifest, toy_spec

# Serialises as Triton's dali backend does where there is no model.dali (model_provider.h).
AUTOSERIALISE = """
import importlib.util, sys
from nvidia.dali._utils.autoserialize import invoke_autoserialize
spec = importlib.util.spec_from_file_location("autoserialize_mod", sys.argv[1])
module = importlib.util.module_from_spec(spec)
sys.modules["autoserialize_mod"] = module
spec.loader.exec_module(module)
invoke_autoserialize(module, sys.argv[2])
"""


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plan") / "toy.plan"
    write_plan(path, PLAN, toy_manifest())
    return path


@pytest.fixture(scope="module")
def gpu_repository(plan: Path) -> Path:
    """A repository of the GPU profile; tests must not change it."""
    return build_repository(plan, plan.parent / "repository", profile="gpu").repository


def test_a_repository_is_complete(gpu_repository: Path) -> None:
    assert {path.name for path in gpu_repository.iterdir()} == {*MODELS["gpu"], CUDA_POOL}
    served = gpu_repository / "retinanet" / "1"
    assert (served / "model.plan").read_bytes() == PLAN
    assert read_manifest(served / "model.plan") == toy_manifest()  # travels with the plan
    assert (gpu_repository / "admission" / "1" / "pixels" / "verdict.py").is_file()
    assert not (gpu_repository / "admission" / "1" / "preprocess").exists()  # no DALI in a Python process
    assert {path.name for path in (gpu_repository / "preprocess" / "1").iterdir()} == {
        "dali.py",
        "model.dali",
        "pipeline.json",
        "preprocess",
    }


def test_the_pool_holds_every_image_between_two_models(plan: Path, gpu_repository: Path, tmp_path: Path) -> None:
    height, width = toy_spec().size
    assert (height, width) == (128, 192) and toy_manifest().batch[2] == 24
    # 256 wait; a batch of 24 in `preprocess`, and two in each of the two instances of `retinanet`.
    images = 256 + 24 * (1 + 2 * 2)
    assert images * (3 * 128 * 192 + 512) < 64 << 20  # less than Triton's own
    assert int((gpu_repository / CUDA_POOL).read_text()) == 64 << 20
    large = tmp_path / "large.plan"
    write_plan(large, PLAN, replace(toy_manifest(), spec=toy_spec().with_size(1280, 1280), batch=(1, 8, 16)))
    build_repository(large, tmp_path / "large", profile="gpu")
    assert int((tmp_path / "large" / CUDA_POOL).read_text()) == (256 + 16 * 5) * (3 * 1280 * 1280 + 512)
    build_repository(large, tmp_path / "large", profile="gpu", options=BuildOptions(max_batch=8))
    assert int((tmp_path / "large" / CUDA_POOL).read_text()) == (256 + 8 * 5) * (3 * 1280 * 1280 + 512)


def test_clients_are_told_which_graph_and_plan_answer(gpu_repository: Path) -> None:
    told = read_config(gpu_repository / "detector" / "config.pbtxt").parameters
    assert told["graph_sha256"].string_value == toy_manifest().onnx_sha256
    assert told["plan_sha256"].string_value == toy_manifest().plan_sha256


def test_the_profiles_do_not_mix(
    plan: Path, gpu_repository: Path, repository: Path, toy_onnx: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="is of the gpu profile"):
        build_repository(toy_onnx, gpu_repository)
    with pytest.raises(UserError, match="is of the cpu profile"):
        build_repository(plan, repository, profile="gpu")
    with pytest.raises(UserError, match="the gpu profile serves a TensorRT plan"):
        build_repository(toy_onnx, tmp_path / "r", profile="gpu")
    with pytest.raises(UserError, match="the cpu profile serves an ONNX model"):
        build_repository(plan, tmp_path / "r")
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("target", "options", "words"),
    [
        (Target(tensorrt="11.1.0"), {}, r"built by TensorRT 10\.13\.3\.9, the target has 11\.1\.0"),
        (Target(compute_capability="7.5"), {}, r"compute capability 8\.9 \(NVIDIA L4\), the target has 7\.5"),
        (Target(plugins_sha256="c" * 64), {}, "plugin library bbbbbbbbbbbb, the target has cccccccccccc"),
        (None, {"max_batch": 32}, "takes batches up to 24, 32 are asked for"),
    ],
    ids=["TensorRT", "GPU", "plugins", "batch"],
)
def test_a_plan_for_something_else_is_refused(
    plan: Path, tmp_path: Path, target: Target | None, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        build_repository(plan, tmp_path / "r", profile="gpu", options=BuildOptions(**options), target=target)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 0, "version 1 of admission, preprocess, retinanet, detector (gpu, int8)"),
        (["--triton-version", "25.10", "--max-inflight", "8"], 2, "Triton 2.62 does not know"),
        (["--triton-version", "newest"], 2, "'newest' is no version of Triton"),
        (["--tensorrt", "11.1"], 3, "the target has 11.1"),
        (["--compute-capability", "9.0"], 3, "the target has 9.0"),
        (["--plugins", "nowhere.so"], 3, "nowhere.so can't be read"),
    ],
)
def test_the_command(plan: Path, tmp_path: Path, arguments: list[str], code: int, words: str) -> None:
    target = ["--tensorrt", "10.13.3"] if "--compute-capability" not in arguments else []
    if "--tensorrt" in arguments or "--plugins" in arguments:
        target = []
    result = CliRunner().invoke(
        main, ["build", str(plan), "--profile", "gpu", "--output", str(tmp_path / "r"), *target, *arguments]
    )
    assert result.exit_code == code, result.output
    assert words in result.output
    assert (tmp_path / "r").exists() == (code == 0)


def test_dali_py_is_the_source_of_model_dali(gpu_repository: Path, tmp_path: Path) -> None:
    """Run as the backend runs it, and by hand as its first lines say, it gives the bytes that `build` wrote."""
    folder = gpu_repository / "preprocess" / "1"
    shipped = (folder / "model.dali").read_bytes()
    command = [sys.executable, "-c", AUTOSERIALISE, str(folder / "dali.py"), str(tmp_path / "model.dali")]
    subprocess.run(command, check=True, capture_output=True, cwd=tmp_path)
    assert (tmp_path / "model.dali").read_bytes() == shipped
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", folder, copy], check=True)
    (copy / "model.dali").unlink()
    subprocess.run([sys.executable, copy / "dali.py"], check=True, capture_output=True, cwd=tmp_path)
    assert (copy / "model.dali").read_bytes() == shipped


def test_the_pipeline_tells_nobody_where_it_was_made(gpu_repository: Path) -> None:
    """DALI writes each operator's file and line into a pipeline, and the backend into what it answers clients."""
    content = (gpu_repository / "preprocess" / "1" / "model.dali").read_bytes()
    assert b"image_bytes" in content and b"mixed" in content
    assert b".py" not in content and b"origin" not in content


def test_the_gpu_pipeline_is_the_cpus_but_for_the_device() -> None:
    """The same operators with the same arguments in the same order."""
    arguments: dict[str, Any] = {"size": (128, 192), "fill": (1, 2, 3), "max_batch": 4, "threads": 2}
    named = re.compile(rb"[A-Za-z_][\w.]{2,}")
    gpu, cpu = (named.findall(serialise(**arguments, decoder=decoder)) for decoder in ("mixed", "cpu"))
    assert b"decoders__Image" in cpu and b"mixed" in gpu and b"gpu" not in cpu
    devices = {b"mixed": b"cpu", b"gpu": b"cpu"}
    assert [devices.get(name, name) for name in gpu] == cpu


def test_with_its_decoder_on_the_cpu_it_gives_the_cpu_profiles_tensors() -> None:
    """The backend's way: the serialised pipeline, loaded again, outputs by position."""
    from nvidia.dali import Pipeline

    spec, images = toy_spec(), list(good_images().values())
    loaded = Pipeline.deserialize(
        serialise(size=spec.size, fill=spec.pad_value, max_batch=len(images), threads=1, decoder="cpu"),
        device_id=None,
        prefetch_queue_depth=1,
    )
    loaded.feed_input("image_bytes", [np.frombuffer(data, np.uint8) for data in images])
    outputs = dict(zip(OUTPUTS, (output.as_array() for output in loaded.run()), strict=True))
    decoding = Decoding(full=True)
    expected = Preprocessor(spec.size, spec.pad_value, threads=1, decoding=decoding).run(images)
    for number, wanted in enumerate(expected):
        assert isinstance(wanted, Prepared)
        assert (outputs["image"][number] == wanted.image).all()
        assert (outputs["letterbox"][number] == wanted.letterbox).all()
    assert outputs["image"].dtype == np.uint8 and outputs["letterbox"].dtype == np.float32


@pytest.mark.gpu
@pytest.mark.skipif(not find_gpus(), reason="no NVIDIA GPU here")
def test_decoded_on_the_gpu_pictures_are_the_cpus_within_a_few_levels() -> None:
    """nvJPEG and libjpeg-turbo differ in their IDCT and chroma upsampling; resize and letterbox are the same."""
    spec, images = toy_spec(), list(good_images().values())
    pipeline = preprocess_pipeline(
        size=spec.size, fill=spec.pad_value, decoder="mixed", batch_size=len(images), num_threads=2, device_id=0
    )
    pipeline.build()
    pipeline.feed_input("image_bytes", [np.frombuffer(data, np.uint8) for data in images])
    pictures, letterboxes = (output.as_cpu().as_array() for output in pipeline.run())
    for number, wanted in enumerate(Preprocessor(spec.size, spec.pad_value).run(images)):
        assert isinstance(wanted, Prepared)
        assert (letterboxes[number] == wanted.letterbox).all()
        assert np.abs(pictures[number].astype(int) - wanted.image).mean() < 3
