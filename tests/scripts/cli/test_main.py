"""The command as a user meets it: exit codes, one-line errors, results on stdout and nothing else there."""

import importlib
import json
import signal
import sys
import tempfile
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from retinaserve.scripts.cli.main import VERBS, Verbs
from retinaserve.training.checkpoint import Checkpoint, save
from tests.cli import invoke, refused
from tests.toys import toy_model, toy_spec


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["sevre"], 2, "No such command 'sevre'"),
        (["build"], 2, "Missing argument 'MODEL'"),
        (["build", "nothing.onnx", "--output", "repo"], 3, "nothing.onnx: no such file"),
        (["build", "nothing.pth", "--output", "repo"], 3, "nothing.pth"),
        (["build", "x.onnx", "--output", "repo", "--profile", "tpu"], 2, "'tpu' is not"),
        (["build", "x.plan", "--output", "repo", "--profile", "gpu", "--max-queue", "9"], 2, "--max-inflight"),
        (["export", "nothing.pth", "model.onnx"], 3, "nothing.pth"),
        (["export", "nothing.pth", "model.engine"], 2, "ends in .onnx or .plan"),
        (["export", "nothing.pth", "toy.plan", "--precision", "int8"], 2, "INT8 needs --calibration-images"),
        (["export", "nothing.pth", "toy.plan", "--batch", "4", "2", "1"], 2, "batch sizes 4 2 1"),
        (["serve", "nowhere"], 3, "nowhere: no such folder"),
        (["bench", "--seconds", "0"], 2, "--seconds"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_mistakes(
    arguments: list[str], code: int, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(invoke(*arguments), code, words)
    assert list(tmp_path.iterdir()) == []


def test_help_has_every_verb_with_its_whole_sentence() -> None:
    assert invoke().exit_code == 2 and invoke().stderr.startswith("Usage")
    shown = invoke("--help").stdout.split("Options:")[1]
    assert "..." not in shown and "MODEL that is there." in " ".join(shown.split())
    assert set(VERBS) <= {line.split()[0] for line in shown.splitlines() if line.strip()}


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ("starlette", "error: verb needs starlette: pip install 'retinaserve[web]'\n"),
        ("click.nothing", "error: verb needs click: pip install 'retinaserve'\n"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(
    module: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    @click.group(cls=Verbs)
    def group() -> None: ...

    @group.command()
    def verb() -> None:
        importlib.import_module(module)

    monkeypatch.setitem(sys.modules, module, None)
    result = CliRunner().invoke(group, ["verb"])
    assert result.exit_code == 2 and result.stderr == message


def test_a_missing_module_of_nobody_is_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "retinaserve.scripts.cli.demo", None)
    assert isinstance(invoke("demo").exception, ModuleNotFoundError)


def test_a_file_is_no_repository(tmp_path: Path) -> None:
    """Who serves the checkpoint itself is given the command that was skipped, to be pasted as it is."""
    model = tmp_path / "my model.onnx"
    model.touch()
    refused = invoke("serve", model)
    assert refused.exit_code == 3 and f"{model} is a file" in refused.stderr
    assert f"retinaserve build '{model}' --output repository" in refused.stderr


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retinaserve.scripts.server.triton.TritonServer.__init__", lambda *_, **__: 1 / 0)
    assert isinstance(invoke("serve", ".", "--no-restart").exception, ZeroDivisionError)


def test_from_a_checkpoint_to_a_repository(tmp_path: Path) -> None:
    """`build` takes a checkpoint too, and makes of it what `export` and `build` make in two steps."""
    spec = toy_spec()
    checkpoint, graph = tmp_path / "model.pth", tmp_path / "model.onnx"
    save(checkpoint, Checkpoint(spec, toy_model(spec).state_dict(), 0))
    report, record = tmp_path / "export.json", tmp_path / "model.calibration.json"
    record.write_text("of an INT8 graph that was here before")
    for arguments in (
        ["export", checkpoint, graph, "--json", report],
        ["build", graph, "--output", tmp_path / "two"],
        ["build", checkpoint, "--output", tmp_path / "one"],
    ):
        result = invoke(*arguments)
        assert result.exit_code == 0, result.output
        assert "next: retinaserve" in result.stderr
    assert json.loads(report.read_text())["classes"] == list(spec.classes)
    assert not record.exists()
    models = [tmp_path / name / "retinanet" / "1" / "model.onnx" for name in ("one", "two")]
    assert models[0].read_bytes() == models[1].read_bytes() == graph.read_bytes()


def test_ctrl_c_is_no_error_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("retinaserve.build_tools.repository.builder.build_repository", interrupted)
    result = invoke("build", "x.onnx", "--output", "repo")
    assert result.exit_code == 130 and result.stderr == "\ninterrupted\n"


def test_sigterm_leaves_nothing_behind(tmp_path: Path) -> None:
    @click.group(cls=Verbs)
    def group() -> None: ...

    @group.command()
    def verb() -> None:
        with tempfile.TemporaryDirectory(dir=tmp_path):
            signal.raise_signal(signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    assert CliRunner().invoke(group, ["verb"]).exit_code == 143
    assert list(tmp_path.iterdir()) == [] and signal.getsignal(signal.SIGTERM) == before
