"""What users hold on to, as commit f34e165 had it: commands, graphs, repositories, JSON keys, checkpoints.

RETINASERVE_FREEZE=1 pytest tests/test_frozen.py      # records anew, after a change that CHANGELOG.md tells of
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import numpy_helper

from retinaserve.build_tools.engine.manifest import write_plan
from retinaserve.build_tools.export import ExportOptions, export_detector
from retinaserve.build_tools.preprocess import Decoding
from retinaserve.build_tools.quantize.calibrate import Int8Options
from retinaserve.build_tools.repository.builder import build_repository
from retinaserve.scripts.cli.main import main
from retinaserve.scripts.server.triton import TritonServer
from retinaserve.scripts.shapes.draw import draw_dataset
from retinaserve.training.checkpoint import load, load_model
from tests.toys import CLASSES, PLAN, toy_manifest

ROOT = Path(__file__).parents[1]
FROZEN = Path(__file__).parent / "frozen"
SHAPES = ROOT / "examples" / "shapes.pth"
Run = Callable[..., Result]


@pytest.fixture
def run() -> Run:
    return lambda *words: CliRunner().invoke(main, [str(word) for word in words])


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight images with labels."""
    return draw_dataset(tmp_path_factory.mktemp("frozen") / "drawn", images=8, seed=5).images.parent


def frozen(name: str, facts: Any) -> Any:
    """Return the recorded facts; write them first where that is asked for."""
    path = FROZEN / name
    if os.environ.get("RETINASERVE_FREEZE"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(facts, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
    return json.loads(path.read_text())


def verbs(group: click.Group, prefix: str = "") -> dict[str, Any]:
    """Return the parameters of every verb: what can be typed, and what happens if it is not."""
    found: dict[str, Any] = {}
    context = click.Context(group)
    for name in group.list_commands(context):
        verb = group.get_command(context, name)
        assert verb
        if isinstance(verb, click.Group):
            found |= verbs(verb, f"{prefix}{name} ")
        else:
            found[prefix + name] = {each.name: parameter(each) for each in verb.params}
    return found


def parameter(each: click.Parameter) -> str:
    shown = each.to_info_dict()
    kind = shown["type"]
    kind = {key: value for key, value in kind.items() if key in ("param_type", "choices", "min", "max")}
    option = {key: shown.get(key) for key in ("nargs", "multiple", "required", "is_flag", "default")}
    words = sorted([*shown["opts"], *shown["secondary_opts"]])
    return json.dumps([words, kind, option], default=str, sort_keys=True)


# What CHANGELOG.md tells of: verbs that are targets of make now, and parameters that changed, with the reason.
GONE = {
    *("capacity", "efficiency", "model-table", "compile-check"),  # this project's own tables
    "drill fuzz",  # a test: tests/scripts/drills/test_drills.py
}
CHANGED: dict[tuple[str, str], str] = {
    ("export", "emulate"): "the emulation of FP16 on a CPU is gone",
    ("build", "precision"): "f32 is called fp32, and is still taken",
    ("predict", "style"): "geojson, csv, labelstudio, yolo and voc are new",
    ("serve", "restart"): "a dead process is replaced unless --no-restart; --restart is still taken",
    ("admit", "cost"): "it was this project's own measurement",
    ("admit", "served"): "it was this project's own measurement",
    ("import", "source"): "whose file it is is found out; --from settles a doubt",
    ("import", "size"): "what the family's own resize rule says, unless one is asked for",
    ("train", "backbone"): "more ResNets",
    ("profile", "backbone"): "more ResNets",
    ("train", "optimizer"): "muon is new",
}


def test_every_verb_takes_what_it_took() -> None:
    now = verbs(main)
    for name, parameters in frozen("verbs.json", now).items():
        for parameter, shown in parameters.items():
            if name not in GONE and (name, parameter) not in CHANGED:
                assert now[name][parameter] == shown, (name, parameter)


WRONG = {
    "no such option": ("train", "model.pth", "--no-such-option"),
    "no annotations": ("train", "model.pth"),
    "wrong suffix": ("export", str(SHAPES), "model.txt"),
    "no checkpoint": ("export", "missing.pth", "model.onnx"),
    "int8 without images": ("export", str(SHAPES), "model.onnx", "--precision", "int8"),
    "odd size": ("export", str(SHAPES), "model.onnx", "--size", "100", "100"),
    "no graph": ("build", "missing.onnx", "--output", "repository"),
    "no repository": ("serve", "missing"),
    "no server": ("predict", str(SHAPES), "--server", "127.0.0.1:1"),
    "no folder": ("infer", str(SHAPES), "--images", "missing"),
    "not a data set": ("data", "check", "--images", ".", "--annotations", str(SHAPES)),
    "no weights": ("import", "missing", "model.pth"),
}


# Codes that changed, with the reason.
CODES = {"no weights": "import needs no --from, so a missing file is what is wrong, not the usage"}


def test_exit_codes(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    codes = {name: run(*words).exit_code for name, words in WRONG.items()}
    recorded = frozen("exit_codes.json", codes)
    assert {name: code for name, code in codes.items() if name not in CODES} == {
        name: code for name, code in recorded.items() if name not in CODES
    }


GRAPHS = {
    "fp32": ExportOptions(),
    "fp16": ExportOptions(half=True),
    "tensorrt": ExportOptions(flavour="tensorrt", half=True),
    "int8": "standard",
    "int8-tensorrt": "tensorrt",
}


# Graphs that CHANGELOG.md tells of, with the reason; what they are beside it is compared as before.
FILLED = "_filled"
RESTATED = re.compile(r"/restated/\S*?(_half)?(?= |$)")  # a scale that is denormal in half, and its weights
REFILLED = (
    "the plugin reads the heads in half, their channels filled up to vectors of eight: no casts in front of it"
)
CHANGED_GRAPHS = {"tensorrt": REFILLED, "int8-tensorrt": REFILLED}
# Decode and NMS of the standard graphs, which tests/build_tools/graph holds to the reference.
FLOORED = (
    "logits are raised to a floor under the threshold before TopK, and the last sort is of the kept ones only"
)
CHANGED_TAILS = {"fp32": FLOORED, "fp16": FLOORED, "int8": FLOORED}
TAIL = "detect/"


@pytest.mark.parametrize("name", GRAPHS)
def test_exported_graphs_are_the_same_node_for_node(name: str, drawn: Path, tmp_path: Path) -> None:
    options = GRAPHS[name]
    if isinstance(options, str):
        half = options == "tensorrt"
        options = ExportOptions(
            flavour=options, half=half, int8=Int8Options(drawn / "images", decoding=Decoding(full=True))
        )  # type: ignore[arg-type]
    export_detector(SHAPES, tmp_path / "model.onnx", options)
    model = onnx.load(str(tmp_path / "model.onnx"))
    nodes = [node.SerializeToString(deterministic=True) for node in model.graph.node]
    facts = {
        "nodes": [
            f"{node.op_type} {' '.join(node.input)} -> {' '.join(node.output)}" for node in model.graph.node
        ],
        "node_digest": hashlib.sha256(b"".join(nodes)).hexdigest(),
        "inputs": [str(value).split() for value in model.graph.input],
        "outputs": [str(value).split() for value in model.graph.output],
        "metadata": sorted(prop.key for prop in model.metadata_props),
        "opsets": sorted((entry.domain, entry.version) for entry in model.opset_import),
    }
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    sizes = {tensor: summary(array) for tensor, array in arrays.items()}
    recorded = frozen(f"graph-{name}.json", {**facts, "initializers": sizes})
    measured = recorded.pop("initializers")
    if name in CHANGED_TAILS:
        del facts["node_digest"], recorded["node_digest"]
        for each in (facts, recorded):
            each["nodes"] = [line for line in each["nodes"] if TAIL not in line]
        sizes, measured = (
            {tensor: found for tensor, found in each.items() if not tensor.startswith(TAIL)}
            for each in (sizes, measured)
        )
    if name in CHANGED_GRAPHS:
        del facts["node_digest"], recorded["node_digest"]
        heads = re.compile(r"Cast (\w+)_half -> \1$")
        recorded["nodes"] = [line for line in recorded["nodes"] if not heads.match(line)]
        facts["nodes"] = [
            line.replace("_half", "")
            if line.startswith("RetinaNetDecode")
            else RESTATED.sub(r"\1", line).replace(FILLED, "")
            for line in facts["nodes"]
        ]
        names = {tensor: RESTATED.sub(r"\1", tensor).removesuffix(FILLED) for tensor in arrays}
        sizes = {
            old: summary(arrays[new][: measured[old][1][0]]) if new.endswith(FILLED) else sizes[new]
            for new, old in names.items()
        }
        for old in {old for new, old in names.items() if "/restated/" in new}:
            sizes[old] = measured[
                old
            ]  # other numbers for the same weights: tests/build_tools/graph/test_float16.py
    assert json.loads(json.dumps(facts)) == recorded
    assert measured.keys() == sizes.keys()
    for tensor, (kind, shape, *values) in sizes.items():
        assert [kind, shape] == measured[tensor][:2], tensor
        # what calibration measured may differ in the last digits between processors
        assert values == pytest.approx(measured[tensor][2:], rel=2e-3, abs=1e-4), tensor


def summary(values: np.ndarray) -> list[Any]:
    finite = np.nan_to_num(values.astype(np.float64), posinf=0, neginf=0)
    return [str(values.dtype), list(values.shape), float(np.abs(finite).mean()) if finite.size else 0.0]


# What was added to repositories, with the reason.
ADDED = {
    "cpu/retinanet/1/openvino_cpu.py": "the one place for OpenVINO's settings, copied as `preprocess` is",
    "gpu/cuda_memory_pool_bytes": "what the server's pool has to hold",
}
PARAMETERS_ADDED = {'parameters {\n  key: "decode"\n  value {\n    string_value: "scaled"\n  }\n}\n': "of JPEGs"}


def test_built_repositories_are_the_same_file_by_file(toy_onnx: Path, tmp_path: Path) -> None:
    write_plan(tmp_path / "toy.plan", PLAN, toy_manifest())
    build_repository(toy_onnx, tmp_path / "cpu")
    build_repository(tmp_path / "toy.plan", tmp_path / "gpu", profile="gpu")
    facts = {}
    for profile in ("cpu", "gpu"):
        for path in sorted((tmp_path / profile).rglob("*")):
            if (
                path.is_file()
                and "preprocess/1/preprocess/" not in str(path)
                and "admission/1/pixels/" not in str(path)
            ):
                name = str(path.relative_to(tmp_path))
                facts[name] = path.read_text() if path.suffix == ".pbtxt" else ""
    digest = hashlib.sha256(toy_onnx.read_bytes()).hexdigest()  # torch's exporter numbers nodes by its version
    facts = {name: text.replace(digest, "GRAPH") for name, text in facts.items()}
    assert ADDED.keys() <= facts.keys()
    facts = {name: text for name, text in facts.items() if name not in ADDED}
    for text in PARAMETERS_ADDED:
        assert any(text in config for config in facts.values())
        facts = {name: config.replace(text, "") for name, config in facts.items()}
    assert facts == frozen("repositories.json", facts)


def keys(value: Any, path: str = "") -> set[str]:
    """Return the paths of all keys; a list's items are one, and names of classes and images are their kind."""
    if isinstance(value, dict):
        return {path} | {each for key, item in value.items() for each in keys(item, f"{path}.{key}")}
    if isinstance(value, list):
        return {path} | {each for item in value for each in keys(item, f"{path}[]")}
    return {path}


def test_json_results_have_the_same_keys(
    run: Run, drawn: Path, toy_onnx: Path, server: TritonServer, tmp_path: Path
) -> None:
    data = ("--images", drawn / "images", "--annotations", drawn / "annotations.json")
    labelled = json.loads((drawn / "annotations.json").read_text())
    for category, name in zip(labelled["categories"], CLASSES, strict=False):
        category["name"] = name
    (tmp_path / "toy.json").write_text(json.dumps(labelled))
    runs = {
        "eval": ("eval", "--server", server.grpc_url, *data[:2], "--annotations", tmp_path / "toy.json"),
        "infer": ("infer", SHAPES, *data),
        "bench": (
            "bench",
            "--server",
            server.grpc_url,
            "--images",
            drawn / "images",
            "--seconds",
            1,
            "--concurrency",
            1,
        ),
        "verify": ("verify", SHAPES, toy_onnx.parent / "shapes.onnx", "--images", drawn / "images"),
        "data check": ("data", "check", *data),
    }
    export_detector(SHAPES, toy_onnx.parent / "shapes.onnx")
    now = {}
    for name, words in runs.items():
        result = run(*words, "--json", tmp_path / "out.json")
        assert result.exit_code == 0, (name, result.output)
        now[name] = sorted(keys(json.loads((tmp_path / "out.json").read_text())))
    recorded = frozen("json_keys.json", now)
    for name in runs:
        assert set(recorded[name]) <= set(now[name]), name


def test_a_checkpoint_of_before_loads_and_goes_on(run: Run, drawn: Path, tmp_path: Path) -> None:
    data = ("--images", drawn / "images", "--annotations", drawn / "annotations.json")
    network = ("--backbone", "resnet18", "--width", 1, "--fpn-channels", 2, "--head-depth", 1, "--size", 64, 64)
    words = (*data, *network, "--batch", 2, "--ema", 0.9)
    path = FROZEN / "checkpoint.pth"
    if os.environ.get("RETINASERVE_FREEZE"):
        result = run("train", tmp_path / "new.pth", *words, "--iters", 2)
        assert result.exit_code == 0, result.output
        shutil.copy(tmp_path / "new.pth", path)
    assert load(path).iteration == 2
    load_model(path)
    shutil.copy(path, tmp_path / "model.pth")
    result = run("train", tmp_path / "model.pth", *words, "--iters", 3)
    assert result.exit_code == 0, result.output
    assert load(tmp_path / "model.pth").iteration == 3
