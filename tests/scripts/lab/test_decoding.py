"""The lab's command on decoding: it draws, and runs loaders."""

import sys
from pathlib import Path

import pytest

from retinaserve.scripts.lab import decoding
from retinaserve.training.data.dataset import CocoDataset


def test_photos_and_loaders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "photos"

    def said(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["decoding", *words])
        decoding.main()
        return capsys.readouterr().out

    assert "3 images of 1208 x 900" in said("photos", str(folder), "--count", "3", "--sides", "1208", "900")
    data = CocoDataset(folder, folder / "annotations.json")
    assert [data.open(index).size for index in range(3)] == [(900, 1208), (1208, 900), (1208, 900)]
    rates = said(
        "loader", str(folder), "--python", sys.executable, "--side", "96", "--batches", "1", "--rounds", "1"
    )
    assert [line.split(":")[0] for line in rates.splitlines()] == ["torch", "dali"]
