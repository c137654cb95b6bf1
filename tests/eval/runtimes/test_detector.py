"""Torch and ONNX offline: two implementations of the same arithmetic have to agree, image by image."""

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from retinaserve.eval.runtimes.detector import open_detector
from retinaserve.training.detections import Detections, ImageError
from retinaserve.training.errors import UserError
from tests.images import bad_images, checker, encode
from tests.toys import CATEGORY_IDS, CLASSES

IMAGES = [encode(checker(150 + 90 * n, 400 - 60 * n, seed=n, cell=15 + 9 * n)) for n in range(5)]


def assert_same(one: Detections, other: Detections) -> None:
    assert one.size == other.size
    assert one.classes.tolist() == other.classes.tolist()
    np.testing.assert_allclose(one.scores, other.scores, atol=1e-4)
    np.testing.assert_allclose(one.boxes, other.boxes, atol=1e-2)


def test_torch_and_onnx_agree(checkpoint: Path, toy_onnx: Path) -> None:
    torch_found = open_detector(checkpoint, batch=3).predict(IMAGES)
    onnx_found = open_detector(str(toy_onnx), batch=2).predict(IMAGES)
    assert sum(map(len, torch_found)) > 50
    assert torch_found[1].size == (340, 240)
    for one, other in zip(torch_found, onnx_found, strict=True):
        assert_same(one, other)


def test_onnx_runtime_steps_in_for_openvino(toy_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = open_detector(toy_onnx).predict(IMAGES)
    monkeypatch.setitem(sys.modules, "openvino", None)  # as where it is not installed
    found = open_detector(toy_onnx, threads=1).predict(IMAGES)
    for one, other in zip(found, expected, strict=True):
        assert_same(one, other)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match="neither openvino nor onnxruntime") as caught:
        open_detector(toy_onnx)
    assert "pip install" in caught.value.hint


def test_bad_images_fail_alone_and_in_their_place(toy_onnx: Path) -> None:
    detector = open_detector(toy_onnx, batch=4)
    alone = {image: detector.predict([image])[0] for image in IMAGES}
    unreadable = ImageError("the file can't be read: Permission denied")
    mixed: list[bytes | ImageError] = [unreadable]
    for number, (data, _) in enumerate(bad_images().values()):
        mixed += [data, IMAGES[number % len(IMAGES)]]
    answers = list(detector.predict_many(iter(mixed)))
    assert len(answers) == len(mixed) and answers[0] is unreadable
    for (_, words), answer in zip(bad_images().values(), answers[1::2], strict=True):
        assert isinstance(answer, ImageError) and answer.kind == "bad_image" and words in answer.message
    for image, answer in zip(mixed[2::2], answers[2::2], strict=True):
        assert isinstance(image, bytes) and isinstance(answer, Detections)
        assert_same(answer, alone[image])


def test_a_batch_without_a_good_image(toy_onnx: Path) -> None:
    detector = open_detector(toy_onnx)
    assert list(detector.predict_many([])) == detector.predict([]) == []
    assert all(isinstance(answer, ImageError) for answer in detector.predict_many([b""] * 5))
    with pytest.raises(UserError, match=r"image 2: .*empty"):
        detector.predict([IMAGES[0], b""])


def test_files_are_opened_by_what_they_are(checkpoint: Path, toy_onnx: Path) -> None:
    for path, runtime in ((checkpoint, "torch"), (toy_onnx, "OpenVINO")):
        detector = open_detector(path)
        assert detector.runtime.name == runtime
        assert (detector.class_names, detector.category_ids) == (CLASSES, CATEGORY_IDS)


def test_what_is_no_model_is_named(tmp_path: Path, toy_onnx: Path) -> None:
    (tmp_path / "text.onnx").write_text("not a model")
    (tmp_path / "model.plan").touch()
    (tmp_path / "model.txt").touch()
    bare = onnx.load(str(toy_onnx))
    del bare.metadata_props[:]
    onnx.save(bare, str(tmp_path / "bare.onnx"))
    for name, message in {
        "gone.onnx": r"gone\.onnx: no such file",
        "model.txt": r"model\.txt: not a model that runs here",
        "model.plan": r"model\.plan has no manifest",
        "text.onnx": r"text\.onnx is not an ONNX model",
        "bare.onnx": r"bare\.onnx has no 'retinaserve\.spec'",
    }.items():
        with pytest.raises(UserError, match=message):
            open_detector(tmp_path / name)


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_a_graph_that_a_runtime_refuses(toy_onnx: Path, tmp_path: Path, runtime: str) -> None:
    model = onnx.load(str(toy_onnx))
    next(node for node in model.graph.node if node.op_type == "Conv").op_type = "Convolve"
    onnx.save(model, str(tmp_path / "odd.onnx"))
    with pytest.raises(UserError, match=r"odd\.onnx: .* can't load this graph: .*Convolve"):
        open_detector(tmp_path / "odd.onnx", onnx_runtime=runtime)
