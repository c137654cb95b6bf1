import json
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from retinaserve.scripts.cli.learn.train import train
from retinaserve.scripts.cli.options import PATH, config_option, load_config
from retinaserve.training.errors import UserError
from retinaserve.training.trainer.record import RECIPES, save_record


@click.command("train")
@click.argument("model", type=PATH)
@config_option
@click.option("--images", type=PATH, required=True)
@click.option("--lr", type=click.FloatRange(min=0, min_open=True), default=0.1)
@click.option("--size", type=int, nargs=2, default=(512, 512))
@click.option("--norm", type=click.Choice(("none", "batch")), default="batch")
@click.option("--weight-decay", "--regularization-l2", type=float)
@click.option("--milestones", type=int, multiple=True)
@click.option("--giou", is_flag=True)
@click.option("--override", is_flag=True)
def command(model: Path, **options: Any) -> None:
    """Take flags of every kind that `train` has."""
    recorded = {name: value for name, value in options.items() if name != "override"}
    save_record(model, recorded, {"spec": {"size": options["size"]}})
    click.echo(json.dumps(options, default=str))


def run(folder: Path, text: str, *flags: str) -> dict[str, Any]:
    (folder / "my.yaml").write_text(text)
    arguments = [str(folder / "model.pth"), "--config", str(folder / "my.yaml"), *flags]
    result = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_an_empty_file_changes_nothing(tmp_path: Path) -> None:
    found = run(tmp_path, "# nothing\n", "--images", "a")
    assert (found["lr"], found["size"], found["giou"], found["milestones"]) == (0.1, [512, 512], False, [])


def test_flags_override_the_file_and_the_file_overrides_defaults(tmp_path: Path) -> None:
    # 1e-3 is a string in YAML 1.1
    text = "images: folder\nlr: 1e-3\nsize: [64, 96]\nnorm: none\n"
    text += "regularization-l2: 0.5\nmilestones: [3, 5]\ngiou: true\n"
    found = run(tmp_path, text, "--size", "32", "32")
    assert found == {
        "images": "folder",
        "lr": 0.001,
        "size": [32, 32],
        "norm": "none",
        "weight_decay": 0.5,
        "milestones": [3, 5],
        "giou": True,
        "override": False,
    }


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("leraning-rate: 1\n", "'leraning-rate' is not a flag of train", "--help"),
        ("sizes: [1, 2]\n", "'sizes' is not a flag", "did you mean 'size'?"),
        ("weight_decya: 1\n", "'weight_decya' is not a flag", "did you mean 'weight-decay'?"),
        ("model: a.pth\n", "'model' is not a flag", ""),
        ("override: true\n", "'override' is not a flag", ""),
        ("lr: fast\n", "lr: 'fast' is not a valid float", "it is 'fast'"),
        ("lr: 0\n", "lr: 0.0 is not in the range x>0", ""),
        ("size: 512\n", "size: ", "it is 512"),
        ("size: [1, 2, 3]\n", "size: ", ""),
        ("norm: no\n", "norm: ", "it is False"),
        ("lr: 1\nlr: 2\n", "'lr' is there twice", "keep one"),
        ("- lr\n", "not a mapping", "lr: 0.01"),
        ("lr: [1\n", "line 2", ""),
        ("lr\n", "not a mapping", ""),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, message: str, hint: str) -> None:
    (tmp_path / "my.yaml").write_text(text)
    with pytest.raises(UserError) as refused:
        load_config(tmp_path / "my.yaml", click.Context(command, info_name="train"))
    assert "my.yaml" in refused.value.message and message in refused.value.message
    assert hint in refused.value.hint and refused.value.code == 2


def test_a_missing_file_names_the_recipes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file") as refused:
        load_config(tmp_path / "none.yaml", click.Context(command))
    assert "bccd, bccd-cpu, cpu, fast-n, fast-s, playing_cards, playing_cards-cpu, shapes" in refused.value.hint


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_recipes_are_flags_of_train(path: Path) -> None:
    values = load_config(Path(path.stem), click.Context(train, info_name="train"))
    assert {"backbone", "size", "iters", "batch", "lr", "augment"} <= values.keys()


def test_the_record_runs_again(tmp_path: Path) -> None:
    first = run(tmp_path, "images: folder\nlr: 0.25\nmilestones: [3, 5]\nnorm: none\n", "--size", "32", "48")
    record = tmp_path / "model.config.yaml"
    again = run(tmp_path, record.read_text())
    assert first == again
    written = json.loads((tmp_path / "model.environment.json").read_text())
    assert written["spec"] == {"size": [32, 48]} and written["packages"]["torch"]
