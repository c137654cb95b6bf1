"""Every call and attribute of TensorRT that we use exists in NVIDIA's own Python bindings, version by version.

    for each in 12-bindings==10.12.0.36 13-bindings==11.2.1.2 13-bindings==11.4.0.106
    do pip download --no-deps --dest wheels tensorrt-cu$each; done
    RETINASERVE_TENSORRT_WHEELS=wheels pytest tests/build_tools/engine/test_bindings.py

The wheels are a megabyte each; the libraries behind them, which are gigabytes, are stubs here: what is asked is
what there is, not what it does.
"""

import ast
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.plugins.libraries import require_compiler

ROOT = Path(__file__).parents[3]
WHEELS = sorted(Path(os.environ.get("RETINASERVE_TENSORRT_WHEELS", "no folder")).glob("tensorrt*bindings-*.whl"))
# What our variables of these names are, by module; "" is TensorRT itself.
MODULE = {"trt": ""}
BUILDER = {
    **MODULE, "builder": "Builder", "network": "INetworkDefinition", "parser": "OnnxParser",
    "config": "IBuilderConfig", "runtime": "Runtime", "engine": "ICudaEngine", "profile": "IOptimizationProfile",
    "cache": "ITimingCache", "tensor": "ITensor",
}  # fmt: skip
OBJECTS = {
    "build_tools/engine/builder.py": BUILDER,
    "build_tools/engine/tensorrt.py": {**MODULE, "registry": "IPluginRegistry"},
    "eval/runtimes/tensorrt.py": {
        **MODULE, "runtime": "Runtime", "_engine": "ICudaEngine", "_context": "IExecutionContext",
        "context": "IExecutionContext",
    },
}  # fmt: skip
RESULTS = {"create_engine_inspector": "EngineInspector", "get_timing_cache": "ITimingCache"}
OURS = {("ICudaEngine", "data")}  # of our own class Engine
# Of TensorRT for RTX: what it has to be told, and TensorRT sees in the machine.
RTX = {"ComputeCapability", "num_compute_capabilities", "set_compute_capability"}
# What the bindings need of libraries to be imported.
STUBS = (
    "createInferBuilder_INTERNAL", "createInferRefitter_INTERNAL", "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL", "createNvOnnxParser_INTERNAL", "getBuilderPluginRegistry",
    "getNvOnnxParserVersion", "getPluginRegistry", "initLibNvInferPlugins",
)  # fmt: skip
LIBRARIES = ("nvinfer", "nvonnxparser", "nvinfer_plugin")
PROBE = """
import json, sys, warnings
warnings.simplefilter("ignore")
import tensorrt_bindings as trt
missing, old = [], []
for path, keywords in json.load(sys.stdin):
    found = trt
    for part in path:
        found = getattr(found, part, None)
    text = getattr(found, "__doc__", "") or ""
    if found is None or any(f"{word}:" not in text and f"{word}=" not in text for word in keywords):
        missing.append(".".join(path) + (f"({', '.join(keywords)})" if keywords else ""))
    # An enum's members have its text, a line each, and so has the enum.
    members = getattr(found, "__members__", {})
    lines = [line.strip().split(" : ") for line in text.splitlines() if "deprecated" in line.lower()]
    if any(len(line) == 1 or (line[0] == path[-1] and path[-1] in members) for line in lines):
        old.append(".".join(path))
print(json.dumps([trt.__version__, missing, old]))
"""


def uses() -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Return what we use: paths within TensorRT's module, and the keywords that it is called with."""
    found = set()
    for file, objects in OBJECTS.items():
        tree = ast.parse((ROOT / file).read_text())
        keywords = {
            id(node.func): tuple(str(each.arg) for each in node.keywords)
            for node in ast.walk(tree)
            if isinstance(node, ast.Call)
        }
        for node in ast.walk(tree):
            path = tuple(path_of(node, objects))
            if path and not RTX & set(path) and path not in OURS:
                found.add((path, keywords.get(id(node), ())))
    return sorted(found)


def path_of(node: ast.AST, objects: dict[str, str]) -> Iterator[str]:
    """Give the parts of a name in TensorRT's module; none for what is no attribute of it."""
    if not isinstance(node, ast.Attribute):
        return
    owner = node.value
    if isinstance(owner, ast.Call) and isinstance(owner.func, ast.Attribute) and owner.func.attr in RESULTS:
        yield from (RESULTS[owner.func.attr], node.attr)
        return
    name = owner.id if isinstance(owner, ast.Name) else owner.attr if isinstance(owner, ast.Attribute) else ""
    if name in objects and (isinstance(owner, ast.Name) or name.startswith("_")):
        yield from (*filter(None, [objects[name]]), node.attr)
    elif (above := tuple(path_of(owner, objects))) and _begins_at_trt(owner):
        yield from (*above, node.attr)


def _begins_at_trt(node: ast.AST) -> bool:
    while isinstance(node, ast.Attribute):
        node = node.value
    return isinstance(node, ast.Name) and node.id == "trt"


def test_what_we_use_is_found_in_the_source() -> None:
    found = dict(uses())
    assert len(found) > 40
    assert found["IBuilderConfig", "set_timing_cache"] == ("ignore_mismatch",)
    for path in (("ILogger", "INTERNAL_ERROR"), ("EngineInspector", "get_engine_information"),
                 ("IExecutionContext", "execute_async_v3"), ("IPluginRegistry", "load_library"),
                 ("get_plugin_registry",)):  # fmt: skip
        assert path in found


@pytest.fixture(scope="module")
def stubs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require_compiler()
    folder = tmp_path_factory.mktemp("stubs")
    lines = [f'extern "C" void* {name}() {{ return nullptr; }}' for name in STUBS]
    (folder / "stubs.cpp").write_text("\n".join(lines) + "\n")
    for library in LIBRARIES:
        for version in (10, 11):
            target = folder / f"lib{library}.so.{version}"
            subprocess.run(["g++", "-shared", "-fPIC", folder / "stubs.cpp", "-o", target], check=True)
    return folder


def ask(wheel: Path, stubs: Path, folder: Path, asked: object) -> tuple[str, list[str], list[str]]:
    """Return the version of a wheel's bindings, what they do not have, and what they call deprecated."""
    with zipfile.ZipFile(wheel) as content:
        content.extractall(folder)
    environment = {**os.environ, "LD_LIBRARY_PATH": str(stubs), "PYTHONPATH": str(folder)}
    done = subprocess.run(
        [sys.executable, "-c", PROBE], input=json.dumps(asked), env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    version, missing, old = json.loads(done.stdout)
    return version, missing, old


def wheel_of(version: str) -> Path:
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    for wheel in WHEELS:
        if f"-{version}." in wheel.name and f"-{tag}-" in wheel.name:
            return wheel
    pytest.skip(f"needs the wheel of TensorRT {version}'s bindings for {tag}: see this file's first lines")


@pytest.mark.parametrize("version", ["10.12", "11.2", "11.4"])
def test_every_call_of_ours_exists_and_none_is_deprecated(version: str, stubs: Path, tmp_path: Path) -> None:
    found, missing, old = ask(wheel_of(version), stubs, tmp_path, uses())
    assert found.startswith(version) and missing == []
    # TensorRT 10 alone is told: builder.py.
    assert old == ([] if version == "10.12" else ["NetworkDefinitionCreationFlag.STRONGLY_TYPED"])


def test_what_does_not_exist_is_noticed(stubs: Path, tmp_path: Path) -> None:
    asked = [(("Builder", "max_batch_size"), ()), (("IBuilderConfig", "set_timing_cache"), ("ignore_miss",))]
    asked.append((("INetworkDefinition", "add_normalization"), ()))
    _, missing, old = ask(wheel_of("11.4"), stubs, tmp_path, asked)
    assert old == ["INetworkDefinition.add_normalization"]
    assert missing == ["Builder.max_batch_size", "IBuilderConfig.set_timing_cache(ignore_miss)"]
