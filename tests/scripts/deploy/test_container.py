"""The container's files: linted, validated, and every shell step that can run outside a container is run."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from retinaserve.build_tools.repository.configs import triton_version
from retinaserve.scripts.cli.deploy.build import build

ROOT = Path(__file__).parents[3]
DEPLOY = ROOT / "scripts" / "deploy"
CONTAINER = DEPLOY / "container"
VERSIONS: dict[str, Any] = tomllib.loads((DEPLOY / "versions.toml").read_text())
DOCKERFILE = (CONTAINER / "Dockerfile").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load((CONTAINER / "compose.yaml").read_text())
TOOLS = Path(sys.executable).parent


def run(*command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    words = [str(word) for word in command]
    return subprocess.run(
        words, capture_output=True, text=True, check=False, timeout=60, env={**os.environ, **environment}
    )


# ---- one tuple in one place


def test_the_dockerfile_has_the_tuple() -> None:
    arguments = dict(re.findall(r"^ARG (\w+)=(\S+)$", DOCKERFILE, re.MULTILINE))
    assert arguments == {
        "NGC_TAG": VERSIONS["container"]["tag"],
        "TRITON_VERSION": VERSIONS["container"]["triton"],
        "TENSORRT_VERSION": VERSIONS["container"]["tensorrt"],
        "DALI_VERSION": VERSIONS["container"]["dali"],
        "CUDA_VERSION": VERSIONS["container"]["cuda"],
    }
    assert set(re.findall(r"^FROM (\S+?):", DOCKERFILE, re.MULTILINE)) == {
        "nvcr.io/nvidia/tensorrt",
        "nvcr.io/nvidia/tritonserver",
    }


def test_build_is_for_the_same_server_by_default() -> None:
    (default,) = (option.default for option in build.params if option.name == "triton_version")
    assert default == VERSIONS["container"]["tag"]
    assert triton_version(default) == triton_version(VERSIONS["container"]["triton"])


def test_every_image_named_anywhere_has_the_tag() -> None:
    files = [path for path in DEPLOY.rglob("*") if path.is_file()] + sorted((ROOT / "docs").glob("*.md"))
    text = "\n".join(path.read_text(errors="replace") for path in files)
    ours = set(re.findall(r"\bretinaserve-(?:server|builder):([\w.-]+)", text))
    assert ours == {VERSIONS["container"]["tag"]}
    for name in ("prometheus", "grafana"):
        image = COMPOSE["services"][name]["image"]
        assert image.endswith(f"/{name}:{VERSIONS['monitoring'][name]}")


CHECKS = {
    "nothing to compare": ([], {}, 0, ""),
    "equal": (["A=11.2.1.2"], {"A": "11.2.1.2"}, 0, ""),
    "a build number more": (["A=13.4"], {"A": "13.4.1.012"}, 0, ""),
    "a suffix": (["A=11.2.1.2"], {"A": "11.2.1.2+cuda13.4.1.012"}, 0, ""),
    "another patch": (["A=11.2.1.2"], {"A": "11.2.1.3"}, 1, "A is '11.2.1.3' in this image"),
    "a longer number is another": (["A=2.7"], {"A": "2.72.0"}, 1, "A is '2.72.0'"),
    "not set": (["NOWHERE=1"], {}, 1, "NOWHERE is '' in this image, versions.toml says '1'"),
    "the second of two": (["A=1", "B=2"], {"A": "1", "B": "3"}, 1, "B is '3'"),
}


@pytest.mark.parametrize("case", CHECKS)
def test_versions_are_compared(case: str) -> None:
    arguments, environment, code, words = CHECKS[case]
    result = run(CONTAINER / "check-versions.sh", *arguments, **environment)
    assert result.returncode == code and words in result.stderr, result.stderr


# ---- lint


def test_the_dockerfile_is_linted() -> None:
    result = run(TOOLS / "hadolint", CONTAINER / "Dockerfile")
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("script", sorted(DEPLOY.rglob("*.sh")), ids=lambda path: path.name)
def test_shell_scripts_are_linted(script: Path) -> None:
    assert os.access(script, os.X_OK), "not executable"
    result = run(TOOLS / "shellcheck", script)
    assert result.returncode == 0, result.stdout


def test_what_the_dockerfile_copies_is_there_and_not_ignored() -> None:
    ignore = (CONTAINER / "Dockerfile.dockerignore").read_text().splitlines()
    kept = {line[1:] for line in ignore if line.startswith("!")}
    for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists(), source
            assert source == "." or source.split("/")[0] in kept, f"{source} is ignored"
    assert all((ROOT / name).exists() for name in kept)
    assert {"**/*.key", "**/*.pem", "scripts/deploy/container/secrets"} <= set(ignore)


def test_the_images_run_as_nobody_special_and_keep_no_secret() -> None:
    stages = re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)[1:]
    assert len(stages) == 2
    for stage in stages:
        assert re.findall(r"^USER (\S+)$", stage, re.MULTILINE)[-1] == "1000:1000"
    words = re.findall(r"^(?:ARG|ENV|COPY) .*$", DOCKERFILE, re.MULTILINE)
    assert not [line for line in words if re.search(r"(?i)token|password|secret|\.pem|\.key", line)]
    assert "HEALTHCHECK" in stages[1] and "ENTRYPOINT" in stages[1]


# ---- compose


def test_compose_is_valid() -> None:
    result = run(TOOLS / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", CONTAINER / "compose.yaml")
    assert result.returncode == 0, result.stdout


def test_the_compose_lint_notices(tmp_path: Path) -> None:
    wrong = {**COMPOSE, "services": {"server": {"image": "x", "port": ["8000:8000"]}}}
    (tmp_path / "compose.yaml").write_text(yaml.safe_dump(wrong))
    result = run(TOOLS / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", tmp_path / "compose.yaml")
    assert result.returncode == 1 and "port" in result.stdout


def test_compose_opens_nothing_to_others() -> None:
    for name, service in COMPOSE["services"].items():
        assert all(str(port).startswith("127.0.0.1:") for port in service.get("ports", ())), name
        assert service["cap_drop"] == ["ALL"] and "no-new-privileges:true" in service["security_opt"], name
        assert not [key for key in service.get("environment", {}) if re.search("PASSWORD$|TOKEN$", key)], name
    server = COMPOSE["services"]["server"]
    assert server["user"] == "1000:1000" and server["read_only"] is True
    (models,) = server["volumes"]
    assert models["target"] == "/models" and models["read_only"] is True
    (gpu,) = server["deploy"]["resources"]["reservations"]["devices"]
    assert gpu["capabilities"] == ["gpu"]


def test_compose_gives_requests_in_flight_time_to_end() -> None:
    grace = int(COMPOSE["services"]["server"]["stop_grace_period"].removesuffix("s"))
    exit_seconds = re.search(r"EXIT_SECONDS:-(\d+)", (CONTAINER / "start.sh").read_text())
    assert exit_seconds and grace > int(exit_seconds[1])


def test_what_compose_mounts_is_there() -> None:
    for service in COMPOSE["services"].values():
        for volume in service.get("volumes", ()):
            source = volume["source"] if isinstance(volume, dict) else volume.split(":")[0]
            if source.startswith("."):
                assert (CONTAINER / source).exists(), source


@pytest.mark.skipif(
    run("docker", "compose", "version").returncode != 0 if shutil.which("docker") else True,
    reason="docker compose is not installed",
)
def test_docker_compose_reads_it(tmp_path: Path) -> None:
    result = run("docker", "compose", "-f", CONTAINER / "compose.yaml", "config", REPOSITORY=str(tmp_path))
    assert result.returncode == 0, result.stderr


# ---- build.sh

BUILD_ERRORS = {
    "no arguments": ([], 2, "usage: build.sh MODEL.onnx REPOSITORY"),
    "no graph": (["{folder}/none.onnx", "{folder}/out"], 3, "none.onnx: no such file"),
    "no plugins": (["{folder}/model.onnx", "{folder}/out"], 3, "plugins.so: no such file"),
}


@pytest.mark.parametrize("case", BUILD_ERRORS)
def test_build_says_what_is_missing(case: str, tmp_path: Path) -> None:
    arguments, code, words = BUILD_ERRORS[case]
    (tmp_path / "model.onnx").touch()
    filled = [argument.format(folder=tmp_path) for argument in arguments]
    result = run(CONTAINER / "build.sh", *filled, RETINASERVE_PLUGINS=str(tmp_path / "plugins.so"))
    assert result.returncode == code and words in result.stderr
    assert not (tmp_path / "out").exists()


# Runs `build` where only what requirements.txt names, and what those need, can be imported.
BUILDER = """
import re, sys
from importlib import metadata
from importlib.abc import MetaPathFinder

def needs(name, known):
    name = re.sub(r"[-_.]+", "-", name).lower()
    if name not in known:
        known.add(name)
        for each in metadata.requires(name) or ():
            word = re.match(r"[\\w.-]+", each)[0]
            if "extra ==" not in each:
                try:
                    needs(word, known)
                except metadata.PackageNotFoundError:
                    pass
    return known

wanted = {re.split(r"[\\[ ]", line.strip())[0] for line in open(sys.argv[1]) if line.strip() and line[0] != "#"}
allowed = set().union(*(needs(name, set()) for name in {*wanted, "grpcio", "nvidia-dali-cuda120"}))
owners = metadata.packages_distributions()

class Absent(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        dists = {re.sub(r"[-_.]+", "-", each).lower() for each in owners.get(name.split(".")[0], ())}
        if dists and not dists & allowed and "retinaserve" not in dists:
            raise ModuleNotFoundError(f"No module named {name!r} in the builder image", name=name)

sys.meta_path.insert(0, Absent())
from retinaserve.scripts.cli.main import main
main(["build", sys.argv[2], "--output", sys.argv[3]])
"""


def test_the_builder_needs_no_more_than_its_requirements(toy_onnx: Path, tmp_path: Path) -> None:
    requirements = CONTAINER / "requirements.txt"
    command = [sys.executable, "-c", BUILDER, str(requirements), str(toy_onnx), str(tmp_path / "repository")]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "repository" / "detector" / "config.pbtxt").is_file()
    few = tmp_path / "few.txt"
    few.write_text(requirements.read_text().replace("pillow\n", ""))
    command[3], command[5] = str(few), str(tmp_path / "other")
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert "needs pillow" in result.stderr, "the check notices a package that is missing"


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="there is a GPU here")
def test_build_wants_a_gpu(tmp_path: Path) -> None:
    for name in ("model.onnx", "plugins.so"):
        (tmp_path / name).touch()
    result = run(
        CONTAINER / "build.sh",
        tmp_path / "model.onnx",
        tmp_path / "out",
        RETINASERVE_PLUGINS=str(tmp_path / "plugins.so"),
    )
    assert result.returncode == 3 and "--gpus all" in result.stderr
