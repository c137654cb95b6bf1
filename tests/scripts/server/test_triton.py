"""The embedded server as a process: it starts, explains itself, and leaves nothing behind."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from retinaserve.eval.client.client import Client
from retinaserve.scripts.server.installation import usable_cores
from retinaserve.scripts.server.triton import Server, ServerOptions, TritonServer, free_ports
from retinaserve.training.detections import Detections
from retinaserve.training.errors import UserError
from tests.cli import invoke

pytestmark = pytest.mark.server
FREE = ServerOptions.free_ports()


def group_members(group: int) -> list[int]:
    """Return the live processes of a process group."""
    found = []
    for process in psutil.process_iter(["status"]):
        with suppress(ProcessLookupError):
            if os.getpgid(process.pid) == group and process.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
    return found


def wait_for(condition: object, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (ServerOptions(http_port=8000, grpc_port=8000), "two of the three ports"),
        (ServerOptions.free_ports(host="203.0.113.7"), "203.0.113.7"),
    ],
    ids=["same port twice", "foreign address"],
)
def test_unusable_options(repository: Path, options: ServerOptions, words: str) -> None:
    with pytest.raises(UserError, match=words):
        TritonServer(repository, options)


def test_a_port_in_use_is_named_before_anything_starts(repository: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f":{port} can't be used") as caught:
            TritonServer(repository, ServerOptions.free_ports(grpc_port=port))
    assert "--grpc-port" in caught.value.hint


def test_the_environments_proxy_is_not_asked(server: TritonServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    assert server.is_ready()


@pytest.mark.parametrize("content", [None, "empty"])
def test_no_repository(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "repository"
    if content:
        path.mkdir()
    with pytest.raises(UserError, match=str(path)):
        TritonServer(path, FREE)


@pytest.mark.parametrize("flags", [["--no-restart"], []], ids=["once", "restart"])
def test_no_repository_is_said_before_a_port_in_use(tmp_path: Path, flags: list[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        words = ["serve", str(tmp_path / "nowhere"), "--http-port", str(taken.getsockname()[1]), *flags]
        result = invoke(*words)
    assert result.exit_code == 3 and "nowhere: no such folder" in result.stderr, result.output


def test_a_broken_model_is_explained_by_the_line_of_the_log(repository: Path, tmp_path: Path) -> None:
    broken = tmp_path / "it's a repository"  # the blanks and the quote are no reason
    shutil.copytree(repository, broken)
    (broken / "retinanet" / "1" / "model.onnx").write_bytes(b"garbage")
    with TritonServer(broken, FREE, log=tmp_path / "log") as server:
        with pytest.raises(UserError) as caught:
            server.wait_until_ready(60)
        group = server.process.pid
    assert "retinanet" in caught.value.message and "Unable to read the model" in caught.value.message
    assert str(broken) in caught.value.message and str(tmp_path / "log") in caught.value.hint
    assert group_members(group) == []


PORTS = ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"]
SERVE = [sys.executable, "-m", "retinaserve", "serve", *PORTS]


def start_serve(repository: Path, *options: str) -> tuple[subprocess.Popen[str], list[str]]:
    """Start `retinaserve serve` and return it with what it printed until it was ready."""
    process = subprocess.Popen(
        [*SERVE, str(repository), *options], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    return process, until_ready(process)


def until_ready(process: subprocess.Popen[str]) -> list[str]:
    """Return what `serve` prints until its next server is ready."""
    assert process.stdout
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("EOF"):
            return lines
    raise AssertionError(f"serve ended: {lines}")


def servers_of(parent: int) -> list[int]:
    return [child.pid for child in psutil.Process(parent).children()]


def test_serve_prints_commands_that_work_and_ends_on_ctrl_c(repository: Path, tmp_path: Path) -> None:
    """From a folder whose name has a space and what else means something to the shell that Triton starts."""
    process, lines = start_serve(Path(shutil.copytree(repository, tmp_path / "it's my $HOME & yours")))
    text = "".join(lines)
    image = repository / "preprocess" / "warmup" / "picture.jpg"
    curl = text[text.index('f="IMAGE.jpg"') : text.index("python - <<")].replace("IMAGE.jpg", str(image))
    answer = subprocess.run(["bash", "-c", curl], capture_output=True, text=True, check=True).stdout
    assert '"num_detections"' in answer and '"boxes"' in answer
    python = text[text.index("python - <<") :].replace("IMAGE.jpg", str(image))
    command = f"cd {Path.cwd()} && PATH={Path(sys.executable).parent}:$PATH && {python}"
    answer = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True).stdout
    assert re.match(r"\[.*?\] \[", answer), answer  # class names, then boxes
    (server,) = servers_of(process.pid)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0
    assert process.stdout and group_members(server) == []
    process.stdout.close()


def test_a_killed_server_is_started_again_on_its_ports_and_a_killed_serve_takes_it_along(repository: Path) -> None:
    process, lines = start_serve(repository)
    (server,) = servers_of(process.pid)
    os.kill(server, signal.SIGKILL)
    again_said = until_ready(process)
    for name in ("HTTP ", "gRPC "):
        assert [line for line in again_said if line.startswith(name)] == [
            line for line in lines if line.startswith(name)
        ]
    assert group_members(server) == [], "no python process is left of the dead one"
    (again,) = servers_of(process.pid)
    assert again != server
    assert len(group_members(again)) == 4  # the server and three python-backend processes
    process.kill()
    process.wait()
    assert process.stdout
    process.stdout.close()
    wait_for(lambda: group_members(again) == [])


def test_preprocess_killed_under_load_answers_everybody_and_serves_again(repository: Path) -> None:
    """Whatever an image does to the process that decodes it, its sender is told, and others are served soon."""
    process, lines = start_serve(repository)
    address = next(line.split()[1] for line in lines if line.startswith("gRPC "))
    image = (repository / "preprocess" / "warmup" / "picture.jpg").read_bytes()
    answers: list[tuple[float, float, bool]] = []  # when sent, seconds, whether there are boxes
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            sent = time.monotonic()
            try:
                with Client(address, timeout=20) as client:
                    (answer,) = client.predict_many([image])
                found = isinstance(answer, Detections)
            except UserError:  # nobody listens at the moment
                found = False
            answers.append((sent, time.monotonic() - sent, found))
            stop.wait(0.05 if found else 0.2)

    senders = [threading.Thread(target=ask) for _ in range(4)]
    for sender in senders:
        sender.start()
    wait_for(lambda: sum(found for *_, found in answers) > 20, seconds=60)
    (server,) = servers_of(process.pid)
    stubs = [each for each in psutil.Process(server).children() if "preprocess" in " ".join(each.cmdline())]
    assert len(stubs) == 2
    killed = time.monotonic()
    for stub in stubs:
        stub.kill()
    wait_for(lambda: sum(found for sent, _, found in answers if sent > killed) > 20, seconds=90)
    stop.set()
    for sender in senders:
        sender.join(60)
        assert not sender.is_alive(), "a sender was never answered"
    assert max(seconds for _, seconds, _ in answers) < 45, "an answer that a sender has to wait for is none"
    assert not all(found for *_, found in answers)
    assert servers_of(process.pid) != [server]
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    assert process.stdout
    process.stdout.close()


def test_no_code_of_this_process_runs_in_the_servers_and_an_idle_connection_does_not_hold_it_up(
    repository: Path,
) -> None:
    """Between fork and exec, what other threads had begun, such as gRPC's, is left half done and may abort."""
    forks: list[int] = []
    os.register_at_fork(before=lambda: forks.append(os.getpid()))
    with Server(repository) as server:
        assert forks == []
        host, port = server.http_url.split(":")
        with socket.create_connection((host, int(port))) as idle:
            idle.sendall(b"GET /v2/health/ready HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b"200 OK" in idle.recv(1000)
            start = time.monotonic()
            server.stop()
            assert time.monotonic() - start < 15


def test_free_ports_differ() -> None:
    assert len(set(free_ports(50))) == 50


def test_usable_cores_are_at_most_those_of_the_affinity() -> None:
    assert 1 <= usable_cores() <= len(os.sched_getaffinity(0))
