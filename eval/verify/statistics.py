"""What a Triton server counted for each model, and the difference between two looks at it.

    before = client.statistics()
    ...
    spent = client.statistics()["preprocess"] - before["preprocess"]
    spent.mean_batch, spent.queue_ms

Times are means for one request and are what the server itself measured; the network is not in them.
"""

from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass
from typing import Any, Self


@dataclass(frozen=True)
class ModelStatistics:
    """Counts and summed nanoseconds of one model since the server started, all versions together."""

    inferences: int = 0  # pictures
    executions: int = 0  # batches
    requests: int = 0  # answered well
    failed: int = 0
    queue_ns: int = 0
    input_ns: int = 0
    infer_ns: int = 0
    output_ns: int = 0
    total_ns: int = 0  # from a request's arrival to its answer, of those answered well
    busy_ns: int = 0  # of executions, so that a batch counts once

    @classmethod
    def from_server(cls, entry: Mapping[str, Any]) -> Self:
        """Read one entry of model_stats; gRPC spells integers as strings and leaves out zeros."""
        times = entry.get("inference_stats", {})
        batches = entry.get("batch_stats", [])

        def number(key: str, field: str) -> int:
            return int(times.get(key, {}).get(field, 0))

        return cls(
            inferences=int(entry.get("inference_count", 0)),
            executions=int(entry.get("execution_count", 0)),
            requests=number("success", "count"),
            failed=number("fail", "count"),
            queue_ns=number("queue", "ns"),
            input_ns=number("compute_input", "ns"),
            infer_ns=number("compute_infer", "ns"),
            output_ns=number("compute_output", "ns"),
            total_ns=number("success", "ns"),
            busy_ns=sum(
                int(batch.get(key, {}).get("ns", 0))
                for batch in batches
                for key in ("compute_input", "compute_infer", "compute_output")
            ),
        )

    def __sub__(self, earlier: Self) -> Self:
        return type(self)(*(now - then for now, then in zip(astuple(self), astuple(earlier), strict=True)))

    def __add__(self, other: Self) -> Self:
        return type(self)(*(one + two for one, two in zip(astuple(self), astuple(other), strict=True)))

    @property
    def mean_batch(self) -> float:
        """Pictures an execution."""
        return self.inferences / self.executions if self.executions else 0.0

    @property
    def queue_ms(self) -> float:
        """Mean wait of a request in the model's queue."""
        return self._mean_ms(self.queue_ns)

    @property
    def input_ms(self) -> float:
        """Mean time to gather a request's input tensors."""
        return self._mean_ms(self.input_ns)

    @property
    def infer_ms(self) -> float:
        """Mean time of the execution a request was part of."""
        return self._mean_ms(self.infer_ns)

    @property
    def output_ms(self) -> float:
        """Mean time to hand a request's outputs on."""
        return self._mean_ms(self.output_ns)

    @property
    def compute_ms(self) -> float:
        """Mean time a request was worked on, its tensors moved included."""
        return self._mean_ms(self.input_ns + self.infer_ns + self.output_ns)

    @property
    def total_ms(self) -> float:
        """Mean time from a request's arrival to its answer."""
        return self._mean_ms(self.total_ns)

    def _mean_ms(self, nanoseconds: int) -> float:
        return nanoseconds / self.requests / 1e6 if self.requests else 0.0


def by_model(entries: Iterable[Mapping[str, Any]]) -> dict[str, ModelStatistics]:
    """Return the statistics of each model by its name, its versions added up."""
    models: dict[str, ModelStatistics] = {}
    for entry in entries:
        name = str(entry["name"])
        models[name] = models.get(name, ModelStatistics()) + ModelStatistics.from_server(entry)
    return models
