"""The verbs as a user types them: what is on stdout, what is on stderr, and the exit code."""

import json
from pathlib import Path

import pytest
from PIL import Image

from retinaserve.scripts.server.triton import TritonServer
from tests.cli import invoke as run
from tests.cli import refused
from tests.coco import write_coco
from tests.images import checker, encode


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three images, one of them in a directory below, and what is in them."""
    images = tmp_path / "images"
    (images / "more").mkdir(parents=True)
    names = ["2.jpg", "10.jpg", "more/Ü b.png"]
    for number, name in enumerate(names):
        kind = "PNG" if name.endswith("png") else "JPEG"
        (images / name).write_bytes(encode(checker(200 + 50 * number, 160, seed=number), kind))
    boxes, labels = [(7, 40, [10, 10, 60, 60])], {40: "box", 2: "disc"}
    write_coco(tmp_path / "annotations.json", dict(enumerate(names, 7)), boxes, labels)
    return tmp_path


@pytest.mark.parametrize("verb", ["infer", "predict", "eval", "bench"])
def test_help_tells_every_default(verb: str) -> None:
    result = run(verb, "--help")
    assert result.exit_code == 0
    expected = {
        "infer": ["--batch", "[default: 8; x>=1]", "--threads"],
        "predict": ["[default: localhost:8001]", "[default: 0.3", "[default: jsonl]", "--concurrency"],
        "eval": ["--annotations", "[required]", "[default: localhost:8001]"],
        "bench": ["[default: 1:8]", "[default: 6.0", "[default: localhost]"],
    }
    text = " ".join(result.stdout.split())
    assert [word for word in expected[verb] if word not in text] == []


@pytest.mark.server
@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_predict_prints_a_line_per_image(server: TritonServer, folder: Path, protocol: str) -> None:
    url = server.grpc_url if protocol == "grpc" else server.http_url
    result = run("predict", folder / "images", "--server", url, "--protocol", protocol, "--score", 0.1)
    assert result.exit_code == 0, result.stderr
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [Path(line["file"]).name for line in lines] == ["2.jpg", "10.jpg", "Ü b.png"]
    assert [(line["width"], line["height"]) for line in lines] == [(200, 160), (250, 160), (300, 160)]
    found = [detection for line in lines for detection in line["detections"]]
    assert found and all(detection["score"] >= 0.1 for detection in found)
    assert {detection["class"] for detection in found} <= {"disc", "box", "étoile filante"}
    assert f"next: retinaserve eval --server {protocol}://{url}" in result.stderr


@pytest.mark.server
def test_predict_draws_reports_the_bad_and_answers_the_rest(server: TritonServer, folder: Path) -> None:
    (folder / "images" / "5.jpg").write_bytes(b"")
    (folder / "images" / "notes.jpg").write_text("dear diary")
    words = ["predict", folder / "images", "--server", server.grpc_url, "--output", folder / "out"]
    result = run(*words, "--format", "coco")
    assert result.exit_code == 3
    data = json.loads(result.stdout)
    assert [Path(image["file_name"]).name for image in data["images"]] == ["2.jpg", "10.jpg", "Ü b.png"]
    assert data["categories"][2] == {"id": 9, "name": "étoile filante"}
    assert "5.jpg: the image is empty" in result.stderr and "notes.jpg: the data is text" in result.stderr
    assert "2 of 5 images failed" in result.stderr
    drawn = sorted(path.relative_to(folder / "out").as_posix() for path in (folder / "out").rglob("*.*"))
    assert drawn == ["10.jpg", "2.jpg", "more/Ü b.png"]
    with Image.open(folder / "out" / "more" / "Ü b.png") as enlarged:
        assert enlarged.size == (600, 320), "too small for letters, so enlarged twice"
    quiet = run(*words, "--quiet")
    assert quiet.stdout == "" and quiet.exit_code == 3


@pytest.mark.server
def test_eval_scores_and_infer_agrees(server: TritonServer, toy_onnx: Path, folder: Path) -> None:
    labelled = ["--images", folder / "images", "--annotations", folder / "annotations.json"]
    served = run("eval", "--server", server.grpc_url, *labelled, "--json", folder / "a" / "s.json",
                 "--output", folder / "report")  # fmt: skip
    assert served.exit_code == 0, served.stderr
    offline = run("infer", toy_onnx, *labelled, "--json", folder / "o.json", "--output", folder / "found.json")
    assert offline.exit_code == 0, offline.stderr
    assert served.stdout == offline.stdout
    assert served.stdout.startswith("ap ") and "disc" in served.stdout
    for result in (served, offline):
        assert "left out: étoile filante" in result.stderr and "next: retinaserve" in result.stderr
    one, other = (json.loads((folder / name).read_text()) for name in ("a/s.json", "o.json"))
    assert one["scores"] == other["scores"] and one["images"] == 3
    for name in ("contact_sheet.jpg", "curves.png", "detections.json"):
        assert (folder / "report" / name).is_file()
    rows = json.loads((folder / "found.json").read_text())
    assert {row["image_id"] for row in rows} <= {7, 8, 9} and {row["category_id"] for row in rows} <= {2, 40}


@pytest.mark.server
def test_eval_reports_and_compares(server: TritonServer, toy_onnx: Path, folder: Path) -> None:
    labelled = ["--images", folder / "images", "--annotations", folder / "annotations.json", "--resamples", 50]
    old, new, page = folder / "old.json", folder / "new" / "new.json", folder / "new" / "report.html"
    offline = run("infer", toy_onnx, *labelled, "--json", old, "--report", folder / "old.html")
    assert offline.exit_code == 0, offline.stderr
    served = run("eval", "--server", server.grpc_url, *labelled, "--json", new, "--report", page,
                 "--baseline", old, "--max-drop", 0)  # fmt: skip
    assert served.exit_code == 0, served.stderr
    assert served.stdout.startswith(offline.stdout) and f"against {old}" in served.stdout
    assert "latency of an answer, ms: p50" in served.stderr
    assert "the server's steps were busy: preprocess" in served.stderr and f"report: {page}" in served.stderr
    one, other = (json.loads(path.read_text()) for path in (old, new))
    assert one["scores"] == other["scores"] and one["detections"] == other["detections"]
    assert one["model"]["graph_sha256"] == other["model"]["graph_sha256"] != ""
    assert set(other["latency_ms"]) == {"p50", "p90", "p95", "p99", "max"} and one["latency_ms"] == {}
    assert other["comparison"]["ap_difference"] == 0
    for path in (page, folder / "old.html"):
        assert path.read_text().startswith("<!DOCTYPE html>")
    assert sorted(path.name for path in page.parent.iterdir()) == ["new.json", "report.html"]


def test_a_drop_beyond_the_bound_fails(toy_onnx: Path, folder: Path) -> None:
    labelled = ["--images", folder / "images", "--annotations", folder / "annotations.json", "--resamples", 50]
    path = folder / "perfect.json"
    assert run("infer", toy_onnx, *labelled, "--json", path).exit_code == 0
    report = json.loads(path.read_text())
    (box,) = json.loads((folder / "annotations.json").read_text())["annotations"]
    x, y, width, height = box["bbox"]
    report["detections"] = {str(box["image_id"]): [[box["category_id"], 0.9, x, y, x + width, y + height]]}
    path.write_text(json.dumps(report))
    told = run("infer", toy_onnx, *labelled, "--baseline", path)
    assert told.exit_code == 0 and "1.000 -> 0.000   -1.0000" in told.stdout, "nothing is bounded"
    failed = run("infer", toy_onnx, *labelled, "--baseline", path, "--max-drop", 0.01)
    assert failed.exit_code == 1 and "AP fell by 1.0000, more than --max-drop 0.01 allows" in failed.stderr
    assert run("infer", toy_onnx, *labelled, "--baseline", path, "--max-drop", 1).exit_code == 0


@pytest.mark.server
def test_eval_counts_a_refused_image_as_nothing_found(server: TritonServer, folder: Path) -> None:
    (folder / "images" / "2.jpg").write_bytes(b"%PDF-1.7")
    result = run("eval", "--server", server.grpc_url, "--images", folder / "images",
                 "--annotations", folder / "annotations.json")  # fmt: skip
    assert result.exit_code == 3
    assert "2.jpg: the data is a PDF" in result.stderr and "1 of 3 images failed" in result.stderr
    assert result.stdout.splitlines()[0].split()[:2] == ["ap", "0.000"]


def test_infer_without_annotations_prints_lines(toy_onnx: Path, folder: Path) -> None:
    result = run("infer", toy_onnx, "--images", folder / "images")
    assert result.exit_code == 0 and len(result.stdout.splitlines()) == 3
    assert "next: retinaserve build" in result.stderr


@pytest.mark.server
def test_bench_prints_a_table_and_writes_it_down(server: TritonServer, folder: Path) -> None:
    outputs = ["--json", folder / "bench" / "b.json", "--plot", folder / "bench" / "b.png"]
    result = run("bench", "--server", server.grpc_url, "--images", folder / "images", "--concurrency", "1:2",
                 "--seconds", 0.9, *outputs)  # fmt: skip
    assert result.exit_code == 0, result.stdout + result.stderr
    table = result.stdout.splitlines()
    assert len(table) == 4 and [line.split()[:2] for line in table[2:]] == [["grpc", "1"], ["grpc", "2"]]
    report = json.loads((folder / "bench" / "b.json").read_text())
    assert [run["concurrency"] for run in report["runs"]] == [1, 2] and report["failures"] == []
    assert report["command"].startswith("retinaserve bench --server grpc://")
    assert (folder / "bench" / "b.png").is_file()


@pytest.mark.server
def test_predict_in_tiles(server: TritonServer, tmp_path: Path) -> None:
    (tmp_path / "large.png").write_bytes(encode(checker(400, 300), "PNG"))
    words = ["predict", tmp_path / "large.png", "--server", server.grpc_url, "--score", 0]
    plain, cut = run(*words), run(*words, "--tile", "auto", "--whole", "--output", tmp_path / "drawn")
    assert plain.exit_code == cut.exit_code == 0, cut.stderr
    few, many = json.loads(plain.stdout), json.loads(cut.stdout)
    assert len(many["detections"]) > len(few["detections"]) and (many["width"], many["height"]) == (400, 300)
    with Image.open(tmp_path / "drawn" / "large.png") as drawn:
        assert drawn.size == (400, 300)
    for tile in ("96", "128,192"):
        result = run(*words, "--tile", tile, "--format", "geojson")
        collection = json.loads(result.stdout)
        assert result.exit_code == 0 and len(collection["features"]) > 50
    assert collection["features"][0]["properties"]["class"] in ("disc", "box", "étoile filante")


def test_help_of_predict_fits_a_screen() -> None:
    assert len(run("predict", "--help").stdout.splitlines()) <= 48


MISTAKES = {
    "no tile": (["predict", "a.png", "--tile", "big"], 2, "neither auto nor H,W"),
    "a tile too small": (["predict", "a.png", "--tile", "8"], 2, "a tile of 8 x 8 pixels is too small"),
    "the whole of no tiles": (["predict", "a.png", "--whole"], 2, "--whole needs --tile"),
    "no such file": (["predict", "none.jpg"], 3, "none.jpg: no such file or directory"),
    "no server": (
        ["predict", "a.png", "--server", "127.0.0.1:1"],
        3,
        "no Triton server answers at grpc://127.0.0.1:1",
    ),
    "no address": (["predict", "a.png", "--server", "ftp://x"], 2, "server 'ftp://x'"),
    "no annotations": (["eval", "--images", ".", "--annotations", "x.json"], 3, "x.json: no such file"),
    "scores of nothing": (["infer", "m.onnx", "--images", ".", "--json", "s.json"], 2, "need --annotations"),
    "a report of nothing": (["infer", "m.onnx", "--images", ".", "--report", "r.html"], 2, "need --annotations"),
    "no place for the report": (
        ["eval", "--images", ".", "--annotations", "x.json", "--report", "a.png/r.html"],
        2,
        "a.png/r.html can't be written",
    ),
    "a bound without a baseline": (
        ["eval", "--images", ".", "--annotations", "x.json", "--max-drop", "0.1"],
        2,
        "--max-drop needs --baseline",
    ),
    "no model": (["infer", "m.onnx", "--images", "."], 3, "m.onnx: no such file"),
    "no concurrency": (["bench", "--images", "a.png", "--concurrency", "many"], 2, "'many' is none of"),
    "no bench server": (["bench", "--images", "a.png", "--server", "127.0.0.1:1"], 3, "no Triton server answers"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_answered_in_two_lines(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words, code, message = MISTAKES[case]
    monkeypatch.chdir(tmp_path)
    if any(word.startswith("a.png") for word in words):
        checker(50, 50).save("a.png")
    refused(run(*words), code, message)


@pytest.mark.server
def test_predict_goes_by_what_a_file_is_not_by_its_name(server: TritonServer, tmp_path: Path) -> None:
    kinds = {"a b (1).jpg": "PNG", "ß é 図.png": "WEBP", "'quoted'.bmp": "JPEG", "100%.tif": "BMP"}
    for name, kind in kinds.items():
        (tmp_path / name).write_bytes(encode(checker(200, 160), kind))
    result = run("predict", tmp_path, "--server", server.grpc_url, "--score", 0)
    assert result.exit_code == 0, result.stderr
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert {Path(line["file"]).name for line in lines} == set(kinds)
    assert {(line["width"], line["height"]) for line in lines} == {(200, 160)}


@pytest.mark.server
@pytest.mark.parametrize("verb", ["predict", "eval"])
def test_another_model_may_be_asked(server: TritonServer, folder: Path, verb: str) -> None:
    words = [folder / "images"] if verb == "predict" else ["--images", folder / "images"]
    words += [] if verb == "predict" else ["--annotations", folder / "annotations.json"]
    result = run(verb, *words, "--server", server.grpc_url, "--model", "detector_canary")
    assert result.exit_code == 3 and "has no model 'detector_canary'" in result.stderr
    assert run(verb, *words, "--server", server.grpc_url, "--model", "detector").exit_code == 0
