"""A plan's manifest: written with it, read with it, and what does not fit."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from retinaserve.build_tools.engine.manifest import (
    Target,
    check_plan,
    manifest_path,
    misfits,
    read_manifest,
    write_plan,
)
from retinaserve.training.errors import UserError
from tests.toys import PLAN, toy_manifest

MANIFEST = replace(toy_manifest(), batch=(1, 4, 8), calibration_sha256="c" * 64, created="2026-11-22T21:00:00Z")
FITTING = Target("10.13.3.9", "13.0", "8.9", "b" * 64, 8)


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    write_plan(tmp_path / "model.plan", PLAN, MANIFEST)
    return tmp_path / "model.plan"


def test_a_plan_and_its_manifest_are_read_as_written(plan: Path) -> None:
    assert plan.read_bytes() == PLAN
    assert sorted(path.name for path in plan.parent.iterdir()) == ["model.plan", "model.plan.json"]
    assert read_manifest(plan) == MANIFEST
    assert check_plan(plan, FITTING) == MANIFEST


@pytest.mark.parametrize(
    ("target", "reasons"),
    [
        pytest.param(Target(), [], id="nothing known"),
        pytest.param(FITTING, [], id="the same"),
        pytest.param(Target(tensorrt="10.13.3"), [], id="the same without its build"),
        pytest.param(Target(tensorrt="10.13.3.40"), ["10.13.3.40"], id="another build of the same release"),
        pytest.param(Target(tensorrt="10.13.2.6"), ["10.13.2.6"], id="another patch"),
        pytest.param(Target(tensorrt="11.4.0"), ["10.13.3.9", "11.4.0"], id="another TensorRT"),
        pytest.param(Target(cuda="13.1"), [], id="a newer CUDA of the same major"),
        pytest.param(Target(cuda="12.9"), ["CUDA 13.0", "12.9"], id="another CUDA"),
        pytest.param(Target(compute_capability="7.5"), ["8.9 (NVIDIA L4)", "7.5"], id="another GPU"),
        pytest.param(Target(plugins_sha256="d" * 64), ["b" * 12, "d" * 12], id="another plugin library"),
        pytest.param(Target(max_batch=9), ["up to 8", "9"], id="larger batches"),
    ],
)
def test_misfits_say_what_differs(target: Target, reasons: list[str]) -> None:
    found = misfits(MANIFEST, target)
    assert len(found) == bool(reasons)
    assert all(reason in found[0] for reason in reasons)


def test_every_misfit_is_told(plan: Path) -> None:
    with pytest.raises(UserError) as caught:
        check_plan(plan, Target("11.4.0", "12.9", "7.5", "d" * 64, 16))
    assert caught.value.code == 3
    assert caught.value.message.count("the target has") == 4 and "up to 8" in caught.value.message


def test_a_plan_of_the_compile_check_runs_nowhere_else() -> None:
    (reason,) = misfits(replace(MANIFEST, builder="tensorrt_rtx"), FITTING)
    assert "built by tensorrt_rtx" in reason


def without(plan: Path, field: str) -> None:
    content = json.loads(manifest_path(plan).read_text())
    del content[field]
    manifest_path(plan).write_text(json.dumps(content))


SPOILED: dict[str, tuple[Callable[[Path], object], str]] = {
    "no plan": (Path.unlink, "no such file"),
    "no manifest": (lambda plan: manifest_path(plan).unlink(), "model.plan.json is missing"),
    "another plan": (lambda plan: plan.write_bytes(PLAN + b"!"), "manifest of another plan"),
    "cut": (lambda plan: manifest_path(plan).write_bytes(manifest_path(plan).read_bytes()[:100]), "is not JSON"),
    "binary": (lambda plan: manifest_path(plan).write_bytes(b"\xff\xfe\x00"), "is not text"),
    "newer": (lambda plan: manifest_path(plan).write_text('{"format": 2}'), "has format 2"),
    "a gap": (lambda plan: without(plan, "onnx_sha256"), "is incomplete"),
}


@pytest.mark.parametrize("case", SPOILED)
def test_what_is_no_plan_with_its_manifest_is_refused(plan: Path, case: str) -> None:
    spoil, message = SPOILED[case]
    spoil(plan)
    with pytest.raises(UserError, match=message) as caught:
        read_manifest(plan)
    assert caught.value.code == 3
