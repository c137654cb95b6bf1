"""The model table: counted by hand, kept over an interruption, and one backbone on the real server."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from retinaserve.scripts.lab.model_table import (
    Flavour,
    Options,
    Scored,
    Table,
    Trained,
    measure,
    network_cost,
    score,
)
from retinaserve.scripts.lab.model_table_command import model_table
from retinaserve.scripts.lab.model_table_page import command, cost_lines, page
from retinaserve.scripts.precisions import random_spec
from retinaserve.scripts.shapes.draw import draw_dataset
from retinaserve.training.checkpoint import Checkpoint, save
from retinaserve.training.errors import UserError
from retinaserve.training.spec import BACKBONES, DetectorSpec
from tests.toys import toy_model, toy_spec


def test_an_empty_table_has_every_backbone() -> None:
    text = page(Table(Path("work"), Options()))
    assert [line.split(" | ")[0][2:] for line in text.splitlines() if line.endswith("| not run |")] == [*BACKBONES]
    assert "## Trained" not in text and "retinaserve model-table --output docs/model_zoo.md\n" in text


def test_network_cost_by_hand() -> None:
    """What another class costs, by hand: the rest of the network is the same."""
    spec = DetectorSpec.create(["a"], size=(128, 128), backbone="resnet18", fpn_channels=16, head_depth=0)
    more = DetectorSpec.create(["a", "b"], size=(128, 128), backbone="resnet18", fpn_channels=16, head_depth=0)
    (parameters, operations), (parameters_more, operations_more) = network_cost(spec), network_cost(more)
    outputs = 9  # another class is another channel for each anchor of a cell
    assert parameters_more - parameters == outputs * (16 * 3 * 3 + 1)
    cells = 16**2 + 8**2 + 4**2 + 2**2 + 1
    assert operations_more - operations == 2 * cells * outputs * 16 * 3 * 3


def test_resnet50_is_the_published_network() -> None:
    """torchvision counts 34.0 M for 91 classes; 80 have 9 x 256 x 9 x 11 fewer, and P6 from C5 is 4.1 M larger."""
    parameters, _ = network_cost(random_spec("resnet50", (128, 128)))
    torchvision = 34_014_999
    p6 = 256 * 3 * 3 * (2048 - 256)
    fewer = 9 * 11 * (256 * 3 * 3 + 1)
    assert abs(parameters - (torchvision + p6 - fewer)) < 60_000  # batch norms of the backbone: 53,120


def row(precision: str, ips: list[float]) -> Flavour:
    return Flavour(precision, 10.0, [100.0] * len(ips), [110.0] * len(ips), ips)


def test_ratios_are_taken_within_a_round() -> None:
    """By hand: 10/5, 4/1 and 3/2 have the median 2."""
    rows = [row("fp32", [5.0, 1.0, 2.0]), row("int8", [10.0, 4.0, 3.0])]
    table = Table(Path("work"), Options(), {"resnet18": rows})
    first, second = cost_lines(table, "resnet18")
    assert " | 1.00 | not run |" in first and " | 2.00 (1.50 to 4.00) | not run |" in second


def test_lines_name_a_backbone_once() -> None:
    table = Table(Path("work"), Options(size=64))
    table.backbones["resnet18"] = [row("fp32", [1.0, 2.0, 3.0]), row("int8", [3.0, 6.0, 9.0])]
    first, second = cost_lines(table, "resnet18")
    assert first.startswith("| resnet18 | 21.4 | ") and first.endswith(
        "| fp32 | 10.0 | 100 | 110 | 2.00 | 1.00 | not run |"
    )
    assert second == "|  |  |  | int8 | 10.0 | 100 | 110 | 6.00 | 3.00 | not run |"


def test_the_command_is_that_of_the_options() -> None:
    table = Table(Path("work"), Options(size=320, seconds=2.5))
    table.trained["cells"] = Scored(toy_spec().to_json(), {}, {}, {})
    assert command(table).replace("\\\n    ", "").split()[4:] == [
        *("--size", "320", "--seconds", "2.5"),
        *("--trained", "cells", "cells.pth", "cells/images", "cells/val.json", "cells/train.json"),
    ]


def test_results_are_kept(tmp_path: Path) -> None:
    table = Table.open(tmp_path, Options())
    assert not table.backbones
    table.backbones["resnet18"] = [row("fp32", [1.0])]
    table.trained["cells"] = Scored(toy_spec().to_json(), {"fp32": 1.0}, {"fp32": 0.5}, {"fp32": None})
    table.save()
    again = Table.open(tmp_path, Options())
    assert again == table


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("nonsense", Options(), "not the results of an earlier run"),
        ('{"format": 0}', Options(), "not the results of an earlier run"),
        (None, Options(size=320, rounds=1), "measured with --size 640, --rounds 3"),
    ],
)
def test_other_results_are_not_mixed_in(tmp_path: Path, text: str | None, options: Options, message: str) -> None:
    if text is None:
        Table(tmp_path, Options()).save()
    else:
        (tmp_path / "model_table.json").write_text(text)
    with pytest.raises(UserError, match=message):
        Table.open(tmp_path, options)


def test_a_missing_file_is_said_before_the_long_work(tmp_path: Path) -> None:
    words = ["--work", str(tmp_path), "--trained", "cells", str(tmp_path / "no.pth"), *"xyz"]
    error = CliRunner().invoke(model_table, words).exception
    assert isinstance(error, UserError) and error.message.startswith("--trained cells: ")
    assert "no.pth: no such file" in error.message


@pytest.mark.server
def test_a_backbone_and_a_trained_detector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retinaserve.scripts.lab.model_table.random_checkpoint", _toy)
    monkeypatch.setattr("retinaserve.scripts.lab.model_table.PICTURES", 4)
    monkeypatch.setattr("retinaserve.scripts.lab.model_table.flags", lambda: frozenset({"avx512_bf16"}))
    table, said = Table.open(tmp_path / "work", Options(size=128, rounds=1, seconds=0.5)), list[str]()
    rows = measure(table, "resnet18", say=said.append)
    assert [each.precision for each in rows] == ["fp32", "bf16", "int8"]
    assert rows[0].megabytes == rows[1].megabytes > rows[2].megabytes
    for each in rows:
        assert len(each.ips) == len(each.model_ms) == 1
        assert all(0 < model < request for model, request in zip(each.model_ms, each.request_ms, strict=True))
    assert not (tmp_path / "work" / "resnet18").exists() and "round 1 of 1: fp32" in said[-1]

    _toy("", tmp_path / "model.pth", (0, 0))
    drawn = draw_dataset(tmp_path / "drawn", images=2, seed=5)
    labels = json.loads(drawn.annotations.read_text())
    names = toy_spec().classes
    labels["categories"] = labels["categories"][: len(names)]
    for category, name in zip(labels["categories"], names, strict=True):
        category["name"] = name
    kept = {category["id"] for category in labels["categories"]}
    labels["annotations"] = [each for each in labels["annotations"] if each["category_id"] in kept]
    drawn.annotations.write_text(json.dumps(labels))
    trained = Trained("toy", tmp_path / "model.pth", drawn.images, drawn.annotations, drawn.images)
    found = score(table, trained, say=said.append)
    assert set(found.ap) == set(found.ap50) == {"fp32", "int8"} and found.ap["fp32"] is not None
    assert Table.open(tmp_path / "work", table.options) == table
    text = page(table)
    assert "| toy | resnet18 / 8 | 128 x 192 | 3 | " in text and str(tmp_path) not in text


def _toy(_: str, path: Path, __: tuple[int, int]) -> None:
    """A small network in place of the published sizes, which take a minute each."""
    save(path, Checkpoint(toy_spec(), toy_model(toy_spec()).state_dict()))
