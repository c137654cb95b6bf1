"""The demo from end to end, with a recipe that learns nothing: every file it promises is there."""

import json
from pathlib import Path

import pytest
from PIL import Image

from retinaserve.scripts.demo import demo
from retinaserve.scripts.demo.recipe import Recipe
from retinaserve.training.errors import Exit, UserError

SMALL = Recipe(
    data={"train": 6, "val": 3, "seed": 0},
    network={"backbone": "resnet18", "width": 8, "fpn_channels": 16, "head_depth": 1, "size": (64, 64)},
    training={"iters": 3, "batch": 2, "warmup": 1},
)
NUMBERS = ("ap", "ap50", "ap_offline_torch", "ap_offline_onnx", "images", "throughput_ips")


@pytest.mark.server
def test_a_small_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(demo, "BENCH_CONCURRENCY", "1")
    monkeypatch.setattr(demo, "BENCH_SECONDS", 0.5)
    root = tmp_path / "demo"
    summary = demo.run_demo(root, SMALL)
    assert json.loads((root / "summary.json").read_text()) == summary
    assert {*NUMBERS, "latency_ms_p50", "latency_ms_p99", "versions"} <= set(summary)
    assert summary["images"] == 3 and summary["throughput_ips"] > 0
    assert 0 < summary["latency_ms_p50"] <= summary["latency_ms_p99"]
    for name in ("data/train", "data/val"):
        assert (root / name / "annotations.json").is_file() and any((root / name / "images").iterdir())
    for name in ("checkpoint.pth", "model.onnx", "repository/detector/config.pbtxt", "bench.json", "report.html"):
        assert (root / name).is_file()
    for name in ("bench.png", "report/curves.png", "report/contact_sheet.jpg", "checkpoint.results.png"):
        with Image.open(root / name) as picture:
            assert min(picture.size) > 100
    assert len(list((root / "predictions").iterdir())) == 3
    said = capsys.readouterr().err
    assert said.count("$ retinaserve") == 11 and "next" not in said, "a step does not know what is left to do"


def test_a_step_that_fails_ends_the_demo_with_its_code(tmp_path: Path) -> None:
    (tmp_path / "checkpoint.pth").write_bytes(b"no checkpoint")
    with pytest.raises(UserError, match="the demo stopped at `retinaserve train`") as caught:
        demo.run_demo(tmp_path, SMALL)
    assert caught.value.code == Exit.BAD_DATA
