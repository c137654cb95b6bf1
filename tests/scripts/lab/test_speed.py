"""The lab's speeds: what a network costs by hand, the table's lines, a backbone on the real server."""

import json
from pathlib import Path

import pytest

from retinaserve.scripts.lab.speed import lines, main, network_cost
from retinaserve.scripts.precisions import random_spec
from retinaserve.training.checkpoint import Checkpoint, save
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


def row(ips: list[float]) -> dict[str, object]:
    return {"megabytes": 10.0, "request_ms": [110.0] * len(ips), "ips": ips}


def test_lines_name_a_backbone_once_and_take_ratios_within_a_round() -> None:
    """By hand: 10/5, 4/1 and 3/2 have the median 2."""
    rows = {"fp32": row([5.0, 1.0, 2.0]), "int8": row([10.0, 4.0, 3.0])}
    first, second = lines("resnet18", 64, rows)
    assert first.startswith("| resnet18 | 21.4 | ") and first.endswith("| fp32 | 10.0 | 110 | 2.00 | 1.00 |")
    assert second == "|  | |  | int8 | 10.0 | 110 | 4.00 | 2.00 (1.50 to 4.00) |"


@pytest.mark.server
def test_a_backbone_is_measured_in_every_precision_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def toy(_: str, path: Path, __: tuple[int, int]) -> None:
        """A small network in place of the published sizes, which take a minute each."""
        save(path, Checkpoint(toy_spec(), toy_model(toy_spec()).state_dict()))

    monkeypatch.setattr("retinaserve.scripts.lab.speed.random_checkpoint", toy)
    monkeypatch.setattr("retinaserve.scripts.lab.speed.flags", frozenset)  # test_precisions has bf16
    words = ["--output", str(tmp_path), "--size", "128", "--rounds", "1", "--seconds", "0.5"]
    main(["backbones", *words, "--backbone", "resnet18"])
    first = capsys.readouterr()
    rows = json.loads((tmp_path / "resnet18-128.json").read_text())["rows"]
    assert list(rows) == ["fp32", "int8"] and rows["fp32"]["megabytes"] > rows["int8"]["megabytes"]
    assert all(len(each["ips"]) == 1 and each["request_ms"][0] > 0 for each in rows.values())
    assert first.out.count("| resnet18 |") == 1 and "round 1 of 1: fp32" in first.err
    main(["backbones", *words, "--backbone", "resnet18"])
    again = capsys.readouterr()
    assert (again.out, again.err) == (first.out, ""), "what is there is not measured again"
