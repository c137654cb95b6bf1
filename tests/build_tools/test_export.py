"""`export` and `build` as a user meets them: INT8 end to end, and every way it goes wrong, with its exit code."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest

from retinaserve.build_tools.export import export
from retinaserve.build_tools.graph.onnx_io import OnnxGraph
from retinaserve.build_tools.repository.builder import build
from retinaserve.build_tools.repository.configs import read_config
from retinaserve.eval.runtimes.detector import open_detector
from retinaserve.training.checkpoint import Checkpoint, save
from retinaserve.training.errors import UserError
from retinaserve.training.spec import METADATA_CALIBRATION
from tests.cli import invoke as run
from tests.cli import refused
from tests.disk import files_no_larger_than
from tests.images import bad_images, checker, encode
from tests.toys import toy_model, toy_spec

BAD = len(bad_images())


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    spec = toy_spec()
    save(tmp_path / "model.pth", Checkpoint(spec, toy_model(spec).state_dict()))
    return tmp_path / "model.pth"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("calibration")
    for number in range(4):
        (folder / f"{number}.jpg").write_bytes(encode(checker(200, 160, seed=number, cell=15 + number)))
    (folder / "broken.jpg").write_bytes(bad_images()["jpeg truncated"][0])
    return folder


def test_how_many_are_answered_is_decided_at_export(checkpoint: Path, images: Path, tmp_path: Path) -> None:
    """The graph answers what a checkpoint with those numbers in its spec answers in torch."""
    graph, same = tmp_path / "model.onnx", tmp_path / "same.pth"
    cuts = {"max_detections": 230, "nms_iou": 0.95, "score_threshold": 0.02}
    words = (word for name, value in cuts.items() for word in (f"--{name.replace('_', '-')}", value))
    exported = run("export", checkpoint, graph, *words, "--size", 128, 256)
    assert exported.exit_code == 0 and "128 x 256" in exported.stdout
    spec = replace(toy_spec(), **cuts, size=(128, 256))
    assert OnnxGraph.read(graph).spec == spec
    save(same, Checkpoint(spec, toy_model(toy_spec()).state_dict()))
    image = (images / "0.jpg").read_bytes()
    found, expected = (open_detector(model).predict([image])[0] for model in (graph, same))
    assert 100 < len(found) == len(expected)
    assert found.scores == pytest.approx(expected.scores, abs=1e-5)
    result = run("export", graph, tmp_path / "model.plan", "--nms-iou", 0.7)
    assert result.exit_code == 2 and "--nms-iou means nothing for an .onnx" in result.output


def test_int8_from_checkpoint_to_repository(checkpoint: Path, images: Path, tmp_path: Path) -> None:
    graph, cache, report = tmp_path / "model.onnx", tmp_path / "cache", tmp_path / "report.json"
    int8 = ("--precision", "int8", "--calibration-images", images, "--calibration-cache", cache)
    result = run("export", checkpoint, graph, *int8, "--exclude", "fpn.p7", "--json", report)
    assert result.exit_code == 0, result.output
    assert "int8" in result.stdout and "broken.jpg" in result.stderr and "4 of 5 images" in result.stderr
    record = json.loads((tmp_path / "model.calibration.json").read_text())
    assert {item["file"] for item in record["pictures"]["images"]} == {f"{n}.jpg" for n in range(4)}
    assert [item["file"] for item in record["pictures"]["unreadable"]] == ["broken.jpg"]
    assert record["excluded"] == ["fpn.p7"] and len(record["layers"]) == record["quantized"]
    assert json.loads(report.read_text())["calibration"] == record
    metadata = {entry.key: entry.value for entry in onnx.load(graph).metadata_props}
    assert json.loads(metadata[METADATA_CALIBRATION])["pictures_sha256"] == record["pictures"]["sha256"]

    result = run("build", graph, "--output", tmp_path / "repository")
    assert result.exit_code == 0 and "int8 graph, fp32 where it is float" in result.stdout
    retinanet = tmp_path / "repository" / "retinanet"
    parameters = read_config(retinanet / "config.pbtxt").parameters
    assert {key: parameters[key].string_value for key in parameters} == {"precision": "f32", "graph": "int8"}
    assert json.loads((retinanet / "1" / "model.calibration.json").read_text()) == record
    assert run("build", graph, "--output", tmp_path / "other", "--precision", "int8").exit_code == 0

    # Another calibrator is answered from the same ranges.
    result = run("build", checkpoint, "--output", tmp_path / "one", *int8, "--calibrator", "minmax")
    assert result.exit_code == 0 and len(list(cache.iterdir())) == 1
    assert OnnxGraph.read(tmp_path / "one" / "retinanet" / "1" / "model.onnx").precision == "int8"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--precision", "int8"], 2, "INT8 needs --calibration-images"),
        (["--precision", "int8", "--calibration-images", "nowhere"], 3, "nowhere: no such folder or file"),
        (["--precision", "int8", "--calibration-images", "empty"], 3, "empty: no images to calibrate with"),
        (["--precision", "int8", "--calibration-images", "bad"], 3, f"none of its {BAD} images can be read"),
        (["--precision", "int9"], 2, "'int9' is not one of"),
        (["--size", "200", "320"], 2, "multiples of 128, the largest stride"),
    ],
    ids=["no images", "missing folder", "empty folder", "all unreadable", "no such precision", "odd size"],
)
def test_mistakes_leave_nothing_behind(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, words: str
) -> None:
    folder = checkpoint.parent
    monkeypatch.chdir(folder)
    for name in ("empty", "bad"):
        (folder / name).mkdir()
    for number, (data, _) in enumerate(bad_images().values()):
        (folder / "bad" / f"{number}.jpg").write_bytes(data)
    before = sorted(folder.rglob("*"))
    refused(run("export", checkpoint, "model.onnx", *arguments), code, words)
    assert sorted(folder.rglob("*")) == before


def test_a_full_disk_leaves_what_was_there(checkpoint: Path, toy_onnx: Path, tmp_path: Path) -> None:
    graph = tmp_path / "model.onnx"
    graph.write_bytes(b"the model before")
    before = sorted(tmp_path.rglob("*"))
    with files_no_larger_than(100_000):
        exported = run("export", checkpoint, graph)
        built = run("build", toy_onnx, "--output", tmp_path / "repository")
    for result, name in ((exported, "model.onnx"), (built, "repository")):
        assert result.exit_code == 3 and f"{name} could not be written: File too large" in result.stderr
    assert graph.read_bytes() == b"the model before" and sorted(tmp_path.rglob("*")) == before


def test_an_interrupted_run_leaves_what_was_there(
    checkpoint: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("retinaserve.build_tools.quantize.calibrate.collect", interrupted)
    before = sorted(checkpoint.parent.rglob("*"))
    int8 = ("--precision", "int8", "--calibration-images", images)
    assert run("export", checkpoint, checkpoint.with_suffix(".onnx"), *int8).exit_code == 130
    assert sorted(checkpoint.parent.rglob("*")) == before


def test_graphs_that_can_not_be_served(toy_onnx: Path, tmp_path: Path) -> None:
    def spoiled(name: str, spoil) -> Path:  # type: ignore[no-untyped-def]
        model = onnx.load(toy_onnx)
        spoil(model)
        onnx.save(model, tmp_path / name)
        return tmp_path / name

    def fix_batch(model: onnx.ModelProto) -> None:
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.shape.dim[0].dim_value = 1

    cases = {
        spoiled("bare.onnx", lambda model: model.ClearField("metadata_props")): "has no 'retinaserve.spec'",
        spoiled("static.onnx", fix_batch): "has a fixed batch of 1, a batch of any size is expected",
    }
    whole = toy_onnx.read_bytes()
    for share in (0.1, 0.5, 0.99):
        path = tmp_path / f"cut {share}.onnx"
        path.write_bytes(whole[: int(share * len(whole))])
        cases[path] = "is not an ONNX model"
    for path, words in cases.items():
        result = run("build", path, "--output", tmp_path / "repository")
        assert result.exit_code == 3 and f"{path} " in result.stderr.replace(":", " "), result.output
        assert words in result.stderr and "Traceback" not in result.stderr
        assert not (tmp_path / "repository").exists()


def test_int8_is_not_made_from_a_float_graph(toy_onnx: Path, tmp_path: Path) -> None:
    result = run("build", toy_onnx, "--output", tmp_path / "repository", "--precision", "int8")
    assert result.exit_code == 2 and "is a float graph" in result.stderr


@pytest.mark.parametrize(
    ("output", "options", "words"),
    [
        ("model.txt", {}, "ends in .onnx or .plan"),
        ("model.onnx", {"precision": "int8"}, "INT8 needs calibration_images"),
        ("model.onnx", {"size": (100, 100)}, "multiples of 128"),
    ],
)
def test_programs_are_told_what_is_wrong(
    checkpoint: Path, tmp_path: Path, output: str, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        export(checkpoint, tmp_path / output, **options)
    assert list(tmp_path.iterdir()) == [checkpoint]


def test_programs_export_and_build_in_two_calls(checkpoint: Path, images: Path, tmp_path: Path) -> None:
    exported = export(
        str(checkpoint), str(tmp_path / "model.onnx"), precision="int8", calibration_images=str(images)
    )
    assert exported.path == tmp_path / "model.onnx" and exported.flavour == "standard" and exported.plan is None
    assert exported.calibration["pictures"]["count"] == 4
    with pytest.raises(UserError, match="precision 'fp16' is not known"):
        build(exported.path, tmp_path / "repository", precision="fp16")
    built = build(str(exported.path), str(tmp_path / "repository"), precision="int8")
    assert (built.version, built.precision) == (1, "int8")
    parameters = read_config(tmp_path / "repository" / "retinanet" / "config.pbtxt").parameters
    assert parameters["precision"].string_value == "bf16"
