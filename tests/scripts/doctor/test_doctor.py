import email
import json
import socket
from pathlib import Path

import pytest
from click.testing import CliRunner
from packaging.requirements import Requirement

from retinaserve.build_tools.engine.manifest import write_plan
from retinaserve.scripts.cli.doctor import doctor
from retinaserve.scripts.doctor.machine import (
    Check,
    Status,
    cpu,
    examine,
    memory,
    packages,
    pins,
    ports,
    providing,
    requirements,
    shared_memory,
    unmet,
)
from retinaserve.scripts.doctor.parts import container, driver, plan, plugins
from retinaserve.training.errors import UserError
from tests.toys import PLAN, toy_manifest


def test_everything_that_serving_needs_starts_here(tmp_path: Path) -> None:
    result = CliRunner().invoke(doctor, ["--json", str(tmp_path / "doctor.json")])
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "doctor.json").read_text())
    found = {check["name"]: check for check in report["checks"]}
    started = ("DALI", "OpenVINO", "embedded Triton", "perf analyzer")
    assert {found[name]["status"] for name in ("python", "packages", *started)} == {"ok"}
    assert "tritonserver 2.51.0 started, answered" in found["embedded Triton"]["detail"]
    assert "2.51.0" in found["perf analyzer"]["detail"]
    assert len(report["checks"]) == sum(report["counts"].values()) == len(found)


def test_a_machine_that_is_not_fit_fails_and_says_what_to_do(tmp_path: Path) -> None:
    if driver(needed=True).status is Status.OK:
        pytest.skip("this machine has a GPU")
    result = CliRunner().invoke(doctor, ["--profile", "gpu", "--quick", "--plugins", str(tmp_path / "none.so")])
    assert isinstance(result.exception, UserError) and result.exception.code == 1
    assert "fail CUDA driver" in result.output and "install NVIDIA's driver" in result.output
    assert "none.so: no such file" in result.output and "make plugins" in result.output


def test_a_broken_installation_is_a_line_and_not_the_end() -> None:
    def user() -> Check:
        raise UserError("no stub", "install it")

    def broken_library() -> Check:
        raise ImportError("libx.so: cannot open\n shared object")

    def fine() -> Check:
        return Check.ok("")

    first, second, third = examine({"user": user, "broken library": broken_library, "fine": fine})
    assert first == Check("user", Status.FAIL, "no stub", "install it")
    assert second.name == "broken library" and second.detail == "libx.so: cannot open shared object"
    assert (third.name, third.status) == ("fine", Status.OK)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("click>=8", None),
        ("click<1", "click is"),
        ("no-such-package>=1", "no-such-package is not installed"),
        ("torch>=2.9", None),  # 2.13.0+cpu is in the range
    ],
)
def test_requirements(line: str, problem: str | None) -> None:
    found = list(unmet({Requirement(line): "train"}))
    assert len(found) == (problem is not None)
    assert all(extra == "train" and text.startswith(str(problem)) for extra, text in found)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A project that asks for little: metadata as pip writes it."""
    lines = [
        "click>=8",
        'numpy; python_version > "3"',
        'no-such-server[all]<3,>=2; extra == "serve"',
        'pyyaml>=6; extra == "train"',
        'numpy; python_version < "3" and extra == "train"',
        'retinaserve[serve,train]; extra == "dev"',
        'pytest; extra == "dev"',
    ]
    monkeypatch.setattr("importlib.metadata.requires", lambda _: lines)
    extras = email.message_from_string("Provides-Extra: train\nProvides-Extra: serve\nProvides-Extra: dev\n")
    monkeypatch.setattr("importlib.metadata.metadata", lambda _: extras)


@pytest.mark.usefixtures("asked")
def test_an_extra_brings_its_own_requirements_and_those_it_names() -> None:
    names = {extra: sorted(each.name for each in requirements(extra)) for extra in ("", "train", "dev")}
    assert names == {"": ["click", "numpy"], "train": ["pyyaml"], "dev": ["no-such-server", "pytest", "pyyaml"]}
    missing = packages("cpu")
    assert missing.status is Status.FAIL and missing.detail == "no-such-server is not installed [serve]"
    assert missing.remedy == "pip install 'retinaserve[train,serve]'"
    fits = packages("gpu")
    assert fits.status is Status.OK and fits.detail.endswith("extras installed: train")


@pytest.mark.usefixtures("asked")
@pytest.mark.parametrize(
    ("module", "package", "extra"),
    [
        ("click.testing", "click", ""),
        ("yaml", "pyyaml", "train"),
        ("no_such_server.http", "no-such-server", "serve"),
        ("pytest", "pytest", "dev"),
        ("somebody", None, ""),
        ("retinaserve.eval", None, ""),
    ],
)
def test_the_extra_of_a_missing_package(module: str, package: str | None, extra: str) -> None:
    assert providing(module) == (package, extra)


def test_pins(tmp_path: Path) -> None:
    file = tmp_path / "constraints.txt"
    assert pins(file).detail == "no constraints.txt here: installed from a wheel"
    file.write_text("# comment\nnot-installed-here==1.0\nclick==0.1; python_version < '3'\n")
    assert pins(file).status is Status.OK
    file.write_text("click==0.1\n")
    other = pins(file)
    assert other.status is Status.WARN and "(tested: 0.1)" in other.detail


@pytest.mark.parametrize(
    ("text", "status", "words"),
    [
        ("model name : Old\nflags : sse2\n", Status.WARN, "Old, without AVX2"),
        ("model name : New\nflags : avx2 avx512_vnni avx512_bf16\n", Status.OK, "New; made for fp32, INT8, bf16"),
        ("model name : Arm\nFeatures : asimd\n", Status.OK, "Arm; made for fp32"),
    ],
    ids=["old", "new", "arm"],
)
def test_processors(tmp_path: Path, text: str, status: Status, words: str) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    found = cpu(tmp_path / "cpuinfo")
    assert found.status is status and found.detail.endswith(words)


def test_little_memory_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 8000000 kB\nMemAvailable: 900000 kB\n")
    found = memory(tmp_path / "meminfo")
    assert found.status is Status.WARN and found.detail == "0.9 of 8.2 GB are free"


def test_no_shared_memory_is_a_failure(tmp_path: Path) -> None:
    assert shared_memory(tmp_path / "shm").status is Status.FAIL
    assert shared_memory(tmp_path).detail.endswith(f"MB are free in {tmp_path}")


def test_a_taken_port_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        found = ports(port)
    assert found.status is Status.WARN and str(port) in found.detail
    assert ports(port).status is Status.OK


def test_a_library_that_is_none_fails_even_where_it_is_not_needed(tmp_path: Path) -> None:
    (tmp_path / "libx.so").write_text("not ELF")
    assert plugins(tmp_path / "libx.so", needed=False).status is Status.FAIL
    assert plugins(tmp_path / "none.so", needed=False).status is Status.OK


def test_a_plan_that_does_not_fit_says_why(tmp_path: Path) -> None:
    write_plan(tmp_path / "model.plan", PLAN, toy_manifest())
    (tmp_path / "plugins.so").write_bytes(b"another library")
    words = ["--quick", "--plan", str(tmp_path / "model.plan"), "--plugins", str(tmp_path / "plugins.so")]
    result = CliRunner().invoke(doctor, words)
    assert isinstance(result.exception, UserError) and result.exception.code == 1
    (line,) = (line for line in result.output.splitlines() if line.startswith("fail plan"))
    assert "does not fit: " in line and "it was built with the plugin library bbbbbbbbbbbb" in line


def test_a_plan_that_fits_as_far_as_can_be_told(tmp_path: Path) -> None:
    write_plan(tmp_path / "model.plan", PLAN, toy_manifest())
    if driver(needed=True).status is Status.OK:
        pytest.skip("this machine has a GPU")
    check = plan(tmp_path / "model.plan", tmp_path / "none.so")
    assert check.status is Status.OK and "int8 for NVIDIA L4, TensorRT 10.13.3.9, batch 1 to 24" in check.detail


def test_the_container_is_compared_with_this_machines_tensorrt(tmp_path: Path) -> None:
    versions = tmp_path / "versions.toml"
    numbers = {"tag": "26.08", "triton": "2.72.0", "tensorrt": "11.2.1.2", "dali": "2.2.0"}
    numbers |= {"cuda": "13.4", "driver": "615"}
    versions.write_text("\n".join(["[container]", *(f'{name} = "{value}"' for name, value in numbers.items())]))
    assert container(versions, built_by="11.2.1.9").status is Status.OK
    other = container(versions, built_by="11.3.0.1")
    assert other.status is Status.WARN and "this machine has TensorRT 11.3.0.1" in other.detail
    assert container().detail.startswith("26."), "the project's own file"
