"""`retinaserve web` as a command: until Ctrl-C, warnings, addresses, metrics, and what a wheel carries."""

import signal
import socket
from pathlib import Path

import pytest

from retinaserve.eval.client.transport import Endpoint
from retinaserve.eval.web.gateway import Gateway, metrics_url, read_metrics, shown_metrics
from retinaserve.scripts.cli.ask.web import is_loopback, listen, page_url, usual_metrics
from retinaserve.scripts.server.triton import TritonServer, free_ports
from retinaserve.training.errors import UserError
from tests.eval.web.web_server import ask, run_web
from tests.images import checker, encode

pytestmark = pytest.mark.server
IMAGE = encode(checker(300, 200))
ROOT = Path(__file__).parents[4]


def test_the_command_serves_until_ctrl_c(server: TritonServer) -> None:
    with run_web("--server", server.grpc_url, "--port", "0") as process:
        assert process.stdout is not None
        url = process.stdout.readline().split()[-1]
        assert f"grpc://{server.grpc_url}" in process.stdout.readline()
        assert ask(url, "/").body.startswith(b"<!doctype html>")
        assert ask(url, "/api/detect", IMAGE).status == 200
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    assert process.returncode == 0
    assert "the page is closed" in err and "Traceback" not in err and "warning" not in err


def test_the_command_warns_and_waits() -> None:
    (port,) = free_ports(1)
    with run_web("--server", f"127.0.0.1:{port}", "--port", "0", "--host", "0.0.0.0") as process:
        assert process.stdout is not None
        url = process.stdout.readline().split()[-1]
        assert ask(url, "/api/status").json["state"] == "down"
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=20)
    assert "everybody who reaches 0.0.0.0" in err and "no Triton server answers" in err
    assert "the page waits for it" in err and "Traceback" not in err


def test_a_port_in_use_and_a_foreign_address_are_named() -> None:
    with listen("127.0.0.1", 0) as taken, pytest.raises(UserError, match="can't be used: Address already in use"):
        listen("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(UserError, match="can't be used"):
        listen("192.0.2.1", 0)
    with pytest.raises(UserError, match="is no address of this machine"):
        listen("nowhere.invalid", 0)
    with pytest.raises(UserError, match="is not an address"):
        Gateway("http://")


@pytest.mark.parametrize(
    ("host", "port", "url", "local"),
    [
        ("127.0.0.1", 8080, "http://127.0.0.1:8080", True),
        ("localhost", 1, "http://localhost:1", True),
        ("::1", 8080, "http://[::1]:8080", True),
        ("0.0.0.0", 8080, "http://127.0.0.1:8080", False),
        ("lab.example", 80, "http://lab.example:80", False),
    ],
)
def test_addresses(host: str, port: int, url: str, local: bool) -> None:
    assert page_url(host, port) == url and is_loopback(host) == local


def test_where_metrics_are() -> None:
    assert usual_metrics(Endpoint.parse("lab:8001")) == "http://lab:8002/metrics"
    assert usual_metrics(Endpoint.parse("http://[::1]:8000")) == "http://[::1]:8002/metrics"
    assert usual_metrics(Endpoint.parse("lab:9001")) == "", "another server may be at 8002"
    assert metrics_url("lab:8002") == "http://lab:8002/metrics" == metrics_url("http://lab:8002")
    assert metrics_url("https://lab/triton/metrics") == "https://lab/triton/metrics"
    with pytest.raises(UserError, match="is not an address"):
        metrics_url("file:///etc/passwd")
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        assert read_metrics(f"http://127.0.0.1:{nobody.getsockname()[1]}/metrics") is None


def test_metrics_are_read_as_prometheus_writes_them() -> None:
    assert shown_metrics("") == {}
    text = """\
# HELP nv_gpu_memory_used_bytes GPU used memory, in bytes
# TYPE nv_gpu_memory_used_bytes gauge
nv_gpu_memory_used_bytes{gpu_uuid="a b"} 1.5e+09
nv_gpu_memory_used_bytes{gpu_uuid="c"} 500000000
nv_inference_pending_request_count{model="detector",version="1"} 3
nv_inference_pending_request_count{model="retinanet",version="1"} 2
nv_cpu_utilization 0.25 1700000000000
nv_inference_count{model="x"} 12
# HELP retinaserve_bad_images Images refused
# TYPE retinaserve_bad_images counter
retinaserve_bad_images{model="preprocess",version="1"} 4
retinaserve_bad_images{model="preprocess",version="2"} 1
"""
    expected = {"bad_images": 5, "gpu_memory_used": 2e9, "pending": 3, "cpu_utilization": 0.25}
    assert shown_metrics(text) == expected
    with pytest.raises(ValueError):
        shown_metrics("<html>another server</html>")
