"""`verify` as a user types it: equal models pass, each way to be another model is caught and named."""

import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from retinaserve.build_tools.graph.graft import graft, save
from retinaserve.build_tools.graph.onnx_io import OnnxGraph
from retinaserve.eval.runtimes.detector import open_detector
from retinaserve.eval.verify.compare import topk_cuts
from retinaserve.scripts.server.triton import TritonServer
from retinaserve.training.checkpoint import Checkpoint
from retinaserve.training.checkpoint import save as save_checkpoint
from tests import graphs
from tests.cli import invoke, refused
from tests.coco import write_coco
from tests.images import checker, encode
from tests.toys import toy_model, toy_spec

COUNT = 6
run = partial(invoke, "verify")


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint and a labelled folder of images in which it finds plenty."""
    folder = tmp_path_factory.mktemp("verify")
    save_checkpoint(folder / "toy.pth", Checkpoint(toy_spec(), toy_model(toy_spec()).state_dict()))
    (folder / "images").mkdir()
    for number in range(COUNT):
        image = checker(240 + 40 * number, 300 - 30 * number, seed=number, cell=20 + 6 * number)
        (folder / "images" / f"{number}.jpg").write_bytes(encode(image))
    names, boxes = {n: f"{n}.jpg" for n in range(COUNT)}, [(n, 5, [10, 10, 60, 60]) for n in range(COUNT)]
    write_coco(folder / "annotations.json", names, boxes, {1: "disc", 5: "box"})
    return folder


def test_the_same_model_passes_on_both_runtimes(toy: Path, toy_onnx: Path, tmp_path: Path) -> None:
    result = run(
        toy / "toy.pth", toy_onnx, "--images", toy / "images", "--annotations", toy / "annotations.json",
        "--json", tmp_path / "a" / "v.json", "--output", tmp_path / "out", "--worst", 2,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert f"PASS  {toy_onnx} (OpenVINO)\nPASS  {toy_onnx} (ONNX Runtime)\n" in result.stdout
    assert "FAIL" not in result.stdout and "next: retinaserve build" in result.stderr
    report = json.loads((tmp_path / "a" / "v.json").read_text())
    assert report["passed"] and report["images"] == COUNT and len(report["candidates"]) == 2
    for candidate in report["candidates"]:
        assert list(candidate["heads"]) == [name for pair in toy_spec().head_names for name in pair]
        assert all(head["max"] < 1e-3 for head in candidate["heads"].values())
        assert candidate["boxes"]["matched"] > 50 and candidate["alone"] == []
        assert candidate["ap"]["reference"] == pytest.approx(candidate["ap"]["candidate"], abs=1e-4)
    sheets = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert sheets == ["1-model.onnx-openvino.jpg", "2-model.onnx-onnx-runtime.jpg"]
    with Image.open(tmp_path / "out" / sheets[0]) as sheet:
        assert sheet.width > 2 * 640 and sheet.height > 2 * 480


# change: (what fails at least, what is said)
TAMPERED = {
    "one weight": (
        graphs.one_weight,
        {"head-max", "head-cosine", "score-max"},
        "the network differs: box deltas of",
    ),
    "swapped classes": (
        graphs.swapped_classes,
        {"head-max", "unmatched"},
        "the places agree, the classes do not: ",
    ),
    "shifted deltas": (
        graphs.shifted_deltas,
        {"head-max", "head-mean", "iou-mean"},
        "the network differs: box deltas of P3 P4 P5 P6 P7;",
    ),
    "not a number": (graphs.not_a_number, {"head-max", "head-mean", "head-cosine"}, "class logits of P3;"),
    "another NMS": (graphs.other_nms, {"unmatched"}, "the heads are within their limits, so look behind them"),
}


@pytest.mark.parametrize("case", TAMPERED)
@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_a_tampered_graph_is_caught_and_named(
    case: str, runtime: str, toy: Path, toy_onnx: Path, tmp_path: Path
) -> None:
    change, checks, words = TAMPERED[case]
    other = graphs.changed(toy_onnx, tmp_path / "other.onnx", change)
    result = run(
        toy / "toy.pth", other, "--images", toy / "images", "--runtime", runtime, "--json", tmp_path / "v.json"
    )
    assert result.exit_code == 1, result.output
    assert "FAIL  " in result.stdout and words.replace("class logits", "cls logits") in result.stdout
    (candidate,) = json.loads((tmp_path / "v.json").read_text())["candidates"]
    failed = {check["name"] for check in candidate["checks"] if not check["passed"]}
    assert checks <= failed, failed
    assert f"next: retinaserve verify {toy / 'toy.pth'} {other} --images" in result.stderr
    if case == "shifted deltas":
        assert {check["subject"] for check in candidate["checks"] if check["name"] == "head-max"
                and not check["passed"]} == {name for _, name in toy_spec().head_names}  # fmt: skip


def test_loose_limits_let_it_pass_and_are_shown(toy: Path, toy_onnx: Path, tmp_path: Path) -> None:
    other = graphs.changed(toy_onnx, tmp_path / "other.onnx", graphs.shifted_deltas)
    words = [toy / "toy.pth", other, "--images", toy / "images", "--runtime", "onnxruntime", "--count", 2]
    assert run(*words).exit_code == 1
    limits = "head-max=1", "head-mean=1", "head-cosine=0", "iou-mean=0.5", "moved=1", "score-max=1", "score-mean=1"
    result = run(*words, *(word for limit in limits for word in ("--limit", limit)), "--limit", "unmatched=1")
    assert result.exit_code == 0, result.output
    assert "on 2 images" in result.stdout


@pytest.mark.parametrize(
    ("precision", "change"),
    [("fp16", graphs.half_weights), ("int8", graphs.quantized_weights)],
    ids=["fp16", "int8"],
)
def test_a_graph_is_judged_by_its_precision(
    precision: str, change: graphs.Change, toy: Path, toy_onnx: Path, tmp_path: Path
) -> None:
    other = graphs.changed(toy_onnx, tmp_path / "other.onnx", change)
    assert OnnxGraph.read(toy_onnx).precision == "fp32" and OnnxGraph.read(other).precision == precision
    words = [toy / "toy.pth", other, "--images", toy / "images", "--runtime", "onnxruntime"]
    result = run(*words)
    assert result.exit_code == 0, result.output
    assert f"{other} (ONNX Runtime), {precision}\n" in result.stdout and f"limits of {precision}" in result.stdout
    strict = run(*words, "--precision", "fp32")
    assert strict.exit_code == 1 and "limits of fp32" in strict.stdout


def test_a_graph_for_tensorrt_is_compared_up_to_its_heads(toy: Path, toy_onnx: Path, tmp_path: Path) -> None:
    save(graft(toy_onnx.with_name("heads.onnx"), flavour="tensorrt"), tmp_path / "trt.onnx")
    words = [toy / "toy.pth", tmp_path / "trt.onnx", "--images", toy / "images", "--count", 2]
    result = run(*words)
    assert result.exit_code == 0, result.output
    assert "RetinaNetDecode, RetinaNetNMS need TensorRT; decode and NMS are done in NumPy here" in result.stdout
    graphs.changed(tmp_path / "trt.onnx", tmp_path / "trt.onnx", graphs.one_weight)
    assert run(*words).exit_code == 1


@pytest.mark.server
def test_the_server_is_compared(toy: Path, toy_onnx: Path, server: TritonServer, tmp_path: Path) -> None:
    words = ["--server", server.grpc_url, "--images", toy / "images", "--annotations", toy / "annotations.json"]
    good = run(toy / "toy.pth", toy_onnx, "--runtime", "onnxruntime", *words)
    assert good.exit_code == 0, good.output
    assert f"PASS  grpc://{server.grpc_url} (Triton)" in good.stdout and "exposes no heads" in good.stdout
    assert f"grpc://{server.grpc_url} (Triton), fp32" in good.stdout, "as the config of `retinanet` says"
    assert "next: retinaserve bench --server" in good.stderr

    other = toy_model(toy_spec())
    other.box_head.output.bias.data += 0.05
    save_checkpoint(tmp_path / "other.pth", Checkpoint(toy_spec(), other.state_dict()))
    http = ["--server", f"http://{server.http_url}", *words[2:]]
    bad = run(tmp_path / "other.pth", *http)
    assert bad.exit_code == 1, bad.output
    assert f"FAIL  http://{server.http_url} (Triton)" in bad.stdout
    assert "exposes no heads: compare the .onnx it was made from as well" in bad.stdout
    assert f"--server http://{server.http_url}" in bad.stderr.splitlines()[-1]


@pytest.mark.server
def test_a_bad_picture_is_left_out_on_all_sides(toy: Path, server: TritonServer, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes((toy / "images" / "0.jpg").read_bytes())
    (tmp_path / "b.jpg").write_bytes(b"%PDF-1.7")
    result = run(toy / "toy.pth", "--server", server.grpc_url, "--images", tmp_path)
    assert result.exit_code == 3, result.output
    assert (
        "b.jpg: the data is a PDF" in result.stderr and "on 1 images" in result.stdout and "PASS" in result.stdout
    )


@pytest.fixture(scope="module")
def others(toy: Path) -> Path:
    """Checkpoints that are other detectors than toy.pth, and files that are none."""
    spec = toy_spec()
    anchors = (*spec.anchors[:3], tuple((x - 1, y, w, h) for x, y, w, h in spec.anchors[3]), *spec.anchors[4:])
    for name, other in {
        "name": replace(spec, classes=("disc", "crate", "étoile filante")),
        "order": replace(spec, classes=("box", "disc", "étoile filante")),
        "anchors": replace(spec, anchors=anchors),
        "nms": replace(spec, nms_iou=0.6),
        "size": spec.with_size(128, 128),
    }.items():
        save_checkpoint(toy / f"{name}.pth", Checkpoint(other, toy_model(spec).state_dict()))
    save_checkpoint(
        toy / "fewer.pth",
        Checkpoint(replace(spec, classes=spec.classes[:2], category_ids=spec.category_ids[:2]), {}),
    )
    (toy / "empty").mkdir()
    (toy / "flat").mkdir()
    (toy / "bad").mkdir()
    (toy / "flat" / "a.png").write_bytes(encode(Image.new("RGB", (64, 64), (124, 116, 104)), "PNG"))
    (toy / "bad" / "a.png").write_bytes(b"")
    return toy


MISTAKES = {
    "nothing to compare": (["toy.pth"], 2, "nothing to compare with"),
    "no reference": (["none.pth", "toy.pth"], 3, "none.pth: no such file"),
    "no candidate": (["toy.pth", "none.onnx"], 3, "none.onnx: no such file"),
    "no server": (["toy.pth", "--server", "127.0.0.1:1"], 3, "no Triton server answers at grpc://127.0.0.1:1"),
    "no images": (["toy.pth", "toy.pth", "--images", "empty"], 3, "empty: no images in this directory"),
    "no good image": (["toy.pth", "toy.pth", "--images", "bad"], 3, "none of the images could be read"),
    "nothing found": (["toy.pth", "toy.pth", "--images", "flat"], 3, "nothing is found on the 1 images"),
    "no annotations": (["toy.pth", "toy.pth", "--annotations", "gone.json"], 3, "gone.json: no such file"),
    "no limit": (["toy.pth", "toy.pth", "--limit", "speed=1"], 2, "--limit speed=1: no limit has this name"),
    "other name": (["toy.pth", "name.pth"], 3, "name.pth is another detector than toy.pth: number 1 of"),
    "other order": (["toy.pth", "order.pth"], 3, "number 0 of its classes is 'box', not 'disc'"),
    "other anchors": (["toy.pth", "anchors.pth"], 3, "its anchors differ from level 3 on"),
    "other NMS": (["toy.pth", "nms.pth"], 3, "its nms iou is 0.6, not 0.5"),
    "other size": (["toy.pth", "size.pth"], 3, "its size is 128 x 128, not 128 x 192"),
    "no weights": (["toy.pth", "fewer.pth"], 3, "fewer.pth: the weights don't fit the spec"),
}  # fmt: skip


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_answered_in_two_lines(case: str, others: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words, code, message = MISTAKES[case]
    monkeypatch.chdir(others)
    refused(run(*words, *([] if "--images" in words else ["--images", "images"])), code, message)


def results_of(checkpoint: Path, folder: Path) -> list[dict[str, Any]]:
    """What a detector finds, as COCO results, written as other frameworks do: xywh, category ids, five digits."""
    detector, rows = open_detector(checkpoint), []
    for number in range(COUNT):
        found = detector.predict([(folder / "images" / f"{number}.jpg").read_bytes()])[0]
        for (x1, y1, x2, y2), score, index in zip(found.boxes.tolist(), found.scores, found.classes, strict=True):
            bbox = [round(each, 3) for each in (x1, y1, x2 - x1, y2 - y1)]
            category = detector.category_ids[index]
            rows.append(
                {"image_id": number, "category_id": category, "bbox": bbox, "score": round(float(score), 5)}
            )
    return rows


def test_an_import_is_held_to_its_sources_answers(toy: Path, tmp_path: Path) -> None:
    """Who wrote them passes, by a part of images and scores, too; who scales pixels otherwise fails."""
    source = results_of(toy / "toy.pth", toy)
    (tmp_path / "all.json").write_text(json.dumps(source))
    middle = float(np.median([row["score"] for row in source]))
    part = [row for row in source if row["score"] > middle and row["image_id"] < 2]
    (tmp_path / "part.json").write_text(json.dumps(part))
    spec = toy_spec()
    wrong = replace(spec, std=tuple(1.1 * each for each in spec.std))
    save_checkpoint(tmp_path / "wrong.pth", Checkpoint(wrong, toy_model(spec).state_dict()))
    labels = ["--images", toy / "images", "--annotations", toy / "annotations.json"]
    for name, count in (("all", len(source)), ("part", len(part))):
        result = run(
            toy / "toy.pth", "--answers", tmp_path / f"{name}.json", *labels, "--json", tmp_path / "v.json"
        )
        assert result.exit_code == 0, result.output
        (found,) = json.loads((tmp_path / "v.json").read_text())["candidates"]
        assert found["boxes"]["matched"] > 0.99 * count > 40 and found["boxes"]["alone"] == 0
    result = run(tmp_path / "wrong.pth", "--answers", tmp_path / "all.json", *labels)
    assert result.exit_code == 1 and "look at what `import` assumed" in result.stdout
    for name, content, message in (
        ("other", [source[0] | {"category_id": 77}], "the detector has no category 77"),
        ("labels", {"annotations": []}, "no COCO results"),
        ("polygon", [source[0] | {"bbox": [1, 2, 3, 4, 5, 6]}], "no COCO results"),
        ("words", [source[0] | {"score": "high"}], "no COCO results"),
        ("lists", [source[0] | {"category_id": [1]}], "no COCO results"),
        ("images", [source[0] | {"image_id": 77}], "none of the images"),
    ):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
        refused(run(toy / "toy.pth", "--answers", tmp_path / f"{name}.json", *labels), 3, message)
    refused(run(toy / "toy.pth", "--answers", tmp_path / "all.json", *labels[:2]), 2, "--annotations says which")


@pytest.mark.server
def test_a_server_with_other_classes(others: Path, server: TritonServer) -> None:
    result = run(others / "name.pth", "--server", server.grpc_url, "--images", others / "images")
    assert result.exit_code == 3
    assert "number 1 of its classes is 'box', not 'crate'" in result.stderr


def test_a_checkpoint_runs_at_another_size(others: Path, toy_onnx: Path) -> None:
    words = ["--images", others / "images", "--count", 1]
    result = run(others / "size.pth", toy_onnx, *words)
    assert result.exit_code == 3 and "--size 128 192" in result.stderr
    assert run(others / "size.pth", toy_onnx, *words, "--size", 128, 192).exit_code == 0
    fixed = run(toy_onnx, toy_onnx, *words, "--size", 128, 128)
    assert fixed.exit_code == 2 and "its size is fixed" in fixed.stderr


def test_topk_cuts_by_hand() -> None:
    spec = replace(toy_spec(), topk_candidates=2)
    first, second = (logits for logits, _ in spec.head_names[:2])
    full, other = np.full((2, 6), -9.0), np.full((2, 6), -9.0)
    full[1, :3], other[1, :2] = (1.0, 3.0, 0.0), 2.0  # three where two are taken, and two
    heads = {first: full, second: other}
    assert topk_cuts(spec, heads, 0) == topk_cuts(spec, {}, 1) == ()
    assert topk_cuts(spec, heads, 1) == pytest.approx((1 / (1 + math.exp(-1)),))


def test_heads_without_their_names_are_not_compared(toy: Path, toy_onnx: Path, tmp_path: Path) -> None:
    def renamed(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            for names in (node.input, node.output):
                for place, name in enumerate(names):
                    names[place] = "other" if name == "cls_logits_p3" else name

    other = graphs.changed(toy_onnx, tmp_path / "other.onnx", renamed)
    result = run(toy / "toy.pth", other, "--images", toy / "images", "--count", 1, "--runtime", "openvino")
    assert result.exit_code == 0 and "exposes no heads" in result.stdout
