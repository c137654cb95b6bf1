"""Configs against the graph, versions into a repository, and what must be refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import onnx
import pytest

from build_tools.configs import MODELS, TEMPLATES, BuildOptions, check_configs, read_config, specialise
from build_tools.graft import graft
from build_tools.repository import build_repository
from build_tools.signature import expected_signature, read_signature
from tests.toys import CATEGORY_IDS, CLASSES, toy_model, toy_spec
from training.errors import UserError
from training.export import export_heads
from training.spec import DetectorSpec


def configs_of(spec: DetectorSpec, **options: Any) -> dict[str, Any]:
    return specialise(expected_signature(spec), "cpu", BuildOptions(**options), picture_bytes=1234)


@pytest.mark.parametrize("name", MODELS)
def test_templates_leave_nothing_to_auto_completion(name: str) -> None:
    config = read_config(TEMPLATES / "cpu" / name / "config.pbtxt")
    assert config.name == name and config.max_batch_size > 0
    assert config.backend == "python" or config.platform == "ensemble"
    assert config.input and config.output and all(t.dims for t in (*config.input, *config.output))
    if config.backend:
        policy = config.dynamic_batching.default_queue_policy
        assert policy.max_queue_size > 0 and policy.default_timeout_microseconds > 0
        assert config.instance_group and config.model_warmup


def test_specialised_configs_carry_the_detector() -> None:
    spec = toy_spec()
    configs = configs_of(spec, precision="bf16", max_batch=5, max_image_pixels=77)
    assert {config.max_batch_size for config in configs.values()} == {5}
    assert list(configs["preprocess"].output[0].dims) == [3, 128, 192]
    assert list(configs["preprocess"].model_warmup[0].inputs["image_bytes"].dims) == [1234]
    assert list(configs["retinanet"].model_warmup[0].inputs["image"].dims) == [3, 128, 192]
    assert configs["preprocess"].input[0].allow_ragged_batch
    told = {key: value.string_value for key, value in configs["detector"].parameters.items()}
    assert json.loads(told["classes"]) == list(CLASSES)
    assert json.loads(told["category_ids"]) == list(CATEGORY_IDS)
    assert told["max_image_pixels"] == "77"
    assert configs["retinanet"].parameters["precision"].string_value == "bf16"


def spoil_type(configs: dict[str, Any]) -> None:
    configs["retinanet"].output[0].data_type = 11  # FP32 instead of INT32


def spoil_dims(configs: dict[str, Any]) -> None:
    configs["preprocess"].output[0].dims[:] = [3, 1, 1]


def spoil_map(configs: dict[str, Any]) -> None:
    del configs["detector"].ensemble_scheduling.step[1].input_map["letterbox"]


def spoil_step(configs: dict[str, Any]) -> None:
    configs["detector"].ensemble_scheduling.step[1].model_name = "retina"


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (spoil_type, "retinanet/config.pbtxt"),
        (spoil_dims, "preprocess/config.pbtxt"),
        (spoil_map, "step retinanet maps inputs"),
        (spoil_step, "step 'retina' is not in the repository"),
    ],
)
def test_configs_that_disagree_are_refused(spoil: Any, words: str) -> None:
    spec = toy_spec()
    configs = configs_of(spec)
    spoil(configs)
    with pytest.raises(UserError, match=words):
        check_configs(configs, expected_signature(spec))


def test_versions_follow_each_other(toy_onnx: Path, tmp_path: Path) -> None:
    repository = tmp_path / "deep" / "repository"
    assert build_repository(toy_onnx, repository).version == 1
    assert build_repository(toy_onnx, repository, options=BuildOptions(precision="bf16")).version == 2
    shutil.rmtree(repository / "detector" / "2")  # what a build that was killed half-way leaves behind
    assert build_repository(toy_onnx, repository).version == 3
    assert {path.name for path in (repository / "retinanet").iterdir() if path.is_dir()} == {
        "1",
        "2",
        "3",
        "warmup",
    }
    assert (repository / "retinanet" / "3" / "model.onnx").read_bytes() == toy_onnx.read_bytes()
    assert (repository / "preprocess" / "3" / "preprocess" / "admission.py").is_file()
    assert [path.name for path in repository.parent.iterdir()] == ["repository"]  # no staging left


def test_another_detector_needs_another_repository(toy_onnx: Path, tmp_path: Path) -> None:
    build_repository(toy_onnx, tmp_path / "repository")
    other = DetectorSpec.create(["disc", "box", "moon"], size=(128, 192), backbone="resnet18", width=8)
    heads = tmp_path / "heads.onnx"
    export_heads(toy_model(other), other, heads)
    onnx.save(graft(heads), tmp_path / "other.onnx")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match="another classes"):
        build_repository(tmp_path / "other.onnx", tmp_path / "repository")
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(UserError, match="spec calls for"):
        read_signature(heads)


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "no such file"), (b"", "it is empty"), (b"not onnx at all", "is not an ONNX model")],
    ids=["missing", "empty", "garbage"],
)
def test_files_that_are_no_detector(tmp_path: Path, content: bytes | None, words: str) -> None:
    path = tmp_path / "model.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=words):
        build_repository(path, tmp_path / "repository")
    assert not (tmp_path / "repository").exists()


def test_plugins_are_nothing_for_the_cpu(tmp_path: Path) -> None:
    spec = toy_spec()
    export_heads(toy_model(spec), spec, tmp_path / "heads.onnx")
    onnx.save(graft(tmp_path / "heads.onnx", flavour="tensorrt"), tmp_path / "model.onnx")
    with pytest.raises(UserError, match="can't run: RetinaNetDecode, RetinaNetNMS"):
        build_repository(tmp_path / "model.onnx", tmp_path / "repository")


def test_a_folder_of_somebody_else_is_left_alone(toy_onnx: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").touch()
    with pytest.raises(UserError, match="not a repository of ours"):
        build_repository(toy_onnx, tmp_path / "photos")
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["a.jpg"]


def test_a_config_with_a_typo_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "config.pbtxt"
    path.write_text('name: "x"\nmax_batchsize: 3\n')
    with pytest.raises(UserError, match=r"2:1.*max_batchsize"):
        read_config(path)
