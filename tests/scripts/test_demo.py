"""The demo from end to end, with a recipe that learns nothing; tests/test_package.py runs `demo --quick`."""

import json
from pathlib import Path

import pytest
from PIL import Image

from retinaserve.scripts.cli import demo
from retinaserve.scripts.lab.images import checkpoint as example_checkpoint
from retinaserve.training.checkpoint import Checkpoint, load, save
from retinaserve.training.errors import Exit, UserError
from tests.cli import invoke
from tests.toys import toy_model, toy_spec

RECIPE = """
{backbone: resnet18, width: 8, fpn-channels: 16, head-depth: 1, size: [64, 64], iters: 3, batch: 2, warmup: 1}
"""
NUMBERS = {"ap", "ap50", "ap_offline_torch", "ap_offline_onnx", "images", "throughput_ips"}


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nine images, three iterations, half a second of load."""
    (tmp_path / "small.yaml").write_text(RECIPE)
    monkeypatch.setattr(demo, "RECIPE", tmp_path / "small.yaml")
    monkeypatch.setattr(demo, "FASTER", ())
    monkeypatch.setattr(demo, "DRAWN", ("--train", 6, "--val", 3))
    monkeypatch.setattr(demo, "BENCH", ("--concurrency", "1", "--seconds", 0.5))


@pytest.mark.server
@pytest.mark.usefixtures("small")
def test_a_small_demo(tmp_path: Path) -> None:
    root = tmp_path / "demo"
    result = invoke("demo", "--output", root)
    assert result.exit_code == 0, result.output
    summary = json.loads((root / "summary.json").read_text())
    assert result.stdout.endswith(json.dumps(summary, indent=2) + "\n")
    assert {*NUMBERS, "latency_ms_p50", "latency_ms_p99", "versions"} <= set(summary)
    assert summary["images"] == 3 and summary["throughput_ips"] > 0
    assert 0 < summary["latency_ms_p50"] <= summary["latency_ms_p99"]
    for name in ("data/train", "data/val"):
        assert (root / name / "annotations.json").is_file() and any((root / name / "images").iterdir())
    for name in ("checkpoint.pth", "model.onnx", "repository/detector/config.pbtxt", "bench.json", "report.html"):
        assert (root / name).is_file()
    for name in ("bench.png", "report/curves.png", "report/contact_sheet.jpg", "checkpoint.results.png"):
        with Image.open(root / name) as image:
            assert min(image.size) > 100
    assert len(list((root / "predictions").iterdir())) == 3
    steps = result.stderr.split("look at")[0]
    assert steps.count("$ retinaserve") == 11 and "next" not in steps, "a step does not know what is left to do"


@pytest.mark.usefixtures("small")
def test_a_step_that_fails_ends_the_demo_with_its_code(tmp_path: Path) -> None:
    (tmp_path / "checkpoint.pth").write_bytes(b"no checkpoint")
    result = invoke("demo", "--output", tmp_path)
    assert result.exit_code == Exit.BAD_DATA
    assert f"error: the demo stopped at `retinaserve train`: {tmp_path / 'checkpoint.pth'}" in result.stderr


def test_without_the_checkpoint_it_says_where_one_comes_from(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such checkpoint"):
        demo.Demo(tmp_path).quickstart(tmp_path / "shapes.pth")


def test_the_example_has_no_optimizer(tmp_path: Path) -> None:
    weights = toy_model(toy_spec()).state_dict()
    save(tmp_path / "checkpoint.pth", Checkpoint(toy_spec(), weights, 7, {"optimizer": {"state": {}}}))
    example_checkpoint(tmp_path, tmp_path / "example.pth")
    found = load(tmp_path / "example.pth")
    assert (found.spec, found.iteration, found.training) == (toy_spec(), 7, {})
    assert all((found.weights[name] == value).all() for name, value in weights.items())
