"""`export` to FP16 and to plans, as a user calls it."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from retinaserve.build_tools.engine.builder import RTX, EngineOptions, build_plan, load_tensorrt
from retinaserve.build_tools.engine.manifest import check_plan, find_gpus, tensorrt_version, this_target
from retinaserve.build_tools.graph.graft import graft, save
from retinaserve.build_tools.graph.onnx_io import OnnxGraph
from retinaserve.scripts.cli.deploy.export import _print_plan, export
from retinaserve.training.errors import UserError
from tests.toys import toy_spec


def test_fp16_says_what_it_did_to_the_weights(checkpoint: Path, tmp_path: Path) -> None:
    output, report = tmp_path / "toy.onnx", tmp_path / "toy.json"
    words = [str(checkpoint), str(output), "--precision", "fp16", "--json", str(report)]
    result = CliRunner().invoke(export, words)
    assert result.exit_code == 0, result.output
    assert "fp16" in result.stdout and "became zero" in result.stderr
    written = json.loads(report.read_text())
    assert written["precision"] == OnnxGraph.read(output).precision == "fp16"
    assert 200_000 < written["rounding"]["values"] < 220_000
    assert written["megabytes"] < 0.6 * checkpoint.stat().st_size / 1e6 + 0.4  # the rest are tables of the decode


def test_without_tensorrt_a_plan_is_refused_at_once(toy_onnx: Path, tmp_path: Path) -> None:
    if tensorrt_version():
        pytest.skip("TensorRT is installed")
    result = CliRunner().invoke(export, [str(toy_onnx), str(tmp_path / "toy.plan")])
    assert isinstance(result.exception, UserError) and result.exception.code == 3
    assert "TensorRT can't be imported" in result.exception.message and "pip install" in result.exception.hint
    assert list(tmp_path.iterdir()) == []


def test_what_is_told_of_a_plan(toy_onnx: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(graft(toy_onnx.parent / "heads.onnx", until="candidates"), tmp_path / "model.onnx")
    options = EngineOptions((1, 2, 4), compute_capability="8.9")
    built = build_plan(tmp_path / "model.onnx", tmp_path / "model.plan", options, trt=load_tensorrt(RTX))
    _print_plan(tmp_path / "model.plan", built)
    told = capsys.readouterr()
    assert f"fp32 for 8.9, TensorRT {built.manifest.tensorrt}, batch 1 to 4, best at 2" in told.out
    assert "convolutions: 48 fp32; 0 of them in a wider type" in told.err


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_checkpoint_becomes_a_plan_with_our_plugins(checkpoint: Path, precision: str, tmp_path: Path) -> None:
    if not find_gpus():
        pytest.skip("needs an NVIDIA GPU")
    pytest.importorskip("tensorrt", reason="needs TensorRT")
    from tests.plugins.libraries import plugins_on

    library, plan = plugins_on("gpu"), tmp_path / "toy.plan"
    words = [
        str(checkpoint),
        str(plan),
        "--precision",
        precision,
        "--batch",
        "1",
        "2",
        "4",
        "--plugins",
        str(library),
    ]
    result = CliRunner().invoke(export, words)
    assert result.exit_code == 0, result.output
    manifest = check_plan(plan, this_target(library))
    assert (manifest.precision, manifest.batch, manifest.spec) == (precision, (1, 2, 4), toy_spec())
