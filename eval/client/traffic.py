"""What a run through a server was like: how long the answers took, and whether server or client set the pace.

    traffic = Traffic.watch(client)
    ...                                        # the run
    traffic.latency(), traffic.busy(seconds)

A step of the ensemble is busy while one of its instances executes a batch, by the server's own statistics; the
share of the run that the busiest step was busy says how far the server was the limit: 1.0 is a server that never
waited for its client. Work of other clients of the same server counts as well. It measures no network.
"""

from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

import numpy as np

from retinaserve.eval.client.client import Client
from retinaserve.eval.client.server_info import ModelStatistics

PERCENTILES = {"p50": 50, "p90": 90, "p95": 95, "p99": 99, "max": 100}


@dataclass(frozen=True)
class Traffic:
    """The seconds of each answer as they come, and what the server had counted before."""

    client: Client
    instances: Mapping[str, int]
    before: Mapping[str, ModelStatistics]
    seconds: "array[float]" = field(default_factory=lambda: array("d"))

    @classmethod
    def watch(cls, client: Client) -> Self:
        """Start: from now on every answer of the client is timed."""
        traffic = cls(client, client.identity().instances, client.statistics())
        client.on_answer(traffic.seconds.append)
        return traffic

    def latency(self) -> dict[str, float]:
        """Return percentiles of the answers, in milliseconds; nothing when there were none."""
        if not self.seconds:
            return {}
        values = np.percentile(self.seconds, list(PERCENTILES.values())) * 1000
        return {name: round(float(value), 3) for name, value in zip(PERCENTILES, values, strict=True)}

    def busy(self, wall_seconds: float) -> dict[str, float]:
        """Return the share of the time that each step's instances executed, by the server's statistics."""
        after = self.client.statistics()
        return {
            step: round((after[step] - self.before[step]).busy_ns / 1e9 / wall_seconds / self.instances[step], 4)
            for step in self.client.served.steps
        }
