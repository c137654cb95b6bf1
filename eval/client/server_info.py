"""What a server says of itself: the detector it serves, which files it was made from, and what it counted.

    ServedModel.from_config(config).classes     # `retinaserve build` writes them into the ensemble's parameters
    before = client.statistics()
    ...
    spent = client.statistics()["preprocess"] - before["preprocess"]
    spent.mean_batch, spent.queue_ms
    Identity.of_file(Path("model.onnx"), runtime="OpenVINO 2026.4.1")       # client.identity() of a server's

Times are means for one request and are what the server itself measured; the network is not in them. The hashes are
those that `retinaserve build` wrote into a config; that is the newest version's, so after a rollback they are of
the version that was built last. What nobody told is an empty string, never a guess.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, astuple, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from retinaserve.training.errors import UserError
from retinaserve.training.files import sha256
from retinaserve.training.spec import METADATA_CHECKPOINT, PREPROCESS

SCALED, FULLY = "scaled", "full"  # what `build` writes of decoding; a server that does not tell decodes in full


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
        values = parameters_of(config)
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


def _mean_ms(*names: str) -> Any:
    def mean(statistics: "ModelStatistics") -> float:
        nanoseconds = sum(getattr(statistics, name) for name in names)
        return nanoseconds / statistics.requests / 1e6 if statistics.requests else 0.0

    return property(mean)


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

    # Means of a request, in milliseconds.
    queue_ms = _mean_ms("queue_ns")  # waiting in the model's queue
    input_ms = _mean_ms("input_ns")  # until its input tensors were gathered
    infer_ms = _mean_ms("infer_ns")  # in the execution that it was part of
    output_ms = _mean_ms("output_ns")  # until its outputs were handed on
    compute_ms = _mean_ms("input_ns", "infer_ns", "output_ns")
    total_ms = _mean_ms("total_ns")


def parameters_of(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the parameters of a config."""
    return {key: item.get("string_value", "") for key, item in config.get("parameters", {}).items()}


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


@dataclass(frozen=True)
class Identity:
    """A model where it runs."""

    where: str  # an address, or a file
    runtime: str  # "triton 2.51.0", "OpenVINO 2026.4.1"
    precision: str = ""
    decode: str = ""  # of JPEGs: no finer than is seen, or all pixels
    graph_sha256: str = ""
    checkpoint_sha256: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)  # those served, by model
    instances: Mapping[str, int] = field(default_factory=dict)  # that execute at the same time, by model

    @classmethod
    def of_server(
        cls,
        configs: Mapping[str, Mapping[str, Any]],
        statistics: Iterable[Mapping[str, Any]],
        *,
        server: str,
        address: str,
    ) -> Self:
        """Read it from the configs of the ensemble and its steps, and the server's statistics."""
        told: dict[str, str] = {}
        for config in configs.values():
            told |= parameters_of(config)
        versions: dict[str, list[str]] = {}
        for entry in statistics:
            if entry.get("name") in configs:
                versions.setdefault(str(entry["name"]), []).append(str(entry.get("version", "")))
        return cls(
            where=address,
            runtime=server,
            **{name: told.get(name, "") for name in ("precision", "decode", "graph_sha256", "checkpoint_sha256")},
            versions={name: ", ".join(sorted(served)) for name, served in versions.items()},
            instances={name: _instances(config) for name, config in configs.items()},
        )

    @classmethod
    def of_file(cls, path: Path, *, runtime: str, precision: str = "", decode: str = "") -> Self:
        """Hash a model file; an ONNX file also says which checkpoint it was made from."""
        graph, checkpoint = ("", sha256(path)) if path.suffix == ".pth" else (sha256(path), "")
        if path.suffix == ".onnx":
            import onnx

            properties = onnx.load(str(path), load_external_data=False).metadata_props
            checkpoint = next((item.value for item in properties if item.key == METADATA_CHECKPOINT), "")
        return cls(str(path), runtime, precision, decode, graph, checkpoint)

    def to_dict(self) -> dict[str, Any]:
        """Return everything for JSON."""
        return asdict(self)


def _instances(config: Mapping[str, Any]) -> int:
    groups = config.get("instance_group", [])
    return sum(int(group.get("count", 1)) * max(1, len(group.get("gpus", []))) for group in groups) or 1
