"""start.sh on the embedded server: the same flags as in the container, but for two that 2.51 does not have yet."""

import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from retinaserve.scripts.server.installation import Installation
from retinaserve.scripts.server.protection import ADMIN_APIS, ADMIN_HEADER
from retinaserve.scripts.server.triton import free_ports
from tests.scripts.deploy.test_container import CONTAINER, run

# tritonserver's options in 2.72.0, from its command_line_parser.cc; those that start.sh may use.
OPTIONS = """
allow-client-shm allow-metrics backend-config cuda-memory-pool-byte-size disable-auto-complete-config
exit-on-error exit-timeout-secs grpc-address grpc-port grpc-restricted-protocol grpc-root-cert grpc-server-cert
grpc-server-key grpc-use-ssl grpc-use-ssl-mutual http-address http-max-input-size http-port http-restricted-api
log-verbose metrics-address metrics-config metrics-port model-control-mode model-repository strict-readiness
trace-config
"""
OPTIONS_OF_2_72 = set(OPTIONS.split())
Flags = Callable[..., list[str]]

# The real server behind the name `tritonserver`. It keeps what it was called with, leaves out the two flags that
# 2.51 does not have yet, and names the python backend's place, which in NVIDIA's image is the default.
TRITONSERVER = """\
#!/bin/bash
printf '%s\\n' "$@" > {record}
kept=()
for word in "$@"; do
    case $word in --http-max-input-size=* | --allow-client-shm=*) ;; *) kept+=("$word") ;; esac
done
export LD_LIBRARY_PATH={libraries} PATH={path}
exec {binary} "${{kept[@]}}" --backend-directory={backends} --allow-gpu-metrics=false
"""


@pytest.fixture
def tritonserver(tmp_path: Path) -> Path:
    """A folder for PATH with a `tritonserver`; beside it, `called` will hold its arguments."""
    installation = Installation.find()
    environment = installation.environment()
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "tritonserver").write_text(
        TRITONSERVER.format(
            record=tmp_path / "called",
            libraries=environment["LD_LIBRARY_PATH"],
            path=environment["PATH"],
            binary=installation.binary,
            backends=installation.backends(tmp_path / "backends"),
        )
    )
    (folder / "tritonserver").chmod(0o755)
    return folder


@contextmanager
def started(folder: Path, **environment: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """start.sh until its server is ready by healthcheck.sh; gives the process and the HTTP port."""
    http, grpc, metrics = free_ports(3)
    ports = {"HTTP_PORT": str(http), "GRPC_PORT": str(grpc), "METRICS_PORT": str(metrics)}
    variables = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "PLUGINS": "", **ports, **environment}
    with (folder / "log").open("wb") as log:
        # Our further flags: this one machine must not open ports to others.
        local = [f"--{name}-address=127.0.0.1" for name in ("http", "grpc", "metrics")]
        process = subprocess.Popen([CONTAINER / "start.sh", *local], env=variables, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 60
        while run(CONTAINER / "healthcheck.sh", HTTP_PORT=str(http)).returncode:
            assert process.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()[-3000:]
            time.sleep(0.1)
        yield process, http
    finally:
        process.terminate()
        process.wait(40)


@pytest.mark.server
def test_start_serves_closed_and_ends_on_sigterm(tritonserver: Path, repository: Path, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("a-token-of-24-characters\n")
    environment = {"MODELS": str(repository), "TOKEN_FILE": str(tmp_path / "token"), "EXIT_SECONDS": "5"}
    with started(tritonserver, **environment) as (process, http):
        index = f"http://127.0.0.1:{http}/v2/repository/index"
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(urllib.request.Request(index, b""), timeout=5)
        with caught.value as refused:
            assert refused.code == 403
        request = urllib.request.Request(index, b"", {ADMIN_HEADER: "a-token-of-24-characters"})
        with urllib.request.urlopen(request, timeout=5) as answer:
            assert b"detector" in answer.read()
        process.terminate()
        assert process.wait(30) == 0, "SIGTERM reaches Triton itself, and it ends in order"
    assert run(CONTAINER / "healthcheck.sh", HTTP_PORT=str(http)).returncode != 0
    called = (tmp_path / "called").read_text().splitlines()
    names = {word.removeprefix("--").split("=")[0] for word in called}
    assert names <= OPTIONS_OF_2_72, f"Triton 2.72 has no {names - OPTIONS_OF_2_72}"
    group = next(word for word in called if word.startswith("--http-restricted-api="))
    assert group.startswith(f"--http-restricted-api={','.join(ADMIN_APIS)}:{ADMIN_HEADER}=")
    closed = {"--model-control-mode=none", "--allow-client-shm=false", "--disable-auto-complete-config"}
    assert closed | {"--exit-on-error=true", "--strict-readiness=true"} <= set(called)
    limit = int(next(word for word in called if "max-input-size" in word).split("=")[1])
    assert 0 < limit - 33_554_432 <= 128 * 1024, "the largest image and its header, no more"


START_ERRORS = {
    "no plugins": ({"PLUGINS": "{folder}/none.so"}, "none.so: no such file"),
    "nothing to register them": ({"PLUGINS": "{folder}/short"}, "libretinaserve_triton.so: no such file"),
    "a pool that is no number": ({"CUDA_POOL_BYTES": "64M"}, "'64M' is no number of bytes"),
    "a short token": ({"TOKEN_FILE": "{folder}/short"}, "short: a token is 16 or more"),
    "a token that would end the flag": ({"TOKEN_FILE": "{folder}/comma"}, "comma: a token is"),
    "a token that is a folder": ({"TOKEN_FILE": "{folder}"}, "a token is 16 or more"),
}


@pytest.mark.parametrize("case", START_ERRORS)
def test_start_refuses(case: str, tmp_path: Path) -> None:
    environment, words = START_ERRORS[case]
    (tmp_path / "short").write_text("secret")
    (tmp_path / "comma").write_text("0123456789abcdef,inference")
    filled = {key: value.format(folder=tmp_path) for key, value in environment.items()}
    result = run(CONTAINER / "start.sh", **{"PLUGINS": "", **filled})
    assert result.returncode == 3 and words in result.stderr, result.stderr


@pytest.fixture
def flags(tmp_path: Path) -> Flags:
    """What start.sh would call tritonserver with."""
    (tmp_path / "tritonserver").write_text('#!/bin/bash\nprintf "%s\\n" "$@"\n')
    (tmp_path / "tritonserver").chmod(0o755)
    usual = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PLUGINS": ""}
    return lambda **variables: run(CONTAINER / "start.sh", **{**usual, **variables}).stdout.splitlines()


def test_start_names_the_library_that_registers_the_plugins(tmp_path: Path, flags: Flags) -> None:
    for name in ("libretinaserve_plugins.so", "libretinaserve_triton.so"):
        (tmp_path / name).touch()
    called = flags(PLUGINS=str(tmp_path / "libretinaserve_plugins.so"))
    assert f"--backend-config=tensorrt,plugins={tmp_path}/libretinaserve_triton.so" in called


def test_start_gives_the_server_the_pool_that_build_computed(tmp_path: Path, flags: Flags) -> None:
    def pools(**more: str) -> list[str]:
        called = flags(MODELS=str(tmp_path), **more)
        return [word.split("=")[1] for word in called if word.startswith("--cuda-memory-pool-byte-size=")]

    assert pools() == []  # a repository of before, or of the CPU profile
    (tmp_path / "cuda_memory_pool_bytes").write_text("1652097024\n")
    assert pools() == [f"{gpu}:1652097024" for gpu in range(8)]
    assert pools(CUDA_POOL_BYTES="5")[0] == "0:5"


def test_start_encrypts_and_traces_when_told(tmp_path: Path, flags: Flags) -> None:
    """The flags alone: test_security has their effect, docs/operations.md the collector."""
    tls = {"TLS_FOLDER": str(tmp_path / "tls")}
    assert not [word for word in flags(**tls) if "ssl" in word or word.startswith("--trace")]
    (tmp_path / "tls").mkdir()
    (tmp_path / "tls" / "tls.crt").touch()
    encrypted = flags(**tls)
    assert "--grpc-use-ssl=true" in encrypted and "--http-address=127.0.0.1" in encrypted
    assert not [word for word in encrypted if "mutual" in word]
    (tmp_path / "tls" / "ca.crt").touch()
    mutual = flags(**tls, TRACE_URL="http://c:4318/v1/traces")
    assert mutual.index("--grpc-use-ssl=true") < mutual.index("--grpc-use-ssl-mutual=true"), "the later decides"
    assert "--trace-config=opentelemetry,url=http://c:4318/v1/traces" in mutual
    assert "--trace-config=level=TIMESTAMPS" in mutual
    names = {word.removeprefix("--").split("=")[0] for word in mutual}
    assert names <= OPTIONS_OF_2_72
