"""Loads a plugin library into TensorRT for RTX's registry and prints as JSON what happens; see test_adapter.py.

    python registry_probe.py LIBRARY HARNESS < cases.json      # a case: [plugin, {field: [type, values]}]

It runs in whatever interpreter has tensorrt_rtx, whose other packages differ from the project's, and imports
nothing of ours.
"""

import ctypes
import json
import sys
from ctypes import c_char_p, c_int32, c_size_t, c_void_p
from typing import Any

import numpy as np
import tensorrt_rtx as trt

NUMPY = {"FLOAT32": np.float32, "FLOAT64": np.float64, "INT32": np.int32, "INT64": np.int64}


class Log(trt.ILogger):  # type: ignore[misc]
    """Keeps errors."""

    def __init__(self) -> None:
        super().__init__()
        self.errors: list[str] = []

    def log(self, severity: Any, message: str) -> None:
        """Called by TensorRT."""
        if severity == trt.ILogger.ERROR:
            self.errors.append(message)


def collection(fields: dict[str, tuple[str, list[float]]]) -> Any:
    """Return the fields as TensorRT takes them."""
    return trt.PluginFieldCollection(
        [
            trt.PluginField(name, np.array(values, NUMPY[kind]), getattr(trt.PluginFieldType, kind))
            for name, (kind, values) in fields.items()
        ]
    )


class Field(ctypes.Structure):
    """nvinfer1::PluginField."""

    _fields_ = (("name", c_char_p), ("data", c_void_p), ("type", c_int32), ("length", c_int32))


def round_trip(plugin: str, fields: dict[str, tuple[str, list[float]]]) -> str:
    """Serialise a plugin of the registry and create it again; return what is wrong, or nothing.

    The Python API does not show a C++ plugin's serialised fields, so the harness asks the registry itself.
    """
    tensorrt = ctypes.CDLL(trt.tensorrt_rtx.__file__)
    tensorrt.getPluginRegistry.restype = c_void_p
    arrays = {name: np.array(values, NUMPY[kind]) for name, (kind, values) in fields.items()}
    given = (Field * len(fields))(
        *(
            Field(
                name.encode(), arrays[name].ctypes.data, int(getattr(trt.PluginFieldType, kind)), arrays[name].size
            )
            for name, (kind, _) in fields.items()
        )
    )
    message = ctypes.create_string_buffer(1000)
    harness = ctypes.CDLL(sys.argv[2])
    harness.harnessRegistry.argtypes = (c_void_p, c_char_p, c_void_p, c_int32, c_char_p, c_size_t)
    harness.harnessRegistry(tensorrt.getPluginRegistry(), plugin.encode(), given, len(fields), message, 1000)
    return message.value.decode()


def main() -> None:
    """Run the cases of stdin."""
    log = Log()
    runtime = trt.Runtime(log)  # the registry logs to the logger of the first object made
    registry = trt.get_plugin_registry()
    before = len(registry.all_creators)
    registry.load_library(sys.argv[1])
    found = registry.all_creators[before:]
    report: dict[str, Any] = {
        "creators": [
            [
                each.name,
                each.plugin_version,
                each.plugin_namespace,
                {f.name: f.type.name for f in each.field_names},
            ]
            for each in found
        ],
        "cases": [],
    }
    for plugin, fields in json.load(sys.stdin):
        log.errors.clear()
        creator = registry.get_creator(plugin, "1", "")
        made = creator.create_plugin("any", collection(fields), trt.TensorRTPhase.BUILD)
        case = {"created": made is not None, "errors": list(log.errors)}
        if made is not None:
            case["round_trip"] = round_trip(plugin, fields)
        report["cases"].append(case)
    print(json.dumps(report))
    del runtime


if __name__ == "__main__":
    main()
