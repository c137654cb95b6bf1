import itertools
from typing import Any

import pytest
import torch
from torch import nn

from retinaserve.training.errors import UserError
from retinaserve.training.model import build_model
from retinaserve.training.model.retinanet import FeaturePyramid
from retinaserve.training.spec import NORMS, DetectorSpec, Network


def small(size: tuple[int, int], depth: int = 1, norm: str = "none", **network: Any) -> DetectorSpec:
    design = {"backbone": "resnet18", "width": 8, "fpn_channels": 8, "head_depth": depth, "norm": norm, **network}
    return DetectorSpec.create(["a", "b", "c"], size=size, **design)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("size", [(32, 32), (256, 256), (200, 333), (33, 64)])
def test_outputs_have_the_shapes_of_the_spec(size: tuple[int, int], norm: str) -> None:
    spec = small(size, norm=norm)
    with torch.inference_mode():
        heads = build_model(spec).eval()(torch.zeros(2, 3, *size))
    assert len(heads) == len(spec.head_names) == 5
    for level, (logits, deltas) in enumerate(heads):
        assert logits.shape == (2, 9 * 3, *spec.feature_size(level))
        assert deltas.shape == (2, 9 * 4, *spec.feature_size(level))


def test_the_published_network_has_its_published_size() -> None:
    # By hand, layer by layer: ResNet50, laterals, smoothing, P6 from C5, P7, two towers of four, 80 classes.
    by_hand = (
        23_508_032
        + (512 + 1024 + 2048) * 256 + 3 * 256
        + 3 * (9 * 256 * 256 + 256)
        + (9 * 2048 * 256 + 256)
        + (9 * 256 * 256 + 256)
        + 8 * (9 * 256 * 256 + 256)
        + (9 * 256 * 720 + 720)
        + (9 * 256 * 36 + 36)
    )  # fmt: skip
    assert by_hand == 37_968_692  # "37.97 M"
    with torch.device("meta"):
        model = build_model(DetectorSpec.create([str(number) for number in range(80)], norm="none"))
    assert sum(parameter.numel() for parameter in model.parameters()) == by_hand


def test_every_anchor_starts_at_the_prior() -> None:
    torch.manual_seed(0)
    model = build_model(small((64, 64), depth=4)).eval()
    with torch.inference_mode():
        heads = model(torch.rand(1, 3, 64, 64))
    for logits, deltas in heads:
        assert logits.sigmoid() == pytest.approx(0.01, abs=0.002)
        assert deltas == pytest.approx(0, abs=0.1)


def test_depth_zero_leaves_the_output_convolutions() -> None:
    model = build_model(small((64, 64), depth=0))
    assert [name for name, _ in model.cls_head.named_parameters()] == ["output.weight", "output.bias"]


def test_the_heads_are_shared_over_the_levels() -> None:
    model = build_model(small((64, 64)))
    names = {name.split(".")[0] for name, _ in model.named_parameters()}
    assert names == {"backbone", "fpn", "cls_head", "box_head"}
    heads = sum(p.numel() for name, p in model.named_parameters() if "head" in name)
    assert heads == 2 * (9 * 8 * 8 + 8) + (9 * 8 * 27 + 27) + (9 * 8 * 36 + 36)


def test_a_pyramid_adds_the_coarser_level_to_the_finer() -> None:
    # One channel, laterals and smoothing that copy: every level is the sum of itself and those above it.
    pyramid = FeaturePyramid((1, 1, 1), Network(fpn_channels=1, norm="none"))
    with torch.no_grad():
        for convolution in (*pyramid.laterals, *pyramid.smooth):
            convolution.weight.zero_()
            convolution.weight[0, 0, convolution.weight.shape[2] // 2, convolution.weight.shape[3] // 2] = 1
    c3, c4, c5 = torch.ones(1, 1, 5, 7), 10 * torch.ones(1, 1, 3, 4), torch.tensor([[[[100.0, 200], [300, 400]]]])
    with torch.no_grad():
        p3, p4, p5, p6, p7 = pyramid((c3, c4, c5))
    assert torch.equal(p5, c5)
    rows = [[110, 110, 210, 210], [110, 110, 210, 210], [310, 310, 410, 410]]
    assert torch.equal(p4, torch.tensor(rows, dtype=torch.float32)[None, None])
    assert p3.shape == (1, 1, 5, 7) and p3[0, 0, 0, 0] == 111 and p3[0, 0, 4, 6] == 411
    assert p6.shape == p7.shape == (1, 1, 1, 1)


def test_with_norms_the_convolutions_are_shared_and_the_statistics_are_not() -> None:
    model = build_model(small((64, 64), depth=2, norm="batch"))
    assert len(model.cls_head.convs) == 2 and [len(level) for level in model.cls_head.norms] == [2] * 5
    norms = [name for name, module in model.fpn.named_modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == 3 + 3 + 2
    model.train()(torch.rand(2, 3, 128, 128))
    # The first step moves every running mean, each level's by its own.
    means = [level[0].running_mean for level in model.cls_head.norms]
    assert all(not torch.equal(first, second) for first, second in itertools.pairwise(means))


def test_norms_fold_away_at_inference() -> None:
    # Every norm follows a convolution directly, so an exporter can fold it: no other layer has statistics.
    model = build_model(small((64, 64), depth=1, norm="batch"))
    biased = {n for n, m in model.named_modules() if isinstance(m, nn.Conv2d) and m.bias is not None}
    assert biased == {"cls_head.output", "box_head.output"}


def test_group_norms_are_shared_by_the_levels_and_can_spare_the_pyramid() -> None:
    model = build_model(small((64, 64), depth=2, norm="group", pyramid_norm=False, fpn_channels=64))
    assert [len(level) for level in model.cls_head.norms] == [2]
    assert isinstance(model.fpn.p6, nn.Conv2d) and model.fpn.p6.bias is not None
    norms = [module for module in model.modules() if isinstance(module, nn.GroupNorm)]
    assert [(norm.num_groups, norm.num_channels) for norm in norms] == [(32, 64)] * 4


def test_frozen_stages_keep_still_in_training() -> None:
    model = build_model(small((64, 64), norm="batch"))
    model.freeze(2)
    model.eval().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    sum(logits.sum() + deltas.sum() for logits, deltas in model(torch.rand(2, 3, 64, 64))).backward()
    learning = {
        name.split(".")[1] for name, each in model.backbone.named_parameters(prefix="x") if each.requires_grad
    }
    assert learning == {"layer2", "layer3", "layer4"}
    moved = {
        name.split(".")[1] for name, value in model.state_dict().items() if not torch.equal(value, before[name])
    }
    assert moved >= {"layer2", "layer4"} and not moved & {"conv1", "bn1", "layer1"}
    assert all(each.grad is None for each in model.backbone.layer1.parameters())


def test_an_old_spec_without_the_newer_fields_is_read() -> None:
    spec = small((64, 64), norm="batch")
    text = spec.to_json().replace(', "p6_from": "c5", "pyramid_norm": true', "")
    assert "p6" not in text and DetectorSpec.from_json(text) == spec


def test_an_unknown_norm_is_refused() -> None:
    with pytest.raises(UserError, match="network norm is 'layer'"):
        small((64, 64), norm="layer")
