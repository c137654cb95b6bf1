"""Triton's model configuration as a protobuf message: read, written, and its tensors compared.

    config = read_config(Path("repository/detector/config.pbtxt"))
    write_config(path, config)

The schema is that of tritonclient, which is as old as the embedded server (2.51), and the fields that came later
and that we set. Reading goes by it, so that what Triton would refuse fails here.
"""

from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from tritonclient.grpc import model_config_pb2
from tritonclient.utils import triton_to_np_dtype

from retinaserve.training.errors import UserError
from retinaserve.training.files import write_text
from retinaserve.training.spec import Tensor

UINT32 = descriptor_pb2.FieldDescriptorProto.TYPE_UINT32
OPTIONAL = descriptor_pb2.FieldDescriptorProto.LABEL_OPTIONAL
# Message, field, number, type: from model_config.proto of triton-inference-server/common.
LATER_FIELDS = (("ModelEnsembling", "max_inflight_requests", 2, UINT32),)


def _model_config() -> Any:
    """Return the class ModelConfig of tritonclient's schema with LATER_FIELDS in it."""
    schema = descriptor_pb2.FileDescriptorProto()
    model_config_pb2.DESCRIPTOR.CopyToProto(schema)
    messages = {message.name: message for message in schema.message_type}
    for message, name, number, kind in LATER_FIELDS:
        if name not in {field.name for field in messages[message].field}:  # a newer tritonclient has it
            messages[message].field.add(name=name, number=number, type=kind, label=OPTIONAL, json_name=name)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(schema)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{schema.package}.ModelConfig"))


ModelConfig = _model_config()


def read_config(path: Path) -> Any:
    """Parse a config.pbtxt with Triton's own schema. Raises UserError with the line that is wrong."""
    try:
        return text_format.Parse(path.read_text(), ModelConfig())
    except FileNotFoundError:
        raise UserError(f"{path}: no such file", "a Triton repository has one config a model") from None
    except text_format.ParseError as error:
        raise UserError(f"{path}: {error}") from None


def write_config(path: Path, config: Any) -> None:
    """Write a config as text, as Triton reads it; a server that looks meanwhile sees the old one."""
    write_text(path, text_format.MessageToString(config, as_utf8=True))


def tensor_of(tensor: Any) -> Tensor:
    """Return an input or output of a config as a Tensor."""
    name = model_config_pb2.DataType.Name(tensor.data_type).removeprefix("TYPE_")
    return Tensor(np.dtype(triton_to_np_dtype(name)).name, tuple(tensor.dims))
