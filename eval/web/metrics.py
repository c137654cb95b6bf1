"""What the page shows of a server's Prometheus metrics: images refused, requests waiting, processor and memory.

    read_metrics("http://127.0.0.1:8002/metrics")       # None where no metrics answer

Counts and times of the models come from the statistics instead, which are at the address of the requests.
"""

import urllib.request
from collections.abc import Callable, Mapping
from http.client import HTTPException

from prometheus_client.parser import text_string_to_metric_families

from retinaserve.training.errors import Exit, UserError

PORT = 8002  # Triton's own
TIMEOUT = 1.0  # s
MOST_BYTES = 4 * 1024 * 1024
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
        with opener.open(url, timeout=TIMEOUT) as answer:
            return shown(answer.read(MOST_BYTES).decode("utf-8", "replace"))
    except (OSError, ValueError, HTTPException):
        return None


def shown(text: str) -> dict[str, float]:
    """Return the shown numbers of a page in Prometheus' text format. Raises ValueError for another text."""
    values: dict[str, list[float]] = {}
    for family in text_string_to_metric_families(text):
        # The family's name, because the parser appends _total to the samples of a counter.
        values.setdefault(family.name, []).extend(sample.value for sample in family.samples)
    return {ours: join(values[name]) for ours, (name, join) in SHOWN.items() if values.get(name)}
