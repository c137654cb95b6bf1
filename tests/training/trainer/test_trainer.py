import json
import math
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from retinaserve.training.checkpoint import Checkpoint, load, load_model, save
from retinaserve.training.data.dataset import CocoDataset
from retinaserve.training.errors import UserError
from retinaserve.training.model import build_model
from retinaserve.training.spec import DetectorSpec
from retinaserve.training.trainer.config import TrainConfig
from retinaserve.training.trainer.progress import Progress, metrics_path, read_metrics
from retinaserve.training.trainer.trainer import Trainer, TrainResult, train
from retinaserve.training.trainer.validate import detect
from tests.training.squares import QUICK, SPEC, draw


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> CocoDataset:
    return draw(tmp_path_factory.mktemp("squares") / "set", 12)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, data: CocoDataset) -> Path:
    """What six iterations give that nothing interrupted."""
    path = tmp_path_factory.mktemp("whole") / "model.pth"
    run(path, SPEC, data, QUICK)
    return path


def run(path: Path, spec: DetectorSpec, data: CocoDataset, config: TrainConfig, **settings: Any) -> TrainResult:
    device = settings.pop("device", None)
    return Trainer(spec, config, device=device).fit(path, data, **settings)


def weights(path: Path) -> dict[str, torch.Tensor]:
    return dict(load(path).weights)


def equal(first: Path, second: Path) -> bool:
    one, two = weights(first), weights(second)
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_it_learns_what_a_child_sees(tmp_path: Path, data: CocoDataset) -> None:
    config = TrainConfig(150, batch=8, lr=0.005, warmup=10, augment="none", report_every=150)
    result = run(tmp_path / "model.pth", SPEC, data, config)
    assert result.last is not None and result.last.cls_loss + result.last.box_loss < 1
    spec, model = load_model(tmp_path / "model.pth")
    right = 0
    for index, labels in enumerate(data.labels):
        pixels = torch.from_numpy(np.array(data.load(index))).permute(2, 0, 1)[None].float() / 255
        image = (pixels - torch.tensor(spec.mean).view(3, 1, 1)) / torch.tensor(spec.std).view(3, 1, 1)
        with torch.inference_mode():
            _, boxes, scores, classes = detect(spec, model(image), np.full((1, 4), 64, np.float32))
        off = np.abs(boxes[0, 0] - labels.boxes[0]).max()
        right += int(classes[0, 0] == labels.classes[0] and scores[0, 0] > 0.3 and off < 6)
    assert right >= 10


def test_a_run_ends_when_validation_has_not_moved(tmp_path: Path, data: CocoDataset) -> None:
    config = TrainConfig(40, batch=2, lr=1e-12, warmup=0, augment="none", val_every=2, patience=3)
    result = run(tmp_path / "model.pth", SPEC, data, config, validation=data)
    first = 2  # of the validations; the three after it are no better
    assert result.stalled and not result.interrupted and result.iteration == first + 3 * 2
    assert result.best is not None and result.best[1] == first
    assert load(tmp_path / "model.best.pth").iteration == first
    again = run(tmp_path / "model.pth", SPEC, data, replace(config, patience=5), validation=data)
    assert again.stalled and again.iteration == first + 5 * 2 and again.best == result.best
    assert not run(tmp_path / "other.pth", SPEC, data, replace(config, iterations=10)).stalled


@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_that_goes_on_ends_where_an_uninterrupted_one_does(
    tmp_path: Path, whole: Path, data: CocoDataset, workers: int
) -> None:
    parts = tmp_path / "parts.pth"

    class Crash(Exception):
        pass

    def crash(progress: Progress) -> None:
        if progress.iteration == 4:
            raise Crash

    saving = replace(QUICK, save_every=3, workers=workers)
    with pytest.raises(Crash):
        run(parts, SPEC, data, saving, on_progress=crash)
    assert load(parts).iteration == 3
    result = run(parts, SPEC, data, saving)
    assert (result.iteration, result.trained, result.interrupted) == (6, 3, False)
    assert equal(whole, parts)
    # The crashed run's report of iteration 4 is not kept beside the one of the run that went on.
    assert [line["iteration"] for line in read_metrics(metrics_path(parts))] == [2, 4, 6]


def test_a_run_goes_on_from_a_checkpoint_of_another_memory_layout(tmp_path: Path, data: CocoDataset) -> None:
    """As of a GPU's checkpoints on a CPU, and of those that were begun before CPUs had channels last."""
    spec = replace(SPEC, network=replace(SPEC.network, width=16))
    assert Trainer(spec, QUICK).layout is torch.channels_last
    whole, parts = tmp_path / "whole.pth", tmp_path / "parts.pth"
    run(whole, spec, data, QUICK)

    def stop(progress: Progress) -> None:
        if progress.iteration == 2:
            os.kill(os.getpid(), signal.SIGINT)

    assert run(parts, spec, data, QUICK, on_progress=stop).interrupted
    found = load(parts)
    state = found.training["optimizer"]["state"]
    for moments in state.values():
        for name in ("exp_avg", "exp_avg_sq"):
            moments[name] = moments[name].contiguous()
    save(parts, found)
    assert run(parts, spec, data, QUICK).iteration == 6
    assert equal(whole, parts)


def test_a_box_weight_of_zero_leaves_the_box_head_alone(tmp_path: Path, data: CocoDataset) -> None:
    config = replace(QUICK, box_weight=0.0, weight_decay=0.0)
    run(tmp_path / "one.pth", SPEC, data, replace(config, iterations=1))
    run(tmp_path / "six.pth", SPEC, data, config)
    one, six = weights(tmp_path / "one.pth"), weights(tmp_path / "six.pth")
    assert torch.equal(one["box_head.output.weight"], six["box_head.output.weight"])
    assert not torch.equal(one["cls_head.output.weight"], six["cls_head.output.weight"])


def test_the_seed_decides(tmp_path: Path, data: CocoDataset) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run(tmp_path / f"{name}.pth", SPEC, data, replace(QUICK, seed=seed))
    assert equal(tmp_path / "a.pth", tmp_path / "b.pth")
    assert not equal(tmp_path / "a.pth", tmp_path / "c.pth")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_with_everything_saved(
    tmp_path: Path, whole: Path, data: CocoDataset, number: signal.Signals
) -> None:
    path, before = tmp_path / "model.pth", signal.getsignal(number)
    result = run(path, SPEC, data, QUICK, on_progress=lambda _: os.kill(os.getpid(), number))
    assert result.interrupted and result.iteration == load(path).iteration == 2
    assert signal.getsignal(number) is before
    assert run(path, SPEC, data, QUICK).iteration == 6
    assert equal(path, whole)


def test_a_complete_run_is_left_alone(whole: Path, data: CocoDataset) -> None:
    before = whole.read_bytes()
    result = run(whole, SPEC, data, QUICK)
    assert (result.iteration, result.trained) == (6, 0) and whole.read_bytes() == before


def test_progress_adds_up(tmp_path: Path, data: CocoDataset) -> None:
    reports: list[Progress] = []
    run(tmp_path / "model.pth", SPEC, data, QUICK, on_progress=reports.append)
    assert [report.iteration for report in reports] == [2, 4, 6]
    for report in reports:
        assert 0 <= report.data_wait <= 1 and report.images_per_second > 0
        assert report.cls_loss > 0 and report.box_loss > 0
        left, seconds_each = 6 - report.iteration, 4 / report.images_per_second
        assert report.eta == pytest.approx(left * seconds_each)
    lines = metrics_path(tmp_path / "model.pth").read_text().splitlines()
    assert [json.loads(line)["lr"] for line in lines] == [report.lr for report in reports]


def test_a_set_without_boxes_is_refused(tmp_path: Path) -> None:
    data = draw(tmp_path / "set", 3, boxes=False)
    with pytest.raises(UserError, match="no boxes to learn"):
        run(tmp_path / "model.pth", SPEC, data, QUICK)
    assert not (tmp_path / "model.pth").exists()


def test_a_loss_that_is_no_number_names_the_images_and_a_way_out(tmp_path: Path, data: CocoDataset) -> None:
    with pytest.raises(UserError) as caught:
        run(tmp_path / "model.pth", SPEC, data, replace(QUICK, iterations=60, lr=1e6, warmup=0))
    assert "the loss is " in caught.value.message and "on images " in caught.value.message
    assert "try a lower --lr than 1e+06" in caught.value.hint


@pytest.mark.parametrize("size", [(64, 64), (128, 32), (32, 130)])
def test_one_small_image_is_too_little_for_batch_norms(
    tmp_path: Path, data: CocoDataset, size: tuple[int, int]
) -> None:
    """torch's own batch norm raises where the two are refused, and takes the third: two cells of stride 128."""
    spec, config = replace(SPEC, size=size), replace(QUICK, batch=1, iterations=1)
    if max(size) > 128:
        assert run(tmp_path / "model.pth", spec, data, config).iteration == 1
    else:
        with pytest.raises(UserError, match=f"one image of {size[0]} x {size[1]} is one cell") as caught:
            run(tmp_path / "model.pth", spec, data, config)
        assert "above 128" in caught.value.hint
        plain = replace(spec, network=replace(spec.network, pyramid_norm=False, norm="none"))
        assert run(tmp_path / "plain.pth", plain, data, config).iteration == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"score_threshold": 0.1}, "score_threshold is 0.05, not 0.1"),
        ({"network": replace(SPEC.network, width=16)}, "width is 8, not 16"),
    ],
)
def test_the_checkpoint_of_another_detector_is_refused(
    tmp_path: Path, data: CocoDataset, change: dict[str, object], message: str
) -> None:
    path = tmp_path / "model.pth"
    run(path, SPEC, data, replace(QUICK, iterations=1))
    with pytest.raises(UserError, match=message):
        run(path, replace(SPEC, **change), data, QUICK)  # type: ignore[arg-type]


def test_half_precision_on_a_cpu_is_bf16_only(tmp_path: Path, data: CocoDataset) -> None:
    with pytest.raises(UserError, match="fp16 needs a GPU"):
        run(tmp_path / "model.pth", SPEC, data, replace(QUICK, precision="fp16"), device="cpu")
    # At 64 pixels P6 is 1 x 1, where torch 2.13's bf16 gradient of a strided convolution is not finite.
    spec = replace(SPEC, size=(128, 128))
    result = run(tmp_path / "model.pth", spec, data, replace(QUICK, precision="bf16"), device="cpu")
    assert result.last is not None and math.isfinite(result.last.cls_loss)
    assert all(value.dtype != torch.bfloat16 for value in weights(tmp_path / "model.pth").values())


@pytest.mark.parametrize(
    ("rule", "own"),
    {
        "fizyr": {
            "growth": "linear",
            "padding": "same",
            "stride_in": "1x1",
            "clip_margin": 1.0,
            "delta_clamp": 20.0,
        },
        "detectron2": {"p6_from": "p5", "stride_in": "1x1", "clip_margin": -1024.0},
        "mmdetection": {"p7_relu": False},
        "torchvision": {"grid": "size", "pixels": "float32"},
    }.items(),
)
def test_an_import_is_tuned_with_its_coder_anchors_and_rule(
    rule: str, own: dict[str, Any], tmp_path: Path
) -> None:
    draw(tmp_path / "set", 4)
    small = {"backbone": "resnet50", "width": 8, "fpn_channels": 8, "head_depth": 1, "norm": "none"}
    spec = DetectorSpec.create(
        ["dark", "light"], size=(64, 96), anchor_size=3.0, resize_rule=rule, category_ids=[2, 5], **small, **own
    )
    before = build_model(spec).state_dict()
    save(tmp_path / "imported.pth", Checkpoint(spec, before))
    files = {"images": tmp_path / "set", "annotations": tmp_path / "set" / "annotations.json"}
    settings = {"fine_tune": tmp_path / "imported.pth", "iters": 2, "batch": 2, "warmup": 1, "lr": 0.01}
    train(tmp_path / "tuned.pth", **files, **settings)  # type: ignore[arg-type]
    tuned = load(tmp_path / "tuned.pth")
    assert tuned.spec == spec
    assert all(torch.isfinite(value).all() for value in tuned.weights.values())
    assert not torch.equal(tuned.weights["box_head.output.weight"], before["box_head.output.weight"])


def test_the_front_takes_flags_and_goes_on(tmp_path: Path) -> None:
    draw(tmp_path / "set", 4)
    path, data = tmp_path / "model.pth", tmp_path / "set"
    files = {"images": data, "annotations": data / "annotations.json"}
    flags = {"backbone": "resnet18", "width": 8, "fpn_channels": 8, "head_depth": 1, "size": (64, 64)}
    settings = {"batch": 2, "batch_norm": "frozen", "schedule": 0.5, "iters": 4}
    result = train(path, **files, **flags, **settings)  # type: ignore[arg-type]
    assert result.iteration == result.trained == 2 and load(path).spec.network.width == 8
    assert json.loads(load(path).training["config"])["batch_norms"] == "frozen"
    again = train(path, **files, iters=3, batch=2, batch_norm="frozen", val_annotations=files["annotations"])
    assert again.trained == 1 and again.scores is not None
    words = {name: str(file) for name, file in files.items()}  # names of files do as well
    tuned = train(str(tmp_path / "tuned.pth"), **words, fine_tune=str(path), iters=1)  # type: ignore[arg-type]
    assert tuned.iteration == 1 and load(tmp_path / "tuned.pth").spec.network.width == 8
    with pytest.raises(UserError, match="was trained with --width 8"):
        train(path, **files, width=16)
