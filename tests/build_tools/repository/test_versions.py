"""Pins written into a repository's configs, and what a later build makes of them."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from retinaserve.build_tools.repository.builder import build_repository
from retinaserve.build_tools.repository.configs import MODELS, read_config
from retinaserve.build_tools.repository.versions import CANARY, Pins, read_pins, versions_of, write_pins
from retinaserve.training.errors import UserError


@pytest.fixture
def two(repository: Path, tmp_path: Path) -> Path:
    """A repository with versions 1 and 2."""
    copy = tmp_path / "repository"
    shutil.copytree(repository, copy)
    for name in MODELS["cpu"]:
        shutil.copytree(copy / name / "1", copy / name / "2")
    return copy


def test_a_new_repository_pins_nothing(two: Path) -> None:
    assert read_pins(two) is None
    assert versions_of(two) == [1, 2]


def test_an_incomplete_version_is_none(two: Path) -> None:
    shutil.rmtree(two / "detector" / "2")
    assert versions_of(two) == [1]
    shutil.rmtree(two / "detector" / "1")
    with pytest.raises(UserError, match="no version that all"):
        versions_of(two)


def test_another_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a repository of ours"):
        versions_of(tmp_path)


def test_what_is_written_is_read_and_pins_the_steps(two: Path) -> None:
    pins = Pins(served=1, loaded=(1, 2), previous=2, canary=2)
    write_pins(two, pins)
    assert read_pins(two) == pins
    for name, version in (("detector", 1), (CANARY, 2)):
        config = read_config(two / name / "config.pbtxt")
        assert config.name == name
        assert list(config.version_policy.specific.versions) == [version]
        assert {step.model_version for step in config.ensemble_scheduling.step} == {version}
        assert (two / name / str(version)).is_dir()
    for name in ("preprocess", "retinanet"):
        assert list(read_config(two / name / "config.pbtxt").version_policy.specific.versions) == [1, 2]
    write_pins(two, replace(pins, canary=None, previous=None))
    assert read_pins(two) == Pins(served=1, loaded=(1, 2)) and not (two / CANARY).exists()


def test_a_build_leaves_the_pins_alone(two: Path, toy_onnx: Path) -> None:
    pins = Pins(served=1, loaded=(1, 2), previous=2)
    write_pins(two, pins)
    assert build_repository(toy_onnx, two).version == 3
    assert read_pins(two) == pins
    steps = read_config(two / "detector" / "config.pbtxt").ensemble_scheduling.step
    assert [step.model_version for step in steps] == [1, 1]
