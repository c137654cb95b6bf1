"""`demo --quick` from end to end: pictures with boxes, and a repository to go on with."""

from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image, ImageChops

from scripts.cli import main
from scripts.example_checkpoint import example_checkpoint
from scripts.quickstart import quickstart
from tests.toys import toy_model, toy_spec
from training.checkpoint import Checkpoint, load, save
from training.errors import UserError


@pytest.mark.server
def test_quickstart(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["demo", "--quick", "--output", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    predictions = tmp_path / "out" / "predictions"
    assert result.stdout.splitlines()[-1] == str(predictions)
    assert "retinaserve serve" in result.stderr and "{" not in result.stdout
    originals = sorted((tmp_path / "out" / "data" / "val" / "images").iterdir())
    assert len(originals) == 12
    changed = 0
    for original in originals:
        with Image.open(original) as before, Image.open(predictions / original.name) as after:
            if before.size == after.size:  # not one that EXIF turns
                difference = ImageChops.difference(before.convert("RGB"), after.convert("RGB"))
                changed += max(high for _, high in difference.getextrema()) > 100
    assert changed >= 6  # boxes are drawn on most of them; JPEG alone changes less
    assert (tmp_path / "out" / "repository" / "detector" / "config.pbtxt").is_file()


def test_without_the_checkpoint_it_says_where_one_comes_from(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such checkpoint"):
        quickstart(tmp_path, tmp_path / "shapes.pth")


def test_the_example_has_no_optimizer(tmp_path: Path) -> None:
    weights = toy_model(toy_spec()).state_dict()
    save(tmp_path / "trained.pth", Checkpoint(toy_spec(), weights, 7, {"optimizer": {"state": {}}}))
    example_checkpoint(tmp_path / "trained.pth", tmp_path / "example.pth")
    found = load(tmp_path / "example.pth")
    assert (found.spec, found.iteration, found.training) == (toy_spec(), 7, {})
    assert all((found.weights[name] == value).all() for name, value in weights.items())
