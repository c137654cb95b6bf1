"""The compile check from its words; what the compiler makes of graphs is tested in build_tools."""

import json
from pathlib import Path

import pytest

from retinaserve.scripts.lab.compile_check import main
from retinaserve.training.errors import UserError


def test_a_table_and_its_numbers(toy_onnx: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = tmp_path / "compile.json"
    words = [str(toy_onnx), "--target", "7.5", "--target", "8.9", "--batch", "1", "2", "4", "--json", str(report)]
    main(words)
    header, first, second = capsys.readouterr().out.splitlines()
    assert header.split() == ["graph", "GPU", "layers", "convolutions", "fallen", "MB", "seconds"]
    assert first.split()[:3] == ["model.onnx", "7.5", "T4"] and "48 fp32" in first
    assert second.split()[:3] == ["model.onnx", "8.9", "L4"]
    written = json.loads(report.read_text())
    assert written["batch"] == [1, 2, 4]
    (t4, l4) = written["results"]
    assert (t4["compute_capability"], l4["compute_capability"]) == ("7.5", "8.9")
    assert t4["report"]["convolutions"] == t4["report"]["asked"] == {"fp32": 48}
    assert t4["cut"] == "NonMaxSuppression" and t4["engine_bytes"] > 100_000 and not t4["problem"]


def truncated(good: Path, bad: Path) -> None:
    bad.write_bytes(good.read_bytes()[:5000])


def missing(good: Path, bad: Path) -> None:
    """Write nothing."""


@pytest.mark.parametrize(
    ("spoil", "words", "message", "code"),
    [
        (missing, [], "no such file", 3),
        (truncated, [], "is not an ONNX model", 3),
        (Path.symlink_to, ["--target", "9.0"], "9.0 is no target", 2),
        (Path.symlink_to, ["--batch", "4", "2", "1"], "batch sizes 4 2 1", 2),
    ],
)
def test_mistakes_are_told_before_anything_is_compiled(
    toy_onnx: Path,
    tmp_path: Path,
    spoil,
    words: list[str],
    message: str,
    code: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bad = tmp_path / "bad.onnx"
    spoil(bad, toy_onnx) if spoil is Path.symlink_to else spoil(toy_onnx, bad)
    with pytest.raises(UserError, match=message) as caught:
        main([str(bad), *words])
    assert caught.value.code == code and capsys.readouterr().out == ""


def test_what_is_refused_fails_the_check(
    toy_onnx: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import onnx

    model = onnx.load(toy_onnx)
    node = next(node for node in model.graph.node if node.op_type == "Relu")
    node.op_type, node.domain = "Sine", "elsewhere"
    model.opset_import.append(onnx.helper.make_opsetid("elsewhere", 1))
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(UserError) as caught:
        main([str(tmp_path / "model.onnx"), "--target", "8.9"])
    printed = capsys.readouterr()
    assert caught.value.code == 1 and "refused" in printed.out and "(Sine)" in printed.err
