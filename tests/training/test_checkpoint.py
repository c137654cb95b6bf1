import json
import math
import os
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from retinaserve.training.checkpoint import Checkpoint, load, load_model, save
from retinaserve.training.errors import UserError
from retinaserve.training.model import build_model
from retinaserve.training.model.retinanet import RetinaNet
from tests.toys import small_spec

SPEC = small_spec(["a", "b"], size=(64, 96), fpn_channels=8, category_ids=[3, 90])


@pytest.fixture(scope="module")
def model() -> RetinaNet:
    torch.manual_seed(0)
    return build_model(SPEC)


def test_a_model_comes_back_as_it_was(tmp_path: Path, model: RetinaNet) -> None:
    path = tmp_path / "new" / "folder" / "model.pth"
    save(path, Checkpoint(SPEC, model.state_dict(), iteration=7, training={"optimizer": {"state": {}}}))
    found = load(path)
    assert (found.spec, found.iteration, found.training) == (SPEC, 7, {"optimizer": {"state": {}}})
    spec, loaded = load_model(path)
    assert spec == SPEC and not loaded.training
    images = torch.rand(1, 3, 64, 96)
    model.eval()
    with torch.inference_mode():
        for ours, theirs in zip(model(images), loaded(images), strict=True):
            assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_the_file_has_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    save(tmp_path / "model.pth", Checkpoint(SPEC, {}))
    (tmp_path / "other").write_text("")
    assert (tmp_path / "model.pth").stat().st_mode == (tmp_path / "other").stat().st_mode


class Payload:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("pickle-was-run",)


@pytest.mark.parametrize(
    "kind", ["empty", "text", "truncated", "code", "code in a torch file", "bare weights", "list"]
)
def test_other_files_are_refused_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: RetinaNet, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "model.pth"
    save(path, Checkpoint(SPEC, model.state_dict()))
    match kind:
        case "empty":
            path.write_bytes(b"")
        case "text":
            path.write_text("hello, I am a text file of some length\n" * 9)
        case "truncated":
            path.write_bytes(path.read_bytes()[:5000])
        case "code":
            path.write_bytes(pickle.dumps(Payload()))
        case "code in a torch file":
            torch.save({"format": 1, "spec": SPEC.to_json(), "weights": Payload()}, path)
        case "bare weights":
            torch.save(model.state_dict(), path)
        case "list":
            torch.save([1, 2], path)
    with pytest.raises(UserError, match=r"model\.pth: not a checkpoint of retinaserve"):
        load(path)
    assert not Path("pickle-was-run").exists()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.pth: no such checkpoint"):
        load(tmp_path / "none.pth")


def test_a_later_format_is_refused(tmp_path: Path) -> None:
    torch.save({"format": 2, "spec": SPEC.to_json(), "weights": {}}, tmp_path / "model.pth")
    with pytest.raises(UserError, match="format 2"):
        load(tmp_path / "model.pth")


def test_a_spec_of_another_version_is_refused(tmp_path: Path) -> None:
    text = json.dumps({**json.loads(SPEC.to_json()), "colour": "red"})
    torch.save({"format": 1, "spec": text, "weights": {}}, tmp_path / "model.pth")
    with pytest.raises(UserError, match="unknown fields: colour"):
        load(tmp_path / "model.pth")


def test_weights_of_another_network_are_refused(tmp_path: Path, model: RetinaNet) -> None:
    other = replace(SPEC, network=replace(SPEC.network, width=16))
    save(tmp_path / "model.pth", Checkpoint(other, model.state_dict()))
    with pytest.raises(UserError, match="don't fit the spec"):
        load_model(tmp_path / "model.pth")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_no_numbers_are_refused(tmp_path: Path, model: RetinaNet, value: float) -> None:
    name, weights = next(iter(model.state_dict())), model.state_dict()
    weights[name] = weights[name].clone().fill_(value)
    save(tmp_path / "model.pth", Checkpoint(model.spec, weights))
    with pytest.raises(UserError, match=f"1 tensors hold NaN or infinity, {name} the first"):
        load_model(tmp_path / "model.pth")
