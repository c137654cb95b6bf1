"""Every family's import against what its author's own code answered; scripts/lab/authors_inside.py recorded it."""

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from retinaserve.build_tools.export import heads_graph
from retinaserve.build_tools.graph.graft import graft
from retinaserve.plugins.reference import iou_matrix
from retinaserve.scripts.lab.authors_inside import OWN_SIZES, image_of, seeded
from retinaserve.training.errors import UserError
from retinaserve.training.importers import Choices, Imported, import_content, import_weights
from retinaserve.training.importers.parts import FIRST
from retinaserve.training.model import build_model
from retinaserve.training.spec import DetectorSpec
from retinaserve.training.trainer.validate import detect

ANSWERS = Path(__file__).parent / "answers"
OWN = Choices(
    anchor_sizes=OWN_SIZES, anchor_ratios=(0.4, 1.0, 2.5), score_threshold=0.1, nms_iou=0.3, max_detections=50,
    mean=(0.5, 0.4, 0.3), std=(0.25, 0.25, 0.25), first_class=0,
)  # fmt: skip
ZERO = Choices(first_class=0)
SAID = {
    "torchvision_v1": ZERO,
    "torchvision_v2": ZERO,
    "torchvision_pool": ZERO,
    "torchvision_mobile": ZERO,
    "torchvision_mobile3": ZERO,
    "torchvision_extracted": ZERO,
    "torchvision_efficient": ZERO,
    "torchvision_own": OWN,
    "torchvision_group": OWN,
    "detectron2_3x3": Choices(style="pytorch"),
}


def answers(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(gzip.decompress((ANSWERS / f"{name}.json.gz").read_bytes()))
    return content


def imported(name: str, record: dict[str, Any], choices: Choices, *, config: bool = True) -> Imported:
    """Import the seeded weights as their author's package saves them."""
    state: Any = {
        key: torch.from_numpy(seeded(key, shape, record["tuned"])) for key, shape in record["shapes"].items()
    }
    beside: dict[str, Any] = {}
    family = name.split("_")[0]
    told = record.get("config")
    if family == "fizyr":
        content = {**state, **({"model_config": told} if config else {})}
    elif family == "mmdetection":
        content = {"state_dict": state, "meta": {"cfg": told} if config else {}}
    elif family == "deepforest":
        content, beside = state, {"config.json": told}
    else:
        content = {"model": state}
    result = import_content(content, choices, beside=beside, name="model.pth")
    assert isinstance(result, Imported)
    return result


def network_input(spec: DetectorSpec, image: np.ndarray) -> torch.Tensor:
    pixels = (image / np.float32(255) - np.float32(spec.mean)) / np.float32(spec.std)
    return torch.from_numpy(pixels.transpose(2, 0, 1)[None].astype(np.float32))


def letterbox_of(spec: DetectorSpec, height: int, width: int) -> np.ndarray:
    """Return (1, 4) of an image on this canvas: as large, or with all the padding that the author would add."""
    padding = (spec.resizing.multiple - 1) * (spec.clip == "canvas")
    return np.array([[height - padding, width - padding] * 2], np.float32)


def missing(case: dict[str, Any], boxes: Any, scores: Any, classes: Any) -> list[tuple[float, Any]]:
    """Return the author's detections above 0.1 that have no counterpart."""
    left = []
    for box, score, label in zip(case["boxes"], case["scores"], case["labels"], strict=True):
        overlap = iou_matrix(np.array([box], np.float32), boxes)[0]
        same = (classes == label) & (overlap > 0.99) & (np.abs(scores - score) < 1e-4)
        area = (box[2] - box[0]) * (box[3] - box[1])
        if score > 0.1 and area > 0 and not same.any():
            left.append((score, box))
    return left


@pytest.mark.parametrize("name", sorted(path.name.removesuffix(".json.gz") for path in ANSWERS.glob("*.gz")))
@torch.no_grad()
def test_it_answers_what_its_author_answers(name: str) -> None:
    record = answers(name)
    result = imported(name, record, SAID.get(name, Choices()))
    model = build_model(result.spec).eval()
    model.load_state_dict(result.weights)
    for case in record["cases"]:
        height, width = case["size"]
        spec = result.spec.with_size(height, width)
        letterbox = letterbox_of(spec, height, width)
        heads = model(network_input(spec, image_of((height, width))))
        (count,), boxes, scores, classes = (part[0] for part in detect(spec, heads, letterbox))
        wanted = sum(score > 0.1 for score in case["scores"])
        assert wanted >= 30
        assert not missing(case, boxes[:count], scores[:count], classes[:count])


@pytest.mark.parametrize("name", ["torchvision_own", "fizyr"])
@torch.no_grad()
def test_so_does_the_graph_that_is_served(name: str) -> None:
    """Linear growth, other strides an axis, padding and clips: in standard nodes around the decode."""
    record = answers(name)
    result = imported(name, record, SAID.get(name, Choices()))
    case = record["cases"][1]
    height, width = case["size"]
    spec = result.spec.with_size(height, width)
    model = build_model(spec).eval()
    model.load_state_dict(result.weights)
    raw = heads_graph(model, spec)
    session = onnxruntime.InferenceSession(graft(raw).SerializeToString(), providers=["CPUExecutionProvider"])
    image = image_of((height, width)).transpose(2, 0, 1)[None].astype(spec.pixels)
    letterbox = letterbox_of(spec, height, width)
    count, boxes, scores, classes = (
        part[0] for part in session.run(None, {"image": image, "letterbox": letterbox})
    )
    found = int(count[0])
    assert not missing(case, boxes[:found], scores[:found], classes[:found])
    plugins = [node for node in graft(raw, flavour="tensorrt").graph.node if node.op_type == "RetinaNetDecode"]
    assert len(plugins) == 1


@torch.no_grad()
def test_one_graph_pads_every_size_as_the_network_does() -> None:
    """TensorFlow's padding depends on whether a side is even, level by level."""
    small = {"backbone": "resnet18", "width": 8, "fpn_channels": 8, "head_depth": 0, "norm": "none"}
    spec = DetectorSpec.create(["a"], resize_rule="fizyr", padding="same", growth="linear", **small)
    torch.manual_seed(0)  # a corner's delta near zero has a logarithm that no two runtimes agree on
    model = build_model(spec).eval()
    session = onnxruntime.InferenceSession(
        heads_graph(model, spec).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    for height, width in ((256, 384), (301, 427), (250, 333)):
        image = torch.rand(1, 3, height, width)
        expected = [tensor for pair in model(image) for tensor in pair]
        for found, wanted in zip(session.run(None, {"input": image.numpy()}), expected, strict=True):
            torch.testing.assert_close(torch.from_numpy(found), wanted, rtol=1e-4, atol=1e-4)


MMDETECTION_2 = """/home/me/mmdetection/configs/_base_/models/retinanet_r50_fpn.py
model = dict(
    type='RetinaNet',
    backbone=dict(type='ResNet', depth=50, norm_cfg=dict(type='BN', requires_grad=True), style='pytorch'),
    neck=dict(type='FPN', start_level=1, add_extra_convs='on_input', num_outs=5),
    bbox_head=dict(type='RetinaHead', num_classes=80, anchor_generator=dict(
        type='AnchorGenerator', octave_base_scale=4, scales_per_octave=3, ratios=[0.5, 1.0, 2.0],
        strides=[8, 16, 32, 64, 128]), loss_cls=dict(type='FocalLoss', use_sigmoid=True)))
test_cfg = dict(nms_pre=1000, min_bbox_size=0, score_thr=0.05, nms=dict(type='nms', iou_thr=0.5), max_per_img=100)
/home/me/mmdetection/configs/_base_/datasets/coco_detection.py
img_norm_cfg = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
train_pipeline = [dict(type='LoadImageFromFile'), dict(type='Normalize', **img_norm_cfg)]
data = dict(samples_per_gpu=2, train=dict(type='CocoDataset', pipeline=train_pipeline))
/home/me/mmdetection/configs/retinanet/retinanet_r50_caffe_fpn_1x_coco.py
_base_ = './retinanet_r50_fpn_1x_coco.py'
model = dict(
    pretrained='open-mmlab://detectron2/resnet50_caffe',
    backbone=dict(norm_cfg=dict(requires_grad=False), norm_eval=True, style='caffe'),
    neck=dict(add_extra_convs='on_output'),
    bbox_head=dict(loss_cls=dict(_delete_=True, type='GHMC')))
img_norm_cfg = dict(mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], to_rgb=False)
train_pipeline = [dict(type='LoadImageFromFile'), dict(type='Normalize', **img_norm_cfg)]
data = dict(train=dict(pipeline=train_pipeline))
"""


def test_configs_of_mmdetection_2_are_read_as_those_of_3() -> None:
    """2.x wrote the files of a config one after the other, as they stand on the disk."""
    record = answers("mmdetection_caffe")
    new, old = (
        imported("mmdetection_caffe", {**record, "config": text}, Choices())
        for text in (record["config"], MMDETECTION_2)
    )
    assert old.spec == new.spec and old.notes == new.notes
    for name, value in new.weights.items():
        assert torch.equal(old.weights[name], value), name
    first = "model = dict(bbox_head=dict(type='RetinaHead', anchor_strides=[8, 16, 32, 64, 128]))"
    with pytest.raises(UserError, match="mmdetection 1"):
        imported("mmdetection_caffe", {**record, "config": first}, Choices())


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("/home/me/mm", "/home/me and my (two) cats/mm", id="folders with spaces"),
        pytest.param("\n", "\r\n", id="lines as Windows ends them"),
    ],
)
def test_a_config_of_mmdetection_2_is_read_wherever_it_lay(old: str, new: str) -> None:
    record = answers("mmdetection_caffe")
    text = MMDETECTION_2.replace(old, new)
    notes = [
        imported("mmdetection_caffe", {**record, "config": each}, Choices()).notes
        for each in (text, MMDETECTION_2)
    ]
    assert notes[0] == notes[1]


@pytest.mark.parametrize(
    ("old", "new", "name"),
    [
        ("ratios=[0.5, 1.0, 2.0]", "ratios=[0.5, 1.0, made()]", "ratios"),
        ("octave_base_scale=4", "octave_base_scale=2 * 2", "octave_base_scale"),
        ("nms_pre=1000", "nms_pre={{_base_.most}}", "nms_pre"),
        ("score_thr=0.05", "score_thr='low'", "score_thr"),
    ],
)
def test_what_a_config_of_mmdetection_computes_is_refused_by_name(old: str, new: str, name: str) -> None:
    record = {**answers("mmdetection_caffe"), "config": MMDETECTION_2.replace(old, new)}
    with pytest.raises(UserError, match=f"no plain numbers in {name}"):
        imported("mmdetection_caffe", record, Choices())


TEST_3 = "test_pipeline = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=(640, 400), keep_ratio=True)]"
TEST_2 = """data = dict(test=dict(pipeline=[dict(
    type='MultiScaleFlipAug', img_scale=(640, 400), transforms=[dict(type='Resize', keep_ratio=True)])]))"""


@pytest.mark.parametrize("text", [TEST_3, TEST_2], ids=["3.x", "2.x"])
def test_a_config_of_mmdetection_says_the_size(text: str) -> None:
    record = {**answers("mmdetection_caffe"), "config": f"{MMDETECTION_2}\n{text}\n"}
    result = imported("mmdetection_caffe", record, Choices())
    assert result.spec.size == (400, 640) and "images: 400 to 640 (mmdetection) (from the file" in str(
        result.notes
    )


DETECTRON2 = """MODEL:
  ANCHOR_GENERATOR:
    SIZES: !!python/object/apply:eval ["[[x, x * 2**(1.0/3), x * 2**(2.0/3) ] for x in [32, 64, 128, 256, 512 ]]"]
  RETINANET: {TOPK_CANDIDATES_TEST: 500}
INPUT: {MIN_SIZE_TEST: 400, MAX_SIZE_TEST: 640}
"""


def test_detectron2s_base_config_is_read_but_for_what_it_computes(tmp_path: Path) -> None:
    """configs/Base-RetinaNet.yaml computes the anchors' sizes, which yaml's safe loader refuses, file and all."""
    record = answers("detectron2")
    state = {key: torch.from_numpy(seeded(key, shape)) for key, shape in record["shapes"].items()}
    torch.save({"model": state}, tmp_path / "model.pth")
    (tmp_path / "config.yaml").write_text(DETECTRON2)
    result = import_weights(tmp_path / "model.pth", Choices())
    assert (result.spec.size, result.spec.topk_candidates) == ((400, 640), 500)
    notes = " | ".join(result.notes)
    assert "assumed, the model zoo's; config.yaml" in notes and "stride in 1x1 (assumed" in notes


def test_a_config_of_mmdetection_is_not_run(tmp_path: Path) -> None:
    made = f"__import__('os').mkdir({str(tmp_path / 'ran')!r})"
    text = (
        f"{MMDETECTION_2}\n{made}\nx = [{made} for _ in (1,)]\nmodel = dict(a={made}, b=f'{{{made}}}', **{made})\n"
    )
    imported("mmdetection_caffe", {**answers("mmdetection_caffe"), "config": text}, Choices())
    assert not (tmp_path / "ran").exists()


def test_boxes_of_yhenons_end_at_the_image_where_that_is_said() -> None:
    spec = imported("yhenon", answers("yhenon"), Choices(clip="image")).spec
    letterbox = letterbox_of(spec, 256, 384)
    assert spec.ends(letterbox) is letterbox and spec.clip_margin == -32


def test_boxes_of_fizyrs_end_at_the_last_of_whole_pixels() -> None:
    """Of 413 rows and 640 columns, 192 rows by a factor of 192 / 413: 297.53 columns, which are 298."""
    spec = imported("fizyr", answers("fizyr"), Choices(size=(192, 320))).spec
    letterbox = np.array([[413, 640, 192, 640 * 192 / 413]], np.float32)
    assert spec.clip_margin == 1 and spec.ends(letterbox)[0, 2:].tolist() == [192, 298]
    assert spec.ends(letterbox)[0, :2] == pytest.approx([413, 298 * 413 / 192], rel=1e-6), "at the same scale"


@pytest.mark.parametrize("name", ["detectron2", "mmdetection_caffe", "fizyr"])
@torch.no_grad()
def test_pixels_of_bytes_are_scaled_without_rounding(name: str) -> None:
    """To the last bit of every output, so that weights are as large as an optimizer's steps expect."""
    result = imported(name, answers(name), SAID.get(name, Choices()))
    assert np.allclose(np.multiply(result.spec.std, 255), 64)
    own = replace(result.spec, std=(1 / 255,) * 3)
    weights = {**result.weights, FIRST: result.weights[FIRST] / 64}
    image, found = image_of((96, 128)), []
    for spec, given in ((result.spec, result.weights), (own, weights)):
        model = build_model(spec).eval()
        model.load_state_dict(given)
        found.append([tensor for pair in model(network_input(spec, image)) for tensor in pair])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize(
    ("said", "classes", "ids", "told"),
    [
        ({5: "Dead", 2: "Alive", 3: "Stump"}, ("Alive", "Dead"), (2, 5), "ids of --annotations"),
        ({5: "standing", 2: "lying"}, ("standing", "lying"), (5, 2), "in its order; the file has Alive, Dead"),
        (None, ("Alive", "Dead"), (0, 1), "2, named by the file"),
    ],
    ids=["by name", "by order", "as the file"],
)
def test_names_of_the_file_find_their_ids(
    said: dict[int, str] | None, classes: tuple[str, ...], ids: tuple[int, ...], told: str
) -> None:
    result = imported("deepforest", answers("deepforest"), Choices(categories=said))
    assert (result.spec.classes, result.spec.category_ids) == (classes, ids)
    assert told in " | ".join(result.notes)


def test_what_is_assumed_is_told() -> None:
    notes = {name: " | ".join(imported(name, answers(name), Choices(), config=False).notes) for name in TOLD}
    for name, words in TOLD.items():
        for word in words:
            assert word in notes[name], (name, word, notes[name])


TOLD = {
    "torchvision_v1": ("output 0 is dropped, guessed", "anchors: sizes 32,40,50", "assumed, torchvision's own"),
    "torchvision_v2": ("v2: group norms in the heads (32 groups assumed)",),
    "mmdetection": ("guessed, the file has no config", "assumed, the style's own"),
    "fizyr": ("a training model does not say", "7 without names"),
    "yhenon": ("at most 300", "assumed, its own", "boxes end at the canvas"),
    "mlperf": ("guessed to be OpenImages'",),
    "deepforest": ("DeepForest", "2, named by the file", "score 0.1, NMS 0.05", "predict_file"),
}
