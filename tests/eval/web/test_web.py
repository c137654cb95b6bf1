"""The page's program over HTTP, on the real server: boxes, times, status, and what it refuses."""

import http.client
import io
import json
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from retinaserve.eval.client.client import Client
from retinaserve.eval.web.app import MOST_UPLOADS
from retinaserve.eval.web.gateway import Gateway
from retinaserve.eval.web.guard import UPLOAD
from retinaserve.scripts.server.triton import ServerOptions, TritonServer, free_ports
from retinaserve.training.images.draw import PALETTE
from tests.counted import counted
from tests.eval.web.web_server import Reply, ask, page_of, stuck_uploads
from tests.images import bad_images, checker, encode
from tests.toys import CATEGORY_IDS, CLASSES

pytestmark = pytest.mark.server
IMAGE = encode(checker(300, 200))
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def gateway(server: TritonServer) -> Gateway:
    return Gateway(server.grpc_url, metrics=server.metrics_url)


@pytest.fixture(scope="module")
def page(gateway: Gateway) -> Iterator[str]:
    with page_of(gateway, hosts=frozenset({"lab.example"})) as url:
        yield url


def test_the_boxes_are_the_clients(page: str, server: TritonServer) -> None:
    reply = ask(page, "/api/detect", IMAGE)
    with Client(server.grpc_url) as client:
        (found,) = client.predict([IMAGE])
    answer = reply.json
    assert reply.status == 200 and (answer["width"], answer["height"]) == (300, 200)
    assert len(answer["detections"]) == len(found) > 0
    for got, box, score, index in zip(answer["detections"], found.boxes, found.scores, found.classes, strict=True):
        assert got["index"] == index and got["score"] == pytest.approx(score, abs=1e-4)
        assert got["box"] == pytest.approx(box.tolist(), abs=0.01)
    model = answer["model"]
    assert model["classes"] == list(CLASSES) and model["category_ids"] == list(CATEGORY_IDS)
    assert [ground for ground, _ in model["colours"]] == ["#{:02x}{:02x}{:02x}".format(*c) for c in PALETTE[:3]]


def test_a_phone_photo_is_upright(page: str) -> None:
    answer = ask(page, "/api/detect", encode(checker(300, 200), orientation=6)).json
    assert (answer["width"], answer["height"]) == (200, 300)


def test_the_time_of_a_lone_image_is_its_own(page: str, server: TritonServer) -> None:
    with Client(server.grpc_url) as client:
        before = counted(client)
        timing = ask(page, "/api/detect", IMAGE).json["timing"]
        after = counted(client)
    assert timing["requests"] == 1
    assert [step["name"] for step in timing["steps"]] == ["preprocess", "retinanet"]
    for step in timing["steps"]:
        spent = after[step["name"]] - before[step["name"]]
        assert spent.requests == 1
        assert step["queue_ms"] == pytest.approx(spent.queue_ms, abs=1e-3)
        if step["name"] == "retinanet":
            assert step["compute_ms"] == pytest.approx(spent.compute_ms, abs=1e-3)
        assert step["compute_ms"] > 0
    spent = after["detector"] - before["detector"]
    assert timing["server_ms"] == pytest.approx(spent.total_ms, abs=1e-3)
    # Triton counts less for preprocess, whose execution ends before its images do.
    assert sum(step["queue_ms"] + step["compute_ms"] for step in timing["steps"]) == pytest.approx(
        spent.total_ms, abs=5e-3
    )


def test_the_time_among_others_is_called_a_mean(page: str, server: TritonServer) -> None:
    stop = threading.Event()

    def others() -> None:
        with Client(server.grpc_url, concurrency=4) as client:
            while not stop.is_set():
                list(client.predict_many([IMAGE] * 4))

    thread = threading.Thread(target=others)
    thread.start()
    try:
        requests = [ask(page, "/api/detect", IMAGE).json["timing"]["requests"] for _ in range(8)]
    finally:
        stop.set()
        thread.join()
    assert max(requests) > 1


def test_images_at_once_are_answered_one_after_the_other(page: str) -> None:
    replies: list[Reply] = []
    threads = [threading.Thread(target=lambda: replies.append(ask(page, "/api/detect", IMAGE))) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    timings = [reply.json["timing"] for reply in replies]
    assert [timing["requests"] for timing in timings] == [1] * 10
    assert max(timing["wait_ms"] for timing in timings) > max(timing["server_ms"] for timing in timings)


@pytest.mark.parametrize("name", ["empty", "text", "jpeg 2000", "jpeg truncated", "png corrupt"])
def test_a_bad_image_has_the_servers_own_words(page: str, name: str) -> None:
    image, words = bad_images()[name]
    reply = ask(page, "/api/detect", image)
    assert reply.status == 400 and reply.json["kind"] == "bad_image" and words in reply.json["message"]
    assert "ensemble" not in reply.json["message"]


def test_status_tells_models_counts_and_metrics(page: str) -> None:
    before = ask(page, "/api/status").json
    ask(page, "/api/detect", IMAGE)
    ask(page, "/api/detect", b"no image")
    threading.Event().wait(0.6)  # several pages share one look in half a second
    after = ask(page, "/api/status").json
    assert after["state"] == "ready" and re.fullmatch(r"2\.\d+\.\d+", after["version"])
    assert after["model"]["max_image_bytes"] == 32 * 1024 * 1024 and after["model"]["size"] == [128, 192]
    models = {model["name"]: model for model in after["models"]}
    assert set(models) == {"detector", "preprocess", "retinanet"}
    assert all(model["state"] == "READY" and model["version"] == "1" for model in models.values())
    earlier = {model["name"]: model for model in before["models"]}
    grown = {name: models[name]["requests"] - earlier[name]["requests"] for name in models}
    assert grown["retinanet"] == grown["detector"] == 1
    assert models["detector"]["total_ms"] > earlier["detector"]["total_ms"]
    assert models["detector"]["failed"] > earlier["detector"]["failed"]
    assert after["metrics"]["bad_images"] == before["metrics"]["bad_images"] + 1
    assert {"pending", "cpu_utilization", "memory_used"} <= set(after["metrics"])


def test_status_over_http_is_the_same(server: TritonServer, page: str) -> None:
    with page_of(Gateway(f"http://{server.http_url}")) as other:
        status = ask(other, "/api/status").json
        answer = ask(other, "/api/detect", IMAGE).json
    expected = ask(page, "/api/status").json
    assert status["model"] == expected["model"] and status["metrics"] is None
    assert [m["name"] for m in status["models"]] == [m["name"] for m in expected["models"]]
    assert answer["timing"]["requests"] == 1 and answer["detections"]


@pytest.mark.parametrize(
    ("kind", "orientation", "size"), [("TIFF", 0, (300, 200)), ("PNG", 0, (300, 200)), ("JPEG", 6, (200, 300))]
)
def test_a_preview_is_an_upright_jpeg(page: str, kind: str, orientation: int, size: tuple[int, int]) -> None:
    image = encode(checker(300, 200), kind, **({"orientation": orientation} if orientation else {}))
    reply = ask(page, "/api/preview", image)
    assert reply.status == 200 and reply.headers["content-type"] == "image/jpeg"
    with Image.open(io.BytesIO(reply.body)) as preview:
        assert preview.size == size and preview.getexif().get(0x0112, 1) == 1


def test_a_preview_is_bounded(page: str) -> None:
    with Image.open(io.BytesIO(ask(page, "/api/preview", encode(checker(4000, 1000), "PNG")).body)) as preview:
        assert preview.size == (2560, 640)
    assert ask(page, "/api/preview", b"no image").status == 400
    bomb = encode(Image.new("1", (9000, 9000)), "PNG")
    assert len(bomb) < 100_000 and ask(page, "/api/preview", bomb).status == 400


def test_uploads_are_bounded(page: str) -> None:
    limit = 32 * 1024 * 1024
    connection = http.client.HTTPConnection(page.removeprefix("http://"), timeout=30)
    connection.putrequest("POST", "/api/detect")
    connection.putheader("Content-Type", UPLOAD)
    connection.putheader("Content-Length", str(limit + 1))
    connection.endheaders()  # refused by what is stated, before a byte of it
    answer = connection.getresponse()
    assert answer.status == 413 and "32 MiB" in json.loads(answer.read())["message"]
    connection.close()

    connection = http.client.HTTPConnection(page.removeprefix("http://"), timeout=30)
    connection.putrequest("POST", "/api/detect")
    connection.putheader("Content-Type", UPLOAD)
    connection.putheader("Transfer-Encoding", "chunked")
    connection.endheaders()
    chunk, sent = bytes(1 << 20), 0
    try:
        while sent <= limit + (8 << 20):
            connection.send(b"%x\r\n%s\r\n" % (len(chunk), chunk))
            sent += len(chunk)
    except OSError:
        pass  # cut off
    else:
        assert connection.getresponse().status == 413
    connection.close()
    assert ask(page, "/api/detect", IMAGE).status == 200


def test_images_under_way_are_bounded(page: str) -> None:
    with stuck_uploads(page, MOST_UPLOADS):
        reply = ask(page, "/api/detect", IMAGE)
        assert reply.status == 503 and reply.json["kind"] == "overloaded"
        assert ask(page, "/api/status").status == 200
    deadline = time.monotonic() + 30
    while ask(page, "/api/detect", IMAGE).status != 200:
        assert time.monotonic() < deadline, "uploads that broke off are still counted"


REFUSED = {
    "a foreign name": ({"host": "evil.example"}, 403),
    "a name like ours": ({"host": "localhost.evil.example"}, 403),
    "no host": ({"host": " "}, 403),
    "a foreign origin": ({"origin": "http://evil.example"}, 403),
    "an opaque origin": ({"origin": "null"}, 403),
    "another port's origin": ({"origin": "http://127.0.0.1:1"}, 403),
    "another site": ({"sec_fetch_site": "cross-site"}, 403),
    "a form": ({"content_type": "multipart/form-data; boundary=x"}, 403),
    "plain text, which needs no permission": ({"content_type": "text/plain"}, 403),
    "localhost": ({"host": "localhost:1234"}, 200),
    "an allowed name": ({"host": "LAB.example"}, 200),
    "an address, through a tunnel": ({"host": "[::1]:9"}, 200),
    "the page itself": ({"sec_fetch_site": "same-origin"}, 200),
}


@pytest.mark.parametrize("name", REFUSED)
def test_who_may_ask(page: str, name: str) -> None:
    headers, status = REFUSED[name]
    reply = ask(page, "/api/detect", IMAGE, **headers)
    assert reply.status == status
    if status == 403:
        assert reply.json["kind"] == "refused"


def test_a_foreign_name_may_not_even_read(page: str) -> None:
    for path in ("/", "/api/status", "/static/main.js"):
        assert ask(page, path, host="evil.example").status == 403


def test_every_answer_carries_the_policy(page: str) -> None:
    for path in ("/", "/api/status", "/static/main.js", "/nothing"):
        policy = ask(page, path).headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self';")
        assert not re.search(r"unsafe|https?:|\*", policy)
    assert ask(page, "/api/detect", b"").headers["x-content-type-options"] == "nosniff"
    for path in ("/static/../app.py", "/static/%2e%2e/app.py", "/api/detect"):
        assert ask(page, path).status in (404, 405)


def test_the_page_names_only_files_that_are_there(page: str) -> None:
    """And nothing of another origin: every address in its files is its own."""
    static = ROOT / "eval" / "web" / "static"
    for file in static.iterdir():
        text = file.read_text()
        assert not re.search(r"https?://(?!www\.w3\.org/)", text), file.name
        for target in re.findall(r'"(/static/[^"]+)"', text):
            assert ask(page, target).status == 200, target
        for target in re.findall(r'from "\./([^"]+)"', text):
            assert (static / target).is_file(), target


def test_a_server_that_is_away_is_waited_for(repository: Path) -> None:
    http_port, grpc_port, metrics_port = free_ports(3)
    options = ServerOptions(http_port=http_port, grpc_port=grpc_port, metrics_port=metrics_port)
    with page_of(Gateway(f"127.0.0.1:{grpc_port}")) as url:
        reply = ask(url, "/api/detect", IMAGE)
        assert reply.status == 503 and reply.json["kind"] == "down"
        assert f"no Triton server answers at grpc://127.0.0.1:{grpc_port}" in reply.json["message"]
        assert ask(url, "/api/status").json["state"] == "down"
        for _ in range(2):  # the second one counts from zero again
            with TritonServer(repository, options) as running:
                running.wait_until_ready(60)
                deadline = time.monotonic() + 30  # gRPC tries again within half a second
                while ask(url, "/api/status").json["state"] != "ready":
                    assert time.monotonic() < deadline
                    time.sleep(0.1)
                replies = [ask(url, "/api/detect", IMAGE) for _ in range(3)]
                assert [reply.status for reply in replies] == [200] * 3
                assert all(reply.json["timing"]["requests"] >= 1 for reply in replies)
        assert ask(url, "/api/detect", IMAGE).json["kind"] == "down"


def test_a_server_with_another_model_says_so(server: TritonServer) -> None:
    with page_of(Gateway(server.grpc_url, model="nothing")) as url:
        status = ask(url, "/api/status").json
    assert status["state"] == "not_ready" and "has no model 'nothing'" in status["message"]
