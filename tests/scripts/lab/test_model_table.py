"""The model table: counted by hand, kept over an interruption, and one backbone on the real server."""

from pathlib import Path

import pytest

from retinaserve.scripts.lab.model_table import Options, Row, Table, lines, measure, network_cost
from retinaserve.scripts.precisions import random_spec
from retinaserve.training.checkpoint import Checkpoint, save
from retinaserve.training.errors import UserError
from retinaserve.training.spec import DetectorSpec
from tests.toys import toy_model, toy_spec


def test_network_cost_by_hand() -> None:
    """What another class costs, by hand: the rest of the network is the same."""
    spec = DetectorSpec.create(
        ["a"], size=(128, 128), backbone="resnet18", fpn_channels=16, head_depth=0, norm="none"
    )
    more = DetectorSpec.create(
        ["a", "b"], size=(128, 128), backbone="resnet18", fpn_channels=16, head_depth=0, norm="none"
    )
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


def row(precision: str, ips: list[float]) -> Row:
    return Row(precision, 10.0, [100.0] * len(ips), [110.0] * len(ips), ips)


def test_lines_name_a_backbone_once_and_take_ratios_within_a_round() -> None:
    """By hand: 10/5, 4/1 and 3/2 have the median 2."""
    rows = [row("fp32", [5.0, 1.0, 2.0]), row("int8", [10.0, 4.0, 3.0])]
    table = Table(Path("work"), Options(size=64), {"resnet18": rows})
    first, second = lines(table, "resnet18")
    assert first.startswith("| resnet18 | 21.4 | ") and first.endswith("| fp32 | 10.0 | 100 | 110 | 2.00 | 1.00 |")
    assert second == "|  |  |  | int8 | 10.0 | 100 | 110 | 4.00 | 2.00 (1.50 to 4.00) |"
    (unmeasured,) = lines(Table(Path("work"), Options(size=64)), "resnet18")
    assert unmeasured.endswith("| - | - | - | - | - | - |")


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (None, Options(), None),
        ("nonsense", Options(), "not the results of an earlier run"),
        ('{"options": {}}', Options(), "not the results of an earlier run"),
        (None, Options(size=320, rounds=1), "measured with {'size': 640, 'rounds': 3"),
    ],
)
def test_results_are_kept_and_not_mixed_with_others(
    tmp_path: Path, text: str | None, options: Options, message: str | None
) -> None:
    table = Table.open(tmp_path, Options())
    assert not table.backbones
    table.backbones["resnet18"] = [row("fp32", [1.0])]
    table.save()
    if text:
        table.path.write_text(text)
    if message is None:
        assert Table.open(tmp_path, options) == table
        return
    with pytest.raises(UserError, match=message):
        Table.open(tmp_path, options)


@pytest.mark.server
def test_a_backbone_is_measured_in_every_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def toy(_: str, path: Path, __: tuple[int, int]) -> None:
        """A small network in place of the published sizes, which take a minute each."""
        save(path, Checkpoint(toy_spec(), toy_model(toy_spec()).state_dict()))

    monkeypatch.setattr("retinaserve.scripts.lab.model_table.random_checkpoint", toy)
    monkeypatch.setattr("retinaserve.scripts.lab.model_table.IMAGES", 4)
    monkeypatch.setattr("retinaserve.scripts.lab.model_table.flags", frozenset)  # test_precisions has bf16
    table, logged = Table.open(tmp_path / "work", Options(size=128, rounds=1, seconds=0.5)), list[str]()
    rows = measure(table, "resnet18", log=logged.append)
    assert [each.precision for each in rows] == ["fp32", "int8"]
    assert rows[0].megabytes > rows[1].megabytes
    for each in rows:
        assert len(each.ips) == len(each.model_ms) == 1
        assert all(0 < model < request for model, request in zip(each.model_ms, each.request_ms, strict=True))
    assert not (tmp_path / "work" / "resnet18").exists() and "round 1 of 1: fp32" in logged[-1]
    assert Table.open(tmp_path / "work", table.options) == table
