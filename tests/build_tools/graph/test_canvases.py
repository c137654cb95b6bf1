"""One graph for every canvas of a resize rule, in both runtimes, against the network and the reference."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from retinaserve.build_tools.export import heads_graph
from retinaserve.build_tools.graph.graft import graft
from retinaserve.build_tools.graph.onnx_io import OnnxGraph
from retinaserve.build_tools.openvino_cpu import compile_for_cpu
from retinaserve.training.spec import OUTPUTS
from retinaserve.training.trainer.validate import detect
from tests.toys import small_spec, toy_model

SIZES = [(200, 266), (266, 200), (333, 180), (12, 333), (333, 1)]  # of resized images
CASES = {  # a level has fewer logits than candidates are asked for, or many times more, or an odd number of rows
    "one class, steps of 32": ("torchvision", 1, 1000),
    "90 classes, steps of 32": ("torchvision", 90, 200),
    "steps of 128": ("odtk", 3, 50),
    "boxes end at the canvas": ("yhenon", 2, 100),
    "no steps": ("fizyr", 20, 30),
}


@pytest.mark.parametrize("name", CASES)
def test_a_graph_of_any_canvas_answers_as_the_reference(name: str, tmp_path: Path) -> None:
    rule, classes, candidates = CASES[name]
    small = {"width": 4, "fpn_channels": 8, "head_depth": 0, "topk_candidates": candidates}
    spec = small_spec([f"c{number}" for number in range(classes)], size=(200, 333), resize_rule=rule, **small)
    spec = replace(spec, clip="canvas" if rule in ("yhenon", "fizyr") else "image")
    model = toy_model(spec)
    with torch.no_grad():
        model.box_head.output.weight.mul_(0.05)
    onnx.save(graft(heads_graph(model, spec), spec), str(tmp_path / "a.onnx"))
    graph = OnnxGraph.read(tmp_path / "a.onnx")
    assert graph.inputs["image"].shape == (3, -1, -1) and graph.spec == spec, "it says that its canvas is open"
    graph.check_served()
    openvino = compile_for_cpu((tmp_path / "a.onnx").read_bytes(), threads=1).create_infer_request()
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx", providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (spec.mean, spec.std))
    found = beyond = 0
    for resized in SIZES:
        images = rng.integers(0, 256, (2, 3, *spec.resizing.canvas(resized, spec.size)), np.uint8)
        within = np.array(resized) - 0.4 * spec.resizing.by_factor  # of a side that was rounded up
        letterbox = np.array([[2 * resized[0], 3 * resized[1], *within]] * 2, np.float32)
        with torch.no_grad():
            heads = model((torch.from_numpy(images).float() / 255 - mean) / std)
        count, boxes, scores, labels = detect(spec, heads, letterbox)
        feeds = {"image": images, "letterbox": letterbox}
        results = openvino.infer(feeds)
        for answer in ([np.array(results[each]) for each in OUTPUTS], session.run(list(OUTPUTS), feeds)):
            assert answer[0].tolist() == count.tolist() and answer[3].tolist() == labels.tolist()
            np.testing.assert_allclose(answer[1], boxes, atol=5e-3)
            np.testing.assert_allclose(answer[2], scores, atol=1e-5)
        found += int(count.sum())
        beyond += int((boxes > letterbox[0, [1, 0, 1, 0]]).any(axis=2).sum())
    assert found > 100 and (beyond > 10) == (spec.clip == "canvas")
