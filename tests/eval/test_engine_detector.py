"""A plan's manifest is read and checked anywhere; the plan itself runs where its GPU is."""

import hashlib
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from eval.detectors import OnnxDetector
from eval.engine_detector import EngineDetector, read_description
from eval.verify_sources import open_file
from tests.pictures import checker, encode
from tests.toys import toy_spec
from training.errors import Exit, UserError

NO_TENSORRT = importlib.util.find_spec("tensorrt") is None


def write_plan(path: Path, content: bytes, **changes: object) -> Path:
    """Write a plan with a manifest as `retinaserve export` does."""
    spec = json.loads(toy_spec().to_json())
    manifest = {"spec": spec, "precision": "fp16", "plan_sha256": hashlib.sha256(content).hexdigest(), **changes}
    path.write_bytes(content)
    path.with_name(f"{path.name}.json").write_text(
        json.dumps({key: value for key, value in manifest.items() if value is not None})
    )
    return path


def test_the_manifest_tells_what_the_plan_does_not(tmp_path: Path) -> None:
    plan = write_plan(tmp_path / "model.plan", b"a plan")
    assert read_description(plan, b"a plan") == (toy_spec(), "fp16")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"plan_sha256": "0" * 64}, "is the manifest of another plan"),
        ({"spec": None}, "model.plan.json is no manifest of a plan: KeyError 'spec'"),
        ({"precision": None}, "is no manifest of a plan: KeyError 'precision'"),
        ({"spec": {"format": 99}}, "detector spec has format 99"),
    ],
    ids=["another plan", "no spec", "no precision", "later spec"],
)
def test_a_wrong_manifest_is_named(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    plan = write_plan(tmp_path / "model.plan", b"a plan", **changes)
    with pytest.raises(UserError, match=message) as caught:
        open_file(plan)
    assert caught.value.code == Exit.BAD_DATA


def test_no_manifest_and_no_json(tmp_path: Path) -> None:
    plan = tmp_path / "model.plan"
    plan.write_bytes(b"a plan")
    with pytest.raises(UserError, match=r"model\.plan has no manifest: model\.plan\.json is missing"):
        EngineDetector(plan)
    (tmp_path / "model.plan.json").write_text("{")
    with pytest.raises(UserError, match="is no manifest of a plan: JSONDecodeError"):
        EngineDetector(plan)


@pytest.mark.skipif(not NO_TENSORRT, reason="TensorRT is installed")
def test_without_tensorrt_it_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="needs TensorRT, which is not installed") as caught:
        EngineDetector(write_plan(tmp_path / "model.plan", b"a plan"))
    assert caught.value.hint == "pip install 'retinaserve[gpu]'" and caught.value.code == Exit.USAGE


@pytest.mark.gpu
@pytest.mark.skipif(NO_TENSORRT or not torch.cuda.is_available(), reason="needs TensorRT and an NVIDIA GPU")
def test_a_plan_answers_as_its_graph(toy_onnx: Path, tmp_path: Path) -> None:
    """The standard flavour, which TensorRT parses without plugins; seven pictures in a plan for two to four."""
    import tensorrt as trt

    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    assert parser.parse_from_file(str(toy_onnx)), [str(parser.get_error(i)) for i in range(parser.num_errors)]
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    for name, shape in (("image", (3, *toy_spec().size)), ("letterbox", (4,))):
        profile.set_shape(name, *((count, *shape) for count in (2, 3, 4)))
    config.add_optimization_profile(profile)
    content = bytes(builder.build_serialized_network(network, config))
    pictures = [encode(checker(150 + 90 * n, 400 - 30 * n, seed=n, cell=15 + 9 * n)) for n in range(7)]
    expected = OnnxDetector(toy_onnx).predict(pictures)
    found = EngineDetector(write_plan(tmp_path / "toy.plan", content, precision="fp32")).predict(pictures)
    for one, other in zip(found, expected, strict=True):
        assert abs(len(one) - len(other)) <= 2
        count = min(len(one), len(other), 10)
        np.testing.assert_allclose(one.scores[:count], other.scores[:count], atol=0.01)

    foreign = write_plan(tmp_path / "foreign.plan", content[:1000])
    with pytest.raises(UserError, match="refuses the plan"):
        EngineDetector(foreign)
