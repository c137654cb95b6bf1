from pathlib import Path

import numpy as np
import pytest
import torch
from onnxruntime import InferenceSession

from retinaserve.training.layouts import BACKBONES
from retinaserve.training.model import build_model
from retinaserve.training.model.backbones import build_backbone
from retinaserve.training.spec import NETWORK_INPUT, Network
from tests.toys import export_heads, small_spec

# The fast one's stem is of 3 x 3 and half as wide, and its first stage has a convolution in its shortcut.
FAST = 3 * (64 * 49 - 32 * 9) + 2 * 32 + 9 * 32 * 64 - (32 * 64 + 2 * 64)
# torchvision's published parameter counts, less the classifier's 512 or 2048 x 1000 + 1000; of MobileNetV2 also
# less the last 1x1 convolution, 320 x 1280, with its norm.
PARAMETERS = {
    "resnet18": 11_689_512 - 513_000,
    "resnet34": 21_797_672 - 513_000,
    "resnet50": 25_557_032 - 2_049_000,
    "resnet101": 44_549_160 - 2_049_000,
    "resnet152": 60_192_808 - 2_049_000,
    "resnext50_32x4d": 25_028_904 - 2_049_000,
    "resnext101_32x4d": 44_177_704 - 2_049_000,  # of timm; torchvision has none
    "resnext101_32x8d": 88_791_336 - 2_049_000,
    "resnext101_64x4d": 83_455_272 - 2_049_000,
    "wide_resnet50_2": 68_883_240 - 2_049_000,
    "wide_resnet101_2": 126_886_696 - 2_049_000,
    "mobilenet_v3_large": 5_483_032 - (960 * 1280 + 1280 + 1280 * 1000 + 1000) - (160 * 960 + 2 * 960),
    "efficientnet_b0": 5_288_548 - 1_281_000 - (320 * 1280 + 2 * 1280),
    "fast-n": 11_689_512 - 513_000 - FAST - sum(9 * 2 * width**2 + 2 * 2 * width for width in (64, 128, 256, 512)),
    "mobilenet_v2": 3_504_872 - 1_281_000 - (320 * 1280 + 2 * 1280),
}


@pytest.mark.parametrize("name", BACKBONES)
def test_parameter_counts_are_the_published_ones(name: str) -> None:
    with torch.device("meta"):
        model = build_backbone(Network(name))
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize(
    "name", ["resnet18", "resnet50", "resnext50_32x4d", "mobilenet_v2", "mobilenet_v3_large", "efficientnet_b0"]
)
@pytest.mark.parametrize("size", [(32, 32), (65, 97), (64, 200)])
def test_features_have_the_stride_rounded_up(name: str, size: tuple[int, int]) -> None:
    model = build_backbone(Network(name, 8)).eval()
    with torch.inference_mode():
        features = model(torch.zeros(1, 3, *size))
    for feature, stride, channels in zip(features, (8, 16, 32), model.channels, strict=True):
        assert feature.shape == (1, channels, -(-size[0] // stride), -(-size[1] // stride))


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "mobilenet_v3_large", "efficientnet_b0"])
def test_the_stages_are_the_whole_backbone_once(name: str) -> None:
    with torch.device("meta"):
        model = build_backbone(Network(name, 8))
    assert len(model.stages) == 5
    parameters = [id(each) for stage in model.stages for module in stage for each in module.parameters()]
    assert sorted(parameters) == sorted(id(each) for each in model.parameters())


def test_exported_it_answers_as_in_torch(tmp_path: Path) -> None:
    # A network with all that the default has not: depthwise convolutions, ReLU6, group norms, P6 from P5.
    spec = small_spec(["a"], size=(64, 96), backbone="mobilenet_v2", norm="group", p6_from="p5")
    torch.manual_seed(0)
    model = build_model(spec).eval()
    export_heads(model, spec, tmp_path / "heads.onnx")
    images = torch.rand(2, 3, 64, 96)
    found = InferenceSession(tmp_path / "heads.onnx").run(None, {NETWORK_INPUT: images.numpy()})
    with torch.inference_mode():
        expected = [tensor.numpy() for pair in model(images) for tensor in pair]
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)
