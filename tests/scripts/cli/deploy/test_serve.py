from pathlib import Path

import pytest

from retinaserve.build_tools.repository.versions import versions_of
from retinaserve.scripts.cli.deploy.serve import repository_of
from retinaserve.training.checkpoint import load, save


def test_a_checkpoints_repository_is_built_once(checkpoint: Path, tmp_path: Path) -> None:
    model = tmp_path / "model.pth"
    model.write_bytes(checkpoint.read_bytes())
    repository = tmp_path / "model-repository"
    built = []
    for _ in range(2):
        assert repository_of(model) == repository
        built.append(versions_of(repository))
    trained = load(model)
    next(value for value in trained.weights.values() if value.is_floating_point()).mul_(1.5)
    save(model, trained)
    repository_of(model)
    assert [*built, versions_of(repository)] == [[1], [1], [1, 2]]


@pytest.mark.parametrize("name", ["repository", "model.onnx", "folder.pth"])
def test_what_is_no_checkpoint_is_left(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder.pth").mkdir()
    assert repository_of(tmp_path / name) == tmp_path / name
