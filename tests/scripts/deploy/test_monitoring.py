"""Rules and dashboard: every query has an answer on a live server, and the alerts fire where they should."""

import asyncio
import json
import re
import shutil
import subprocess
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar

import pytest
import yaml

from retinaserve.eval.client.client import Client
from retinaserve.eval.client.transport import Endpoint, ServerError, Transport
from retinaserve.scripts.server.triton import ServerOptions, TritonServer
from tests.images import checker, encode
from tests.scripts.deploy.promql import Scrape, problems

ROOT = Path(__file__).parents[3]
MONITORING = ROOT / "scripts" / "deploy" / "monitoring"
RULES = [
    rule for group in yaml.safe_load((MONITORING / "rules.yml").read_text())["groups"] for rule in group["rules"]
]
DASHBOARD = json.loads((MONITORING / "grafana" / "dashboards" / "retinaserve.json").read_text())
RECORDED = [rule["record"] for rule in RULES if "record" in rule]
QUERIES = {
    **{rule.get("record") or rule["alert"]: rule["expr"] for rule in RULES},
    **{
        f"{panel['title']} {target['refId']}": target["expr"]
        for panel in DASHBOARD["panels"]
        for target in panel["targets"]
    },
}


def scrape(server: TritonServer) -> Scrape:
    """Triton opens its metrics after its HTTP: a server just ready may not have them yet."""
    deadline = time.monotonic() + 20
    while True:
        try:
            with urllib.request.urlopen(server.metrics_url, timeout=10) as answer:
                return Scrape.parse(answer.read().decode())
        except OSError:
            if server.process.poll() is not None or time.monotonic() > deadline:
                raise
        time.sleep(0.05)


@pytest.fixture(scope="module")
def live(server: TritonServer) -> Scrape:
    """The metrics after traffic, good and bad."""
    with Client(server.grpc_url) as client:
        list(client.predict_many([encode(checker(300, 200)), b"no image"] * 4))
    return scrape(server)


@pytest.mark.server
@pytest.mark.parametrize("name", QUERIES)
def test_every_query_has_an_answer(live: Scrape, name: str) -> None:
    assert problems(QUERIES[name], live, recorded=RECORDED) == []


WRONG_QUERIES = {
    "empty": ("", "does not parse"),
    "rate of an instant": ("rate(nv_inference_count)", "does not parse"),
    # Found in dashboards of Triton's own Helm charts, and in no server since.
    "a metric of old": ("nv_inference_load_ratio_bucket", "no metric nv_inference_load_ratio_bucket"),
    "unknown label": ('nv_inference_count{stage="a"}', "no label stage"),
    "unmatched pattern": ('nv_inference_count{model=~"yolo.*"}', "matches 'yolo.*'"),
    "group by nothing": ("sum by (gpu) (nv_inference_count)", "no label gpu"),
}


@pytest.mark.server
@pytest.mark.parametrize("case", WRONG_QUERIES)
def test_the_lint_notices(live: Scrape, case: str) -> None:
    query, words = WRONG_QUERIES[case]
    found = problems(query, live, recorded=RECORDED)
    assert any(words in problem for problem in found), found


def test_the_dashboard_is_whole() -> None:
    panels: list[dict[str, Any]] = DASHBOARD["panels"]
    assert len(panels) >= 12 and len({panel["id"] for panel in panels}) == len(panels)
    boxes = [panel["gridPos"] for panel in panels]
    cells = [(x, y) for b in boxes for x in range(b["x"], b["x"] + b["w"]) for y in range(b["y"], b["y"] + b["h"])]
    assert len(cells) == len(set(cells)), "panels overlap"
    assert max(x for x, _ in cells) < 24, "Grafana's grid has 24 columns"
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps([panels, DASHBOARD["templating"]])))
    assert used - {"__all"} == variables


@pytest.mark.server
def test_refusals_are_what_the_rule_makes_of_tritons_counters(narrow: TritonServer) -> None:
    """Triton counts a full queue's refusals nowhere; the record derives them, and here is the truth beside it."""

    async def overload() -> tuple[int, int]:
        transport = Transport(Endpoint.parse(narrow.grpc_url), concurrency=64)
        images = [encode(checker(1000, 800))] * 60 + [b"no image"] * 3
        statuses = []

        async def ask(image: bytes) -> None:
            try:
                await transport.infer("detector", image, timeout=30)
            except ServerError as error:
                statuses.append(error.status)

        try:
            await asyncio.gather(*(ask(image) for image in images[:60]))
            for image in images[60:]:
                await ask(image)
        finally:
            await transport.close()
        return statuses.count("unavailable"), statuses.count("invalid")

    before = scrape(narrow)
    refused, bad = asyncio.run(overload())
    after = scrape(narrow)
    assert refused > 0 and bad == 3

    def grown(name: str, **labels: str) -> float:
        return after.total(name, **labels) - before.total(name, **labels)

    failed = grown("nv_inference_request_failure", model="detector", reason="OTHER")
    assert failed / 2 - grown("retinaserve_bad_images") == refused
    assert grown("retinaserve_bad_images") == bad
    assert grown("nv_inference_request_failure", model="preprocess") == 0, (
        "Triton counts them itself now: use that"
    )


class Collector(BaseHTTPRequestHandler):
    """What an OpenTelemetry collector does with spans in OTLP over HTTP, as far as a test needs it: keep them."""

    spans: ClassVar[list[dict[str, Any]]] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        for resource in body["resourceSpans"]:
            for scope in resource["scopeSpans"]:
                self.spans.extend(scope["spans"])
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.server
def test_a_request_leaves_a_trace_with_its_steps(repository: Path) -> None:
    with HTTPServer(("127.0.0.1", 0), Collector) as collector:
        thread = Thread(target=collector.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        trace = (
            "mode=opentelemetry",
            f"opentelemetry,url=http://127.0.0.1:{collector.server_port}/v1/traces",
            "opentelemetry,resource=service.name=retinaserve",
            "opentelemetry,bsp_schedule_delay=100",
            "rate=1",
            "level=TIMESTAMPS",
        )
        options = ServerOptions.free_ports(trace=trace)
        try:
            with TritonServer(repository, options) as server:
                server.wait_until_ready(60)
                with Client(server.grpc_url) as client:
                    client.predict([encode(checker(300, 200))])
                deadline = time.monotonic() + 20
                while not any(span["name"] == "InferRequest" for span in Collector.spans):
                    assert time.monotonic() < deadline, Collector.spans
                    time.sleep(0.05)
        finally:
            collector.shutdown()
            thread.join()
    by_id = {span["spanId"]: span for span in Collector.spans}
    parents = {span["name"]: by_id.get(span.get("parentSpanId"), {}).get("name") for span in Collector.spans}
    assert parents["detector"] == "InferRequest"
    assert parents["preprocess"] == "detector" and parents["retinanet"] == "detector"
    text = json.dumps(Collector.spans)
    assert len(text) < 50_000 and "image_bytes" not in text, "times alone, no images"


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not installed; it comes with Prometheus")
@pytest.mark.parametrize("command", [["check", "rules", "rules.yml"], ["test", "rules", "rules_test.yml"]])
def test_promtool(command: list[str]) -> None:
    result = subprocess.run(["promtool", *command], cwd=MONITORING, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_every_alert_has_its_written_series() -> None:
    tests = yaml.safe_load((MONITORING / "rules_test.yml").read_text())["tests"]
    tested = {case["alertname"] for test in tests for case in test.get("alert_rule_test", ())}
    assert tested == {rule["alert"] for rule in RULES if "alert" in rule}


def test_every_alert_says_what_to_do() -> None:
    page = (ROOT / "docs" / "operations.md").read_text().lower()
    for rule in RULES:
        if "alert" in rule:
            heading = rule["annotations"]["action"].removeprefix("docs/operations.md: ")
            assert f"\n### {heading.lower()}\n" in page, heading
