"""What a server says of itself: the detector it serves, and what it counted for each model.

    ServedModel.from_config(config).classes     # `retinaserve build` writes them into the ensemble's parameters
    before = client.statistics()
    ...
    spent = client.statistics()["preprocess"] - before["preprocess"]
    spent.mean_batch, spent.queue_ms

Times are means for one request and are what the server itself measured; the network is not in them.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass, replace
from typing import Any

from retinaserve.training.errors import UserError
from retinaserve.training.spec import PREPROCESS


@dataclass(frozen=True)
class ServedModel:
    """The description of a served detector; a limit of 0 is one the server did not tell."""

    name: str
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    size: tuple[int, int] | None = None  # H, W of the letterboxed image
    tile: tuple[int, int] | None = None  # H, W of the tiles that it was trained on, if it was
    value_range: tuple[int, int] | None = None  # black and white of samples of more than 8 bits
    score_threshold: float = 0.0
    max_image_pixels: int = 0
    max_image_bytes: int = 0
    steps: tuple[str, ...] = ()  # the models of the ensemble, in order

    @classmethod
    def from_config(cls, config: Mapping[str, Any], *, source: str = "the server") -> "ServedModel":
        """Read a config as either protocol returns it. Raises UserError for a model that is no detector."""
        values = {key: item.get("string_value", "") for key, item in config.get("parameters", {}).items()}
        name = str(config.get("name", ""))
        try:
            classes = tuple(str(item) for item in json.loads(values["classes"]))
            ids = json.loads(values.get("category_ids") or "null") or range(1, len(classes) + 1)
            size, tile, span = (json.loads(values.get(key) or "null") for key in ("size", "tile", "value_range"))
            model = cls(
                name=name,
                classes=classes,
                category_ids=tuple(int(item) for item in ids),
                size=(int(size[0]), int(size[1])) if size else None,
                tile=(int(tile[0]), int(tile[1])) if tile else None,
                value_range=(int(span[0]), int(span[1])) if span else None,
                score_threshold=float(values.get("score_threshold") or 0),
                max_image_pixels=int(values.get("max_image_pixels") or 0),
                max_image_bytes=int(values.get("max_image_bytes") or 0),
                steps=tuple(step["model_name"] for step in config.get("ensemble_scheduling", {}).get("step", [])),
            )
        except KeyError:
            hint = "serve a repository made by `retinaserve build`"
            raise UserError(f"model {name!r} at {source} does not say its class names", hint) from None
        except (ValueError, TypeError, IndexError) as error:
            raise UserError(f"model {name!r} at {source} has a parameter that is wrong: {error}") from None
        if len(model.category_ids) != len(classes):
            raise UserError(
                f"model {name!r} at {source} has {len(classes)} classes and {len(model.category_ids)} ids"
            )
        return model


@dataclass(frozen=True)
class ModelStatistics:
    """Counts and summed nanoseconds of one model since the server started, all versions together."""

    inferences: int = 0  # images
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
    def from_server(cls, entry: Mapping[str, Any]) -> "ModelStatistics":
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

    def __sub__(self, earlier: "ModelStatistics") -> "ModelStatistics":
        return ModelStatistics(*(now - then for now, then in zip(astuple(self), astuple(earlier), strict=True)))

    def __add__(self, other: "ModelStatistics") -> "ModelStatistics":
        return ModelStatistics(*(one + two for one, two in zip(astuple(self), astuple(other), strict=True)))

    @property
    def mean_batch(self) -> float:
        """Images per execution."""
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


def whole(spent: Mapping[str, ModelStatistics], served: ServedModel) -> dict[str, ModelStatistics]:
    """Give `preprocess` on CPUs the time that is no step's.

    Triton ends a step's time with its execution, and that one's returns when another image may begin; the
    ensemble's time is whole.
    """
    if served.steps[:1] != (PREPROCESS,) or not {served.name, *served.steps} <= spent.keys():
        return dict(spent)
    steps = (spent[name] for name in served.steps)
    counted = sum(step.queue_ns + step.input_ns + step.infer_ns + step.output_ns for step in steps)
    first = spent[PREPROCESS]
    rest = max(0, spent[served.name].total_ns - counted)
    return {**spent, PREPROCESS: replace(first, infer_ns=first.infer_ns + rest)}
