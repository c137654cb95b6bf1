"""`demo --quick` from end to end: pictures with boxes, and a repository to go on with."""

import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image, ImageChops

from retinaserve.scripts.cli.main import main
from retinaserve.scripts.demo.quickstart import quickstart
from retinaserve.scripts.lab.images import checkpoint as example_checkpoint
from retinaserve.scripts.server.triton import Server
from retinaserve.training.checkpoint import Checkpoint, load, save
from retinaserve.training.errors import UserError
from tests.toys import toy_model, toy_spec


@pytest.mark.server
def test_quickstart(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["demo", "--quick", "--output", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    predictions = tmp_path / "out" / "predictions"
    assert result.stdout.splitlines()[-1] == str(predictions)
    assert "{" not in result.stdout
    originals = sorted((tmp_path / "out" / "data" / "val" / "images").iterdir())
    assert len(originals) == 12
    changed = 0
    for original in originals:
        with Image.open(original) as before, Image.open(predictions / original.name) as after:
            if before.size == after.size:  # not one that EXIF turns
                difference = ImageChops.difference(before.convert("RGB"), after.convert("RGB"))
                changed += max(high for _, high in difference.getextrema()) > 100
    assert changed >= 6  # boxes are drawn on most of them; JPEG alone changes less
    _try_what_it_says(result.stderr, tmp_path / "out")


def _try_what_it_says(said: str, output: Path) -> None:
    """Run the commands it ends with, on free ports."""
    assert "next:" not in said, "a step would name a server that is gone"
    lines = re.findall("retinaserve .*", said[said.index("then try") :])
    commands = [shlex.split(line, comments=True)[1:] for line in lines]
    assert [words[0] for words in commands] == ["serve", "predict", "web", "data", "train"]
    (_, repository), predict, web, *helps = commands
    with Server(Path(repository)) as server:
        answered = CliRunner().invoke(main, [*predict, "--server", server.grpc_url])
        assert answered.exit_code == 0 and len(list((output / "annotated").iterdir())) == 12, answered.output
    for words in ([*web, "--help"], *helps):
        assert CliRunner().invoke(main, words).exit_code == 0


def test_without_the_checkpoint_it_says_where_one_comes_from(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such checkpoint"):
        quickstart(tmp_path, tmp_path / "shapes.pth")


def test_the_example_has_no_optimizer(tmp_path: Path) -> None:
    weights = toy_model(toy_spec()).state_dict()
    save(tmp_path / "checkpoint.pth", Checkpoint(toy_spec(), weights, 7, {"optimizer": {"state": {}}}))
    example_checkpoint(tmp_path, tmp_path / "example.pth")
    found = load(tmp_path / "example.pth")
    assert (found.spec, found.iteration, found.training) == (toy_spec(), 7, {})
    assert all((found.weights[name] == value).all() for name, value in weights.items())
