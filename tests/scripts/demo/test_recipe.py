import click
import pytest

from retinaserve.scripts.cli.data import shapes
from retinaserve.scripts.cli.train import train
from retinaserve.scripts.demo.recipe import DEMO, Recipe


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        (shapes, ["folder", *DEMO.data_flags()]),
        (train, ["model.pth", "--annotations", "a.json", *DEMO.train_flags()]),
    ],
)
def test_the_flags_are_those_of_the_commands(command: click.Command, arguments: list[str]) -> None:
    context = command.make_context(command.name, arguments)
    given = {**DEMO.data, **DEMO.network, **DEMO.training}
    used = {name: value for name, value in context.params.items() if name in given}
    assert used and all(value == given[name] for name, value in used.items())


def test_flags_by_hand() -> None:
    recipe = Recipe({}, {"fpn_channels": 48, "size": (192, 256)}, {"lr": 0.008})
    assert recipe.data_flags() == []
    assert recipe.train_flags() == ["--fpn-channels", "48", "--size", "192", "256", "--lr", "0.008"]
