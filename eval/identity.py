"""Which model answered: the hashes of its files, the precision of its arithmetic, what ran it.

    client.identity().graph_sha256
    Identity.of_file(Path("model.onnx"), runtime="OpenVINO 2026.4.1")

A server tells what `retinaserve build` wrote into its config; that config is the newest version's, so after a
rollback the hashes are of the version that was built last. What nobody told is an empty string, never a guess.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from retinaserve.training.spec import METADATA_CHECKPOINT

SCALED, FULLY = "scaled", "full"  # what `build` writes of decoding; a server that does not tell decodes in full


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
            told |= {key: item.get("string_value", "") for key, item in config.get("parameters", {}).items()}
        versions: dict[str, list[str]] = {}
        for entry in statistics:
            if entry.get("name") in configs:
                versions.setdefault(str(entry["name"]), []).append(str(entry.get("version", "")))
        return cls(
            where=address,
            runtime=server,
            precision=told.get("precision", ""),
            decode=told.get("decode", ""),
            graph_sha256=told.get("graph_sha256", ""),
            checkpoint_sha256=told.get("checkpoint_sha256", ""),
            versions={name: ", ".join(sorted(served)) for name, served in versions.items()},
            instances={name: _instances(config) for name, config in configs.items()},
        )

    @classmethod
    def of_file(cls, path: Path, *, runtime: str, precision: str = "", decode: str = "") -> Self:
        """Hash a model file; an ONNX file also says which checkpoint it was made from."""
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if path.suffix == ".pth":
            return cls(str(path), runtime, precision, decode, checkpoint_sha256=digest)
        if path.suffix != ".onnx":
            return cls(str(path), runtime, precision, decode, graph_sha256=digest)
        import onnx

        properties = onnx.load(str(path), load_external_data=False).metadata_props
        made_from = next((item.value for item in properties if item.key == METADATA_CHECKPOINT), "")
        return cls(str(path), runtime, precision, decode, graph_sha256=digest, checkpoint_sha256=made_from)

    def to_dict(self) -> dict[str, Any]:
        """Return everything for JSON."""
        return asdict(self)


def _instances(config: Mapping[str, Any]) -> int:
    groups = config.get("instance_group", [])
    return sum(int(group.get("count", 1)) * max(1, len(group.get("gpus", []))) for group in groups) or 1
