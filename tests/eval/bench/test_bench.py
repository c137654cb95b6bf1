"""The benchmark, also on the real server with the real perf_analyzer: windows are short, so no speed is judged."""

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import get_args

import click
import numpy as np
import pytest
from PIL import Image

from retinaserve.eval.bench.bench import Bench, Level, concurrencies, header, plot, row, to_dict
from retinaserve.eval.bench.perf_analyzer import Demand, Load, LoadError, PerfAnalyzer
from retinaserve.eval.client.client import Client
from retinaserve.eval.client.server_info import ModelStatistics, ServedModel, by_model, whole
from retinaserve.eval.client.transport import PORTS, Endpoint, Protocols
from retinaserve.scripts.cli.ask.bench import bench_endpoints
from retinaserve.scripts.server.triton import TritonServer
from retinaserve.training.errors import UserError
from tests.images import checker, encode

CONCURRENCIES = {
    "one": ("4", [4]),
    "doubling": ("1:8", [1, 2, 4, 8]),
    "doubling up to less": ("1:6", [1, 2, 4]),
    "doubling from three": ("3:24", [3, 6, 12, 24]),
    "in steps": ("1:8:3", [1, 4, 7]),
    "a list": ("1,6,16", [1, 6, 16]),
}


@pytest.mark.parametrize("case", CONCURRENCIES)
def test_concurrencies_are_read(case: str) -> None:
    text, expected = CONCURRENCIES[case]
    assert concurrencies(text) == expected


@pytest.mark.parametrize("text", ["", "x", "0", "0:4", "-1", "8:1", "1:2:3:4", "1:8:0", "1,", "1.5"])
def test_wrong_concurrencies_are_refused(text: str) -> None:
    with pytest.raises(ValueError):
        concurrencies(text)


ENDPOINTS: dict[str, tuple[list[str], str | None, list[str]]] = {
    "a host alone means both": (["box"], None, ["grpc://box:8001", "http://box:8000"]),
    "a host and one protocol": (["box"], "http", ["http://box:8000"]),
    "a port is gRPC's": (["box:9"], None, ["grpc://box:9"]),
    "unless said otherwise": (["box:9"], "http", ["http://box:9"]),
    "both by their schemes": (["box:9", "http://box:8"], "grpc,http", ["grpc://box:9", "http://box:8"]),
    "one of both": (["grpc://box:9", "http://box:8"], "http", ["http://box:8"]),
}


@pytest.mark.parametrize("case", ENDPOINTS)
def test_servers_and_protocols_become_endpoints(case: str) -> None:
    servers, protocols, expected = ENDPOINTS[case]
    assert [str(endpoint) for endpoint in bench_endpoints(servers, protocols)] == expected


@pytest.mark.parametrize(("servers", "protocols"), [(["box:9"], "grpc,http"), (["box"], "tcp")])
def test_a_protocol_without_a_port_is_a_usage_error(servers: list[str], protocols: str) -> None:
    with pytest.raises(click.UsageError):
        bench_endpoints(servers, protocols)


def test_protocols_and_their_ports_agree() -> None:
    assert set(get_args(Protocols)) == set(PORTS)


def test_statistics_are_means_of_what_happened_between_two_looks() -> None:
    # As http_server.cc writes it, and gRPC's JSON: integers as strings, zeros left out.
    times = {"success": {"count": 10, "ns": 9}, "queue": {"count": 10, "ns": 5_000_000}}
    entry = {"name": "m", "version": "1", "inference_count": 10, "execution_count": 4, "inference_stats": times}
    small = {"name": "m", "version": "2", "inference_count": "2", "inference_stats": {"success": {"count": "2"}}}
    both = by_model([entry, small])["m"]
    spent = both - ModelStatistics(inferences=4, executions=1, requests=2, queue_ns=1_000_000)
    assert (spent.inferences, spent.executions, spent.requests) == (8, 3, 10)
    assert spent.mean_batch == pytest.approx(8 / 3) and spent.queue_ms == pytest.approx(0.4)
    assert ModelStatistics().mean_batch == 0 and ModelStatistics().infer_ms == 0


def test_what_no_step_counts_is_decoding() -> None:
    """Of 50 ns in the ensemble 9 are waiting and 12 the network's; 2 went by until the next image could begin."""
    served = ServedModel("detector", ("cat",), (1,), steps=("preprocess", "retinanet"))
    spent = {
        "detector": ModelStatistics(requests=1, total_ns=50),
        "preprocess": ModelStatistics(requests=1, queue_ns=8, infer_ns=2),
        "retinanet": ModelStatistics(requests=1, queue_ns=1, input_ns=1, infer_ns=10, output_ns=1),
    }
    found = whole(spent, served)
    assert found["preprocess"].infer_ns == 50 - 8 - 13
    assert found["retinanet"] == spent["retinanet"] and found["preprocess"].queue_ns == 8
    on_gpu = ServedModel("detector", ("cat",), (1,), steps=("admission", "preprocess", "retinanet"))
    assert whole(spent, on_gpu) == whole({}, served) | spent


ONE = Demand(1)
STEP = ModelStatistics(10, 5, 10, 0, 1_000_000, 2_000_000, 9_000_000, 30)
LEVELS = [
    Level("grpc", ONE, Load(ONE, 100, 12.3, 80.0, 90.0, 95.0, 99.0), {"preprocess": STEP, "retinanet": STEP}),
    Level("grpc", Demand(128), None, {"preprocess": STEP, "retinanet": STEP}, "Exceeds maximum queue size"),
    Level("http", ONE, Load(ONE, 90, 11.1, 85.0, 95.0, 99.0, 103.0), {"preprocess": STEP, "retinanet": STEP}),
]


def test_the_table_lines_up() -> None:
    above, names = header(["preprocess", "retinanet"]).splitlines()
    lines = [row(level) for level in LEVELS]
    assert len(names) == len(lines[0]) == len(lines[2])
    columns = [index for index, letter in enumerate(names) if letter == "|"]
    assert all(line[index] == "|" for line in (above, lines[0], lines[2]) for index in columns)
    assert "failed" in lines[1] and "Exceeds maximum queue size" in lines[1]


def test_json_holds_runs_and_failures_apart() -> None:
    endpoints = (Endpoint.parse("a:1"), Endpoint.parse("http://a:2"))
    prepared = Bench(endpoints, (b"12", b"345"), {"bad.jpg": "corrupt"}, ("preprocess", "retinanet"))
    report = to_dict(prepared, LEVELS, seconds=3, command="retinaserve bench")
    assert [(run["protocol"], run["throughput_ips"]) for run in report["runs"]] == [("grpc", 12.3), ("http", 11.1)]
    assert report["runs"][0]["latency_ms"] == {"p50": 80.0, "p90": 90.0, "p95": 95.0, "p99": 99.0}
    step = report["runs"][0]["steps"]["preprocess"]
    assert (step["queue_ms"], step["infer_ms"], step["mean_batch"]) == (0.1, 0.9, 2.0)
    assert report["failures"] == [
        {"protocol": "grpc", "concurrency": 128, "problem": "Exceeds maximum queue size"}
    ]
    assert report["refused"] == {"bad.jpg": "corrupt"} and report["picture_bytes"] == 5
    assert report["machine"]["cores"] >= 1


RATES = [Level("grpc", Demand(rate=rate), Load(Demand(rate=rate), 9, rate, 1, 2, 3, 4), {}) for rate in (5.0, 2.5)]


def test_a_rate_is_shown_and_written_as_one() -> None:
    assert "    2.5/s" in row(RATES[1])
    assert RATES[1].to_dict()["rate"] == 2.5 and "concurrency" not in RATES[1].to_dict()


@pytest.mark.parametrize(
    "levels", [[], LEVELS, RATES, LEVELS + RATES], ids=["nothing measured", "two protocols", "rates", "both"]
)
def test_the_plot_is_a_picture(levels: list[Level], tmp_path: Path) -> None:
    plot(levels, tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as picture:
        assert picture.width > 1000 and np.asarray(picture.convert("L")).std() > 5


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{number}.jpg" for number in range(5)]
    for number, path in enumerate(paths):
        path.write_bytes(encode(checker(100 + 40 * number, 90, seed=number)))
    return paths


@pytest.mark.server
def test_both_protocols_are_measured_and_the_steps_account_for_it(server: TritonServer, files: list[Path]) -> None:
    files[2].write_bytes(b"GIF89a no longer a picture")
    endpoints = [Endpoint.parse(server.grpc_url), Endpoint.parse(server.http_url, "http")]
    prepared = Bench.prepare(endpoints, files)
    assert list(prepared.refused) == [str(files[2])] and "GIF" in prepared.refused[str(files[2])]
    assert len(prepared.images) == 4 and prepared.steps == ("preprocess", "retinanet")
    levels = list(prepared.run([Demand(3), Demand(rate=20)], seconds=1.0))
    assert [(level.protocol, level.problem) for level in levels] == [("grpc", "")] * 2 + [("http", "")] * 2
    for level in levels:
        load = level.load
        assert load is not None and load.throughput_ips > 0 and 0 < load.p50 <= load.p90 <= load.p99
        if level.demand.rate:
            assert load.throughput_ips < 3 * level.demand.rate, "an open loop sends no more than it is asked to"
            continue
        for spent in level.steps.values():
            # perf_analyzer leaves out what was under way when a window began or ended, nothing more.
            assert spent.inferences >= load.requests > 0 and 1 <= spent.mean_batch <= 3 and spent.failed == 0


@pytest.mark.server
def test_a_request_that_fails_under_load_is_reported_in_the_servers_words(
    server: TritonServer, files: list[Path]
) -> None:
    pictures = [files[0].read_bytes(), b"%PDF-1.7"]
    failed = pytest.raises(LoadError, match="requests in flight failed: the data is a PDF")
    with PerfAnalyzer("detector", pictures) as analyzer, failed:
        analyzer.run(Endpoint.parse(server.grpc_url), Demand(2), seconds=0.6)


@pytest.mark.server
def test_nothing_to_send_is_an_error(server: TritonServer, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"")
    with pytest.raises(UserError, match="refused all images"):
        Bench.prepare([Endpoint.parse(server.grpc_url)], [tmp_path / "a.jpg", tmp_path / "gone.jpg"])


def answered(server: TritonServer) -> int:
    """Return how many pictures the server answered since it started."""
    with Client(server.grpc_url) as client:
        return client.statistics()["detector"].requests


@pytest.mark.server
def test_ctrl_c_ends_the_load(server: TritonServer, files: list[Path], tmp_path: Path) -> None:
    """The load is perf_analyzer's, in a session of its own: if it outlived `bench`, the server would see it."""
    before = answered(server)
    words = ["bench", "--server", server.grpc_url, "--images", str(files[0]), "--seconds", "60"]
    # On SIGABRT it writes where it stands: all that would tell why no load came.
    command = [
        sys.executable,
        "-X",
        "faulthandler",
        "-c",
        "from retinaserve.scripts.cli.main import main; main()",
        *words,
    ]
    said = tmp_path / "said.txt"
    with said.open("w") as output, subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT) as process:
        deadline = time.monotonic() + 30
        while answered(server) < before + 10 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        if process.poll() is not None or time.monotonic() > deadline:
            process.send_signal(signal.SIGABRT)
            process.wait()
            pytest.fail(f"no load came; bench said:\n{said.read_text()}")
        process.send_signal(signal.SIGINT)
        process.wait(timeout=10)
    assert process.returncode not in (0, -signal.SIGABRT) and "Traceback" not in said.read_text()
    time.sleep(0.5)  # for what was under way
    after = answered(server)
    time.sleep(0.5)
    assert answered(server) == after
