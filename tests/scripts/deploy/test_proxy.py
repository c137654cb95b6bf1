"""Two replicas behind HAProxy: one is killed under load, and the callers notice nothing."""

import os
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException

from retinaserve.eval.client.client import Client
from retinaserve.scripts.server.protection import ADMIN_HEADER
from retinaserve.scripts.server.triton import ServerOptions, TritonServer, free_ports
from retinaserve.training.detections import Detections
from tests.images import checker, encode

CONFIG = Path(__file__).parents[3] / "scripts" / "deploy" / "proxy" / "haproxy.cfg"
PICTURES = [encode(checker(40 + n, 30, cell=10)) for n in range(16)] + [encode(checker(400, 300, cell=4), "PNG")]
FREE = ServerOptions.free_ports(admin_token="an-administrators-token-0123")
HAPROXY = shutil.which("haproxy", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
pytestmark = [
    pytest.mark.server,
    pytest.mark.skipif(HAPROXY is None, reason="HAProxy is not installed: apt install haproxy"),
]


@contextmanager
def proxy(first: TritonServer, second: TritonServer, log: Path) -> Iterator[tuple[str, str]]:
    """HAProxy before two servers; gives its HTTP and gRPC addresses when it answers."""
    http, grpc = free_ports(2)
    variables = {"HTTP_BIND": f"127.0.0.1:{http}", "GRPC_BIND": f"127.0.0.1:{grpc}"}
    for name, server in (("A", first), ("B", second)):
        variables |= {f"{name}_HTTP": server.http_url, f"{name}_GRPC": server.grpc_url}
        variables[f"{name}_HTTP_PORT"] = str(server.options.http_port)
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(HAPROXY), "-db", "-f", str(CONFIG)], env={**os.environ, **variables}, stdout=output, stderr=output
        )
    try:
        deadline = time.monotonic() + 20
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{http}/v2/health/ready", timeout=2):
                    break
            except OSError:
                assert process.poll() is None and time.monotonic() < deadline, log.read_text()
                time.sleep(0.1)
        yield f"http://127.0.0.1:{http}", f"127.0.0.1:{grpc}"
    finally:
        process.terminate()
        process.wait(20)


def ask_and_kill(url: str, dying: TritonServer, count: int) -> None:
    """Ask `count` times through the proxy and kill one server halfway."""
    with Client(url, concurrency=16) as client:
        expected = [len(found) for found in client.predict(PICTURES)]

        def source() -> Iterator[bytes]:
            for number in range(count):
                if number == count // 2:
                    os.killpg(dying.process.pid, signal.SIGKILL)
                    dying.process.wait()
                yield PICTURES[number % len(PICTURES)]

        answers = list(client.predict_many(source()))
    assert [answer for answer in answers if not isinstance(answer, Detections)] == []
    found = [len(answer) for answer in answers if isinstance(answer, Detections)]
    assert found == [expected[number % len(PICTURES)] for number in range(count)]


def test_killing_one_replica_fails_no_request(server: TritonServer, repository: Path, tmp_path: Path) -> None:
    with TritonServer(repository, FREE) as first, TritonServer(repository, FREE) as second:
        for each in (first, second):
            each.wait_until_ready(60)
        with proxy(first, second, tmp_path / "log") as (http, grpc):
            with pytest.raises(urllib.error.HTTPError) as caught:
                header = {ADMIN_HEADER: "an-administrators-token-0123"}
                request = urllib.request.Request(f"{http}/v2/repository/index", b"", header)
                urllib.request.urlopen(request, timeout=5)
            with caught.value as refused:
                assert refused.code == 403, "the proxy lets no administrator through, token or not"
            with InferenceServerClient(grpc) as client, pytest.raises(InferenceServerException):
                client.get_model_repository_index()
            ask_and_kill(grpc, first, 600)
        with proxy(second, server, tmp_path / "log") as (http, _):
            ask_and_kill(http, second, 300)
