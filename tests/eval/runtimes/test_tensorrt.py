"""A plan's manifest is read and checked anywhere; the plan itself runs where its GPU is."""

import hashlib
import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from retinaserve.build_tools.engine.manifest import write_plan
from retinaserve.eval.runtimes.detector import open_detector
from retinaserve.training.errors import Exit, UserError
from tests.images import checker, encode
from tests.toys import PLAN, toy_manifest, toy_spec

NO_TENSORRT = importlib.util.find_spec("tensorrt") is None


def plan_of(path: Path, content: bytes = PLAN, *, precision: str = "fp16") -> Path:
    """Write a plan with its manifest, as `retinaserve export` does."""
    digest = hashlib.sha256(content).hexdigest()
    write_plan(path, content, replace(toy_manifest(), precision=precision, plan_sha256=digest))
    return path


@pytest.mark.skipif(not NO_TENSORRT, reason="TensorRT is installed")
def test_without_tensorrt_it_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="needs TensorRT, which is not installed") as caught:
        open_detector(plan_of(tmp_path / "model.plan", b"a plan"))
    assert caught.value.hint == "pip install 'retinaserve[gpu]'" and caught.value.code == Exit.USAGE


@pytest.mark.gpu
@pytest.mark.skipif(NO_TENSORRT or not torch.cuda.is_available(), reason="needs TensorRT and an NVIDIA GPU")
def test_a_plan_answers_as_its_graph(toy_onnx: Path, tmp_path: Path) -> None:
    """The standard flavour, which TensorRT parses without plugins; seven images in a plan for two to four."""
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
    images = [encode(checker(150 + 90 * n, 400 - 30 * n, seed=n, cell=15 + 9 * n)) for n in range(7)]
    expected = open_detector(toy_onnx).predict(images)
    found = open_detector(plan_of(tmp_path / "toy.plan", content, precision="fp32")).predict(images)
    for one, other in zip(found, expected, strict=True):
        assert abs(len(one) - len(other)) <= 2
        count = min(len(one), len(other), 10)
        np.testing.assert_allclose(one.scores[:count], other.scores[:count], atol=0.01)

    foreign = plan_of(tmp_path / "foreign.plan", content[:1000])
    with pytest.raises(UserError, match="refuses the plan"):
        open_detector(foreign)
