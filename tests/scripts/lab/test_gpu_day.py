"""The day with a GPU, as far as it goes without one: steps, their time, the report, what commands name."""

import argparse
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest

from retinaserve.scripts.cli.main import main as retinaserve
from retinaserve.scripts.lab import gpu_day
from retinaserve.scripts.lab.gpu_day import FAILED, LATE, MISSING, PASSED, Report, Step, follow, run, stop
from tests.plugins.libraries import kernels_on

ROOT = Path(__file__).parents[3]


def shell(script: str, seconds: int = 20, needs: str = "") -> Step:
    return Step("step", "something", seconds, ["sh", "-c", script], needs)


@pytest.mark.parametrize(
    ("step", "outcome", "output"),
    [
        (shell("echo one; echo two >&2"), PASSED, "one\ntwo\n"),
        (shell("echo no; exit 3"), FAILED, "no\n"),
        (shell("echo begun; exec sleep 30", seconds=1), LATE, "begun\n"),
        (shell("echo never", needs="no-such-program"), MISSING, "there is no no-such-program"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_step_has_an_outcome_and_keeps_its_output(step: Step, outcome: str, output: str) -> None:
    started = time.monotonic()
    done = run(step, dict(os.environ))
    assert (done.outcome, done.output) == (outcome, output) and time.monotonic() - started < 10


def test_the_report_is_there_after_every_step(tmp_path: Path) -> None:
    report = Report(tmp_path / "report.md", "A day", {"GPU": "none"})
    steps = iter([shell("echo first"), shell(f"grep first {report.path}")])
    assert follow(steps, report, dict(os.environ)) and report.is_good
    text = report.path.read_text()
    assert "| GPU | none |" in text and text.count("| step | something | passed | ") == 2
    assert not follow(iter([shell("exit 1"), shell("echo last")]), report, dict(os.environ))
    assert "last" in report.path.read_text()  # what can still be shown is


def test_without_a_first_call_there_is_no_day(tmp_path: Path) -> None:
    report = Report(tmp_path / "report.md", "A day", {})
    first = Step("first call", "a GPU", 20, ["false"])
    assert not follow(iter([first, shell(f"touch {tmp_path}/late")]), report, dict(os.environ))
    assert not (tmp_path / "late").exists()


def test_the_kernels_day_is_ten_minutes_and_what_it_names_exists(tmp_path: Path) -> None:
    steps = list(gpu_day.kernel_steps(tmp_path, "9.0", tmp_path))
    assert sum(step.seconds for step in steps) <= 600
    assert [step.name for step in steps][:3] == ["build", "first call", "tests"] and "offsets" in steps[-1].name
    chosen = {str(step.command[-1]): step.command for step in steps if "-k" in step.command}
    words = [str(word) for word in gpu_day.PYTEST if word != "-q"]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'src'}"}
    for expression in (gpu_day.FEW, "32_bits"):
        assert expression in chosen
        command = [*words, "--collect-only", "-k", expression]
        found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
        assert found.returncode == 0, found.stdout[-2000:]
        for name in re.findall(r"\w+_\w+", expression):
            assert name in found.stdout


def test_every_command_of_the_servers_day_parses(tmp_path: Path) -> None:
    (tmp_path / "labels.json").write_text("{}")
    asked = argparse.Namespace(
        checkpoint=tmp_path / "model.pth", images=tmp_path, annotations=tmp_path / "labels.json",
        plugins=tmp_path / "plugins.so",
    )  # fmt: skip
    for name in ("model.pth", "plugins.so", "fp16.plan", "int8.plan"):
        (tmp_path / name).touch()
    verbs = []
    for step in gpu_day.server_steps(asked, tmp_path):
        if "retinaserve" in step.command:
            name, *words = map(str, step.command[3:])
            command = retinaserve.get_command(click.Context(retinaserve), name)
            assert command is not None
            command.parse_args(click.Context(command), words)
            verbs.append(name)
    assert verbs == ["doctor", "export", "export", "verify", "build", "verify", "bench", "eval"]


def test_without_tensorrt_the_servers_day_ends_at_once_and_says_why(tmp_path: Path) -> None:
    asked = ["model.pth", "--images", "val", "--annotations", "val.json", "--plugins", str(tmp_path / "none.so")]
    if not gpu_day.main(["server", *asked, "--output", str(tmp_path)]):
        pytest.skip("this machine has TensorRT and a GPU")
    text = (tmp_path / "report.md").read_text()
    assert "| first call | TensorRT, the plugins and a GPU are here | failed |" in text and "doctor |" not in text
    assert re.search("TensorRT can't be imported|none.so: no such plugin library", text)


def test_the_server_is_stopped_by_its_process_id(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        (tmp_path / "pid").write_text(f"{process.pid}\n")
        stop(tmp_path / "pid")
        assert process.wait(10) == -15
    stop(tmp_path / "pid")  # nothing was started


def test_the_stress_compares_every_launch_with_the_first(tmp_path: Path) -> None:
    library = kernels_on("cpu").library._name
    command = [sys.executable, "-m", "tests.plugins.emulator.stress", library, "--jobs", "1", "--classes", "2"]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'src'}"}
    again = subprocess.run([*command, "--seconds", "0"], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert again.stdout == "320 x 320, batch 16, trained, kHWC8: 8 launches, 0 differ\n"
