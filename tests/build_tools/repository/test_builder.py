"""Versions into a repository of either profile, and what must be refused."""

import shutil
from pathlib import Path

import onnx
import pytest

from retinaserve.build_tools.graph.graft import graft
from retinaserve.build_tools.graph.onnx_io import OnnxGraph
from retinaserve.build_tools.repository.builder import build_repository
from retinaserve.build_tools.repository.configs import BuildOptions
from retinaserve.training.errors import UserError
from tests.toys import export_heads, small_spec, toy_model


def test_versions_follow_each_other(toy_onnx: Path, tmp_path: Path) -> None:
    repository = tmp_path / "deep" / "repository"
    assert build_repository(toy_onnx, repository).version == 1
    assert build_repository(toy_onnx, repository, options=BuildOptions(arithmetic="bf16")).version == 2
    shutil.rmtree(repository / "detector" / "2")  # what a build that was killed half-way leaves behind
    assert build_repository(toy_onnx, repository).version == 3
    assert {path.name for path in (repository / "retinanet").iterdir() if path.is_dir()} == {
        "1",
        "2",
        "3",
        "warmup",
    }
    assert (repository / "retinanet" / "3" / "model.onnx").read_bytes() == toy_onnx.read_bytes()
    assert (repository / "preprocess" / "3" / "preprocess" / "pixels" / "verdict.py").is_file()
    assert [path.name for path in repository.parent.iterdir()] == ["repository"]  # no staging left


def test_another_detector_needs_another_repository(toy_onnx: Path, tmp_path: Path) -> None:
    build_repository(toy_onnx, tmp_path / "repository")
    other = small_spec(["disc", "box", "moon"], size=(128, 192))
    heads = tmp_path / "heads.onnx"
    export_heads(toy_model(other), other, heads)
    onnx.save(graft(heads), tmp_path / "other.onnx")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match="another classes"):
        build_repository(tmp_path / "other.onnx", tmp_path / "repository")
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(UserError, match="spec calls for"):
        OnnxGraph.read(heads)


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


def test_plugins_are_nothing_for_the_cpu(toy_heads: Path, tmp_path: Path) -> None:
    onnx.save(graft(toy_heads, flavour="tensorrt"), tmp_path / "model.onnx")
    with pytest.raises(UserError, match="can't run: RetinaNetDecode, RetinaNetNMS"):
        build_repository(tmp_path / "model.onnx", tmp_path / "repository")


def test_a_folder_of_somebody_else_is_left_alone(toy_onnx: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").touch()
    with pytest.raises(UserError, match="not a repository of ours"):
        build_repository(toy_onnx, tmp_path / "photos")
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["a.jpg"]
