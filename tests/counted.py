"""What a server counted, once it has: Triton counts a step's execution after its answers went out."""

import time

from retinaserve.eval.client.client import Client
from retinaserve.eval.client.server_info import ModelStatistics

QUIET = 0.3  # seconds without a change


def counted(client: Client, timeout: float = 20.0) -> dict[str, ModelStatistics]:
    """Return the statistics when they have stopped changing; for a server that is asked nothing else."""
    deadline = time.monotonic() + timeout
    found, since = client.statistics(), time.monotonic()
    while time.monotonic() < min(since + QUIET, deadline):
        time.sleep(0.02)
        latest = client.statistics()
        if latest != found:
            found, since = latest, time.monotonic()
    return found
