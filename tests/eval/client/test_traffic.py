import time

import pytest

from retinaserve.eval.client.client import Client
from retinaserve.eval.client.server_info import ModelStatistics
from retinaserve.eval.report.report import Traffic
from retinaserve.scripts.server.triton import TritonServer
from retinaserve.training.detections import ImageError
from tests.images import checker, encode


@pytest.mark.server
def test_a_run_is_timed_and_the_server_says_how_busy_it_was(server: TritonServer) -> None:
    image = encode(checker(300, 200))
    with Client(server.grpc_url, concurrency=4) as client:
        idle = Traffic.watch(client)
        time.sleep(0.3)
        assert idle.latency() == {} and max(idle.busy(0.3).values()) == 0.0
        traffic = Traffic.watch(client)
        start = time.perf_counter()
        answers = list(client.predict_many([image, b"no image", ImageError("gone"), *[image] * 37]))
        wall = time.perf_counter() - start
        busy, latency = traffic.busy(wall), traffic.latency()
    assert sum(isinstance(answer, ImageError) for answer in answers) == 2
    assert len(traffic.seconds) == 38, "neither what was refused nor what was never sent"
    assert 0 < latency["p50"] <= latency["p90"] <= latency["p95"] <= latency["p99"] <= latency["max"]
    # Four at a time, one after the other in a queue: no answer takes longer than the run, their sum four runs.
    assert latency["max"] <= 1000 * wall and sum(traffic.seconds) <= 4.1 * wall
    assert set(busy) == {"preprocess", "retinanet"}
    assert 0.05 < max(busy.values()) <= 1.0


def test_a_batch_is_busy_once() -> None:
    # Two executions of 10 ms, one of them a batch of four: five requests waited 50 ms for 20 ms of work.
    entry = {
        "name": "retinanet",
        "inference_count": "5",
        "execution_count": "2",
        "inference_stats": {"success": {"count": "5"}, "compute_infer": {"count": "5", "ns": "50000000"}},
        "batch_stats": [
            {"batch_size": "1", "compute_infer": {"count": "1", "ns": "10000000"}},
            {
                "batch_size": "4",
                "compute_infer": {"count": "1", "ns": "9000000"},
                "compute_input": {"ns": "1000000"},
            },
        ],
    }
    statistics = ModelStatistics.from_server(entry)
    assert statistics.busy_ns == 20_000_000
    assert statistics.infer_ms == 10.0
