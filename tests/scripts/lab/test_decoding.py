"""The lab's command on decoding: it draws photos as phones make them."""

import sys
from pathlib import Path

import pytest

from retinaserve.scripts.lab import decoding
from retinaserve.training.data.dataset import CocoDataset


def test_photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "photos"
    words = ["photos", str(folder), "--count", "3", "--sides", "1208", "900"]
    monkeypatch.setattr(sys, "argv", ["decoding", *words])
    decoding.main()
    assert "3 images of 1208 x 900" in capsys.readouterr().out
    data = CocoDataset(folder, folder / "annotations.json")
    assert [data.open(index).size for index in range(3)] == [(900, 1208), (1208, 900), (1208, 900)]
