"""The page's connection to a Triton server: one image's boxes with the time they took, and the server's state.

    gateway = Gateway("localhost:8001")
    await gateway.open()
    answer = await gateway.detect(jpeg)         # Answer, or an ImageError; UserError while the server is away
    status = await gateway.status()             # for JSON

Triton tells times only as sums over all requests. Images therefore go to the server one after the other, and
what the sums grew by is the time of that very image, unless somebody else's requests ended meanwhile: then it is
a mean, and `Timing.requests` says over how many. A server that went away is connected to at the next question.
"""

import asyncio
import time
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from retinaserve.eval.client.client import CONTROL_TIMEOUT, AsyncClient, Client
from retinaserve.eval.client.server_info import ModelStatistics, ServedModel, by_model, whole
from retinaserve.eval.client.transport import Endpoint, Protocols, ServerError, TlsFiles, Transport
from retinaserve.eval.tiled import TiledDetector, Tiling
from retinaserve.training.detections import Detections, ImageError
from retinaserve.training.errors import Exit, UserError
from retinaserve.training.spec import DETECTOR

COUNTED_WITHIN, COUNTED_PAUSE = 0.1, 0.002  # s; Triton counts a request just after it has answered it
FRESH = 0.5  # s; several open pages ask the server no more often than this
METRICS_PORT = 8002  # Triton's own, of its metrics
METRICS_TIMEOUT = 1.0  # s
MOST_METRICS = 4 * 1024 * 1024
# The page's name of a number: Triton's, and how several samples of it become one.
SHOWN: Mapping[str, tuple[str, Callable[[list[float]], float]]] = {
    "bad_images": ("retinaserve_bad_images", sum),
    "pending": ("nv_inference_pending_request_count", max),  # of an ensemble and its steps, the one most asked
    "cpu_utilization": ("nv_cpu_utilization", max),
    "memory_used": ("nv_cpu_memory_used_bytes", max),
    "memory_total": ("nv_cpu_memory_total_bytes", max),
    "gpu_utilization": ("nv_gpu_utilization", max),
    "gpu_memory_used": ("nv_gpu_memory_used_bytes", sum),
    "gpu_memory_total": ("nv_gpu_memory_total_bytes", sum),
}


@dataclass(frozen=True)
class Step:
    """The milliseconds one model of the ensemble took: waiting in its queue, and at work."""

    name: str
    queue_ms: float
    compute_ms: float


@dataclass(frozen=True)
class Timing:
    """Where an image's time went: `server_ms` is Triton's own total, `call_ms` with the way to it and back."""

    steps: tuple[Step, ...]
    server_ms: float
    call_ms: float
    requests: int  # 1: of this image alone; more: the mean over so many
    wait_ms: float  # before that, behind the page's other images


@dataclass(frozen=True)
class Answer:
    """An image's detections, what the server said of itself, and the time; None where it could not be told."""

    detections: Detections
    served: ServedModel
    timing: Timing | None


class Gateway:
    """Holds one server and one model; may be opened before the server is there."""

    def __init__(
        self,
        server: str,
        *,
        protocol: Protocols | None = None,
        model: str = DETECTOR,
        timeout: float = 60.0,
        metrics: str = "",
        tls: TlsFiles | None = None,
    ) -> None:
        """Name the server; `metrics` is the address of its Prometheus page. Raises UserError for a wrong one."""
        self.endpoint = Endpoint.parse(server, protocol, tls=tls)
        self.metrics = metrics
        self._model, self._timeout, self._tls = model, timeout, tls
        self._client: AsyncClient | None = None
        self._left: list[AsyncClient] = []
        self._counted: dict[str, ModelStatistics] = {}
        self._status: tuple[float, dict[str, Any]] = (-FRESH, {})

    async def open(self) -> None:
        """Make what belongs to the running event loop; asks the server nothing."""
        self._alone, self._connecting, self._looking = asyncio.Lock(), asyncio.Lock(), asyncio.Lock()
        self._transport: Transport = Transport(self.endpoint, concurrency=8)

    async def close(self) -> None:
        """Close every connection."""
        self._forget()
        await self._close_left()
        await self._transport.close()

    async def client(self) -> AsyncClient:
        """Return the connected client. Raises UserError while the server or its model is not ready."""
        async with self._connecting:
            if self._client is None:
                client = AsyncClient(str(self.endpoint), model=self._model, timeout=self._timeout, tls=self._tls)
                self._client = await client.__aenter__()
            return self._client

    async def detect(self, image: bytes) -> Answer | ImageError:
        """Return one encoded image's answer. Raises UserError while the server is away."""
        asked = time.perf_counter()
        async with self._alone:
            wait_ms = (time.perf_counter() - asked) * 1e3
            await self._close_left()
            before = await self._statistics()
            client = await self.client()
            start = time.perf_counter()
            try:
                found = await client.answer(image)
            except UserError:
                self._forget()
                raise
            call_ms = (time.perf_counter() - start) * 1e3
            if isinstance(found, ImageError):
                return found
            return Answer(found, client.served, await self._timing(client.served, before, call_ms, wait_ms))

    async def detect_tiled(self, image: Path, tiling: Tiling) -> Answer | ImageError:
        """Return the answer of an image of any size, cut into tiles. Raises UserError while the server is away."""
        async with self._alone:
            served = (await self.client()).served
            try:
                found = await asyncio.to_thread(self._tiled, image, tiling)
            except UserError:
                self._forget()
                raise
            return found if isinstance(found, ImageError) else Answer(found, served, None)

    def _tiled(self, image: Path, tiling: Tiling) -> Detections | ImageError:
        with Client(str(self.endpoint), model=self._model, timeout=self._timeout, tls=self._tls) as client:
            (answer,) = TiledDetector(client, tiling).predict_many([image])
            return answer

    async def status(self) -> dict[str, Any]:
        """Return the server's state, model and statistics for JSON; never raises for a server that is away."""
        async with self._looking:
            when, status = self._status
            if time.monotonic() - when >= FRESH:
                status = {"server": str(self.endpoint), **await self._look()}
                self._status = (time.monotonic(), status)
            return status

    async def _look(self) -> dict[str, Any]:
        try:
            statistics = await self._statistics()
            client = await self.client()
        except UserError as error:
            # A server that answers at all is starting, or it serves something else.
            live = await self._optional(self._transport.live(timeout=CONTROL_TIMEOUT), False)
            state = "not_ready" if live else "down"
            return {"state": state, "message": error.message, "hint": error.hint}
        version = await self._optional(self._transport.version(timeout=CONTROL_TIMEOUT), "")
        entries = await self._index()
        indexed = {entry["name"] for entry in entries}
        entries += [{"name": name} for name in statistics if name not in indexed]
        return {
            "state": "ready",
            "model": served_json(client.served),
            "version": version.rpartition(" ")[2],  # without the server's name
            "models": [model_json(entry, whole(statistics, client.served)) for entry in entries],
            "metrics": await asyncio.to_thread(read_metrics, self.metrics) if self.metrics else None,
            "metrics_at": self.metrics,
        }

    async def _index(self) -> list[dict[str, Any]]:
        """Return name, version and state of each model; the index itself is for administrators on most servers."""
        index: list[dict[str, Any]] = await self._optional(self._transport.index(timeout=CONTROL_TIMEOUT), [])
        if index:
            return index
        for entry in await self._optional(self._transport.statistics(timeout=CONTROL_TIMEOUT), []):
            name = str(entry["name"])
            ready = await self._optional(self._transport.ready(name, timeout=CONTROL_TIMEOUT), False)
            state = "READY" if ready else "UNAVAILABLE"
            index.append({"name": name, "version": entry.get("version", ""), "state": state})
        return index

    async def _statistics(self) -> dict[str, ModelStatistics]:
        """Ask what the server counted. Raises UserError when it is away."""
        try:
            counted = by_model(await self._transport.statistics(timeout=CONTROL_TIMEOUT))
        except ServerError:
            self._forget()
            await self.client()  # says in words what is the matter
            raise UserError(f"{self.endpoint} gives no statistics") from None
        before = self._counted.items()
        if any(counted.get(name, ModelStatistics()).requests < was.requests for name, was in before):
            self._forget()  # it was started again, perhaps with other classes
        self._counted = counted
        return counted

    async def _timing(
        self, served: ServedModel, before: Mapping[str, ModelStatistics], call_ms: float, wait_ms: float
    ) -> Timing | None:
        names = (served.name, *served.steps)
        deadline = time.monotonic() + COUNTED_WITHIN
        while time.monotonic() < deadline:
            try:
                after = await self._statistics()
            except UserError:
                return None  # it answered and is gone: the boxes are still good
            spent = {name: after[name] - before.get(name, ModelStatistics()) for name in names if name in after}
            if len(spent) == len(names) and all(each.requests > 0 for each in spent.values()):
                spent = whole(spent, served)
                steps = tuple(
                    Step(name, round(spent[name].queue_ms, 3), round(spent[name].compute_ms, 3))
                    for name in served.steps
                )
                requests = max(each.requests for each in spent.values())
                server_ms = round(spent[served.name].total_ms, 3)
                return Timing(steps, server_ms, round(call_ms, 3), requests, round(wait_ms, 3))
            await asyncio.sleep(COUNTED_PAUSE)
        return None

    async def _optional(self, call: Any, missing: Any) -> Any:
        """Return what a call answers that some servers forbid, or `missing`."""
        try:
            return await call
        except ServerError:
            return missing

    def _forget(self) -> None:
        """Connect anew at the next question; what is under way keeps its connection until then."""
        self._counted = {}
        if self._client is not None:
            self._left.append(self._client)
        self._client = None

    async def _close_left(self) -> None:
        while self._left:
            await self._left.pop().__aexit__()


def served_json(served: ServedModel) -> dict[str, Any]:
    """Return the served detector for JSON, limits of 0 as None."""
    return {
        "name": served.name,
        "classes": served.classes,
        "category_ids": served.category_ids,
        "size": served.size,
        "score_threshold": served.score_threshold,
        "max_image_bytes": served.max_image_bytes or None,
        "max_image_pixels": served.max_image_pixels or None,
    }


def model_json(entry: Mapping[str, Any], statistics: Mapping[str, ModelStatistics]) -> dict[str, Any]:
    """Return one line of the server's table for JSON: the repository's entry, and sums to make means of."""
    name = str(entry["name"])
    counted = statistics.get(name, ModelStatistics())
    return {
        "name": name,
        "version": str(entry.get("version", "")),
        "state": str(entry.get("state", "")),
        "reason": str(entry.get("reason", "")),
        "inferences": counted.inferences,
        "executions": counted.executions,
        "requests": counted.requests,
        "failed": counted.failed,
        "queue_ms": counted.queue_ns / 1e6,
        "compute_ms": (counted.input_ns + counted.infer_ns + counted.output_ns) / 1e6,
        "total_ms": counted.total_ns / 1e6,
    }


def metrics_url(place: str) -> str:
    """Return the address that HOST:PORT or a URL means. Raises UserError for another scheme."""
    url = place if "://" in place else f"http://{place}"
    if not url.startswith(("http://", "https://")):
        raise UserError(f"metrics {place!r} is not an address", "HOST:PORT or http://HOST:PORT", code=Exit.USAGE)
    return url if url.split("://", 1)[1].partition("/")[2] else f"{url.rstrip('/')}/metrics"


def read_metrics(url: str) -> dict[str, float] | None:
    """Return what the page shows of the metrics, as far as they are there; None where no metrics answer."""
    try:
        # Straight to the server: a proxy of the desktop seldom reaches it.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(url, timeout=METRICS_TIMEOUT) as answer:
            return shown_metrics(answer.read(MOST_METRICS).decode("utf-8", "replace"))
    except (OSError, ValueError, HTTPException):
        return None


def shown_metrics(text: str) -> dict[str, float]:
    """Return the shown numbers of a page in Prometheus' text format. Raises ValueError for another text."""
    values: dict[str, list[float]] = {}
    for family in text_string_to_metric_families(text):
        # The family's name, because the parser appends _total to the samples of a counter.
        values.setdefault(family.name, []).extend(sample.value for sample in family.samples)
    return {ours: join(values[name]) for ours, (name, join) in SHOWN.items() if values.get(name)}
