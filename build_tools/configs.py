"""The three `config.pbtxt` of a profile, specialised for one graph and checked against it.

    configs = specialise(read_signature(path), "cpu", BuildOptions(), picture_bytes=20_000)

They are read and changed through Triton's own protobuf classes, so that what Triton would refuse fails here, and
nothing is left to the server's auto-completion.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

import model_repository
from build_tools.preprocess import MAX_BYTES, MAX_PIXELS
from build_tools.signature import Signature, Tensor
from training import spec as contract
from training.errors import UserError

MODELS = (contract.PREPROCESS, contract.RETINANET, contract.DETECTOR)
TEMPLATES = Path(model_repository.__path__[0])


@dataclass(frozen=True)
class BuildOptions:
    """What the deployer chooses; everything else comes from the model."""

    precision: str = "f32"  # what the CPU profile computes in where the graph is float: f32 or bf16
    max_batch: int = 16
    max_image_bytes: int = MAX_BYTES
    max_image_pixels: int = MAX_PIXELS


def specialise(signature: Signature, profile: str, options: BuildOptions, *, picture_bytes: int) -> dict[str, Any]:
    """Return the profile's configs (ModelConfig by model name) made for one graph, and checked against it.

    `picture_bytes` is the length of the encoded warm-up picture, which Triton wants as a dimension.
    """
    spec = signature.spec
    limits = {
        "max_image_bytes": str(options.max_image_bytes),
        "max_image_pixels": str(options.max_image_pixels),
    }
    parameters = {
        contract.PREPROCESS: {"size": json.dumps(spec.size), "fill": json.dumps(spec.fill), **limits},
        contract.RETINANET: {"precision": options.precision, "graph": signature.precision},
        contract.DETECTOR: {
            "classes": json.dumps(spec.classes, ensure_ascii=False),
            "category_ids": json.dumps(spec.category_ids),
            "size": json.dumps(spec.size),
            "score_threshold": repr(spec.score_threshold),
            **signature.identity,
            **limits,
        },
    }
    picture = Tensor("TYPE_UINT8", (picture_bytes,))
    tensors = {**signature.inputs, **signature.outputs}
    configs = {}
    for name in MODELS:
        config = read_config(TEMPLATES / profile / name / "config.pbtxt")
        config.max_batch_size = options.max_batch
        for tensor in (*config.input, *config.output):
            if tensor.name in tensors:
                tensor.dims[:] = tensors[tensor.name].dims
        for sample in config.model_warmup:
            for key, value in sample.inputs.items():
                value.dims[:] = (picture if key == contract.IMAGE_BYTES else tensors[key]).dims
        for key, text in parameters[name].items():
            config.parameters[key].string_value = text
        configs[name] = config
    check_configs(configs, signature)
    return configs


def check_configs(configs: dict[str, Any], signature: Signature) -> None:
    """Raise UserError unless the configs agree with the graph, each other and the ensemble's map."""
    encoded = {contract.IMAGE_BYTES: Tensor("TYPE_UINT8", (-1,))}
    letterbox = {contract.LETTERBOX: signature.inputs[contract.LETTERBOX]}
    expected = {
        contract.PREPROCESS: (encoded, signature.inputs),
        contract.RETINANET: (signature.inputs, signature.outputs),
        contract.DETECTOR: (encoded, {**signature.outputs, **letterbox}),
    }
    for name, (inputs, outputs) in expected.items():
        for kind, wanted in (("input", inputs), ("output", outputs)):
            found = {tensor.name: _tensor(tensor) for tensor in getattr(configs[name], kind)}
            if found != wanted:
                raise UserError(f"{name}/config.pbtxt: its {kind}s are {found}, the graph's are {wanted}")
    for step in configs[contract.DETECTOR].ensemble_scheduling.step:
        if step.model_name not in configs:
            raise UserError(f"detector/config.pbtxt: step {step.model_name!r} is not in the repository")
        model = configs[step.model_name]
        for kind in ("input", "output"):
            names = {tensor.name for tensor in getattr(model, kind)}
            mapped = set(getattr(step, f"{kind}_map"))
            if mapped != names:
                raise UserError(
                    f"detector/config.pbtxt: step {step.model_name} maps {kind}s {sorted(mapped)}, "
                    f"the model has {sorted(names)}"
                )


def read_config(path: Path) -> Any:
    """Parse a config.pbtxt with Triton's own schema. Raises UserError with the line that is wrong."""
    try:
        return text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())
    except FileNotFoundError:
        raise UserError(f"{path}: no such file", "a Triton repository has one config a model") from None
    except text_format.ParseError as error:
        raise UserError(f"{path}: {error}") from None


def _tensor(tensor: Any) -> Tensor:
    return Tensor(model_config_pb2.DataType.Name(tensor.data_type), tuple(tensor.dims))


def write_config(path: Path, config: Any) -> None:
    """Write a config as text, as Triton reads it."""
    path.write_text(text_format.MessageToString(config, as_utf8=True))
