import sys
from pathlib import Path

import pytest

from retinaserve.scripts.lab.engine_limit import Network, engine_limit, main


def test_both_ways_are_measured(toy_onnx: Path) -> None:
    rates = engine_limit(toy_onnx, threads=2, precision="f32", seconds=0.2)
    assert set(rates) == {"together", "apart"} and min(rates.values()) > 1


def test_graphs_are_compared_in_turns(
    toy_onnx: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["engine_limit", str(toy_onnx), str(toy_onnx), "--rounds", "5", "--seconds", "0.05"]
    monkeypatch.setattr(sys, "argv", words)
    main()
    first, second, *_ = lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and first.endswith("1.000 of the first")
    assert 0.2 < float(second.split()[-4]) < 5, "the same graph is as fast"


def test_the_profile_names_what_takes_the_time(toy_onnx: Path) -> None:
    network = Network(toy_onnx, threads=1, precision="f32", streams=1, profile=True)
    kinds = network.operators(3)
    assert kinds["Convolution"] > 0 and list(kinds.values()) == sorted(kinds.values(), reverse=True)
    assert {"TopK", "NonMaxSuppression"} <= set(kinds)
