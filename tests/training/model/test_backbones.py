from pathlib import Path

import numpy as np
import pytest
import torch
from onnxruntime import InferenceSession
from torch import nn

from retinaserve.training.export import export_heads
from retinaserve.training.layouts import BACKBONES
from retinaserve.training.model import build_model
from retinaserve.training.model.backbones import build_backbone
from retinaserve.training.spec import NETWORK_INPUT, Network
from tests.toys import small_spec

# The fast ones' stem is of 3 x 3 and half as wide, and their first stage has a convolution in its shortcut.
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
    "fast-s": 11_689_512 - 513_000 - FAST,
    "mobilenet_v2": 3_504_872 - 1_281_000 - (320 * 1280 + 2 * 1280),
}


@pytest.mark.parametrize("name", BACKBONES)
def test_parameter_counts_are_the_published_ones(name: str) -> None:
    with torch.device("meta"):
        model = build_backbone(Network(name))
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize(
    ("name", "blocks", "norms", "shortcuts"),
    [
        ("resnet18", (2, 2, 2, 2), 2, {"layer2", "layer3", "layer4"}),
        ("resnet50", (3, 4, 6, 3), 3, {"layer1", "layer2", "layer3", "layer4"}),
    ],
)
def test_names_are_torchvisions(name: str, blocks: tuple[int, ...], norms: int, shortcuts: set[str]) -> None:
    def norm(prefix: str) -> list[str]:
        return [
            f"{prefix}.{part}" for part in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
        ]

    expected = ["conv1.weight", *norm("bn1")]
    for stage, count in enumerate(blocks, start=1):
        for block in range(count):
            prefix = f"layer{stage}.{block}"
            for number in range(1, norms + 1):
                expected += [f"{prefix}.conv{number}.weight", *norm(f"{prefix}.bn{number}")]
            if block == 0 and f"layer{stage}" in shortcuts:
                expected += [f"{prefix}.downsample.0.weight", *norm(f"{prefix}.downsample.1")]
    with torch.device("meta"):
        assert list(build_backbone(Network(name)).state_dict()) == expected


@pytest.mark.parametrize(
    ("name", "key", "shape"),
    [
        ("resnet18", "conv1.weight", (64, 3, 7, 7)),
        ("resnet18", "layer2.0.downsample.0.weight", (128, 64, 1, 1)),
        ("resnet18", "layer4.1.conv2.weight", (512, 512, 3, 3)),
        ("resnet50", "layer1.0.downsample.0.weight", (256, 64, 1, 1)),
        ("resnet50", "layer1.0.conv2.weight", (64, 64, 3, 3)),
        ("resnet50", "layer4.2.conv3.weight", (2048, 512, 1, 1)),
        ("resnet101", "layer3.22.conv1.weight", (256, 1024, 1, 1)),
        ("resnext50_32x4d", "layer1.0.conv1.weight", (128, 64, 1, 1)),
        ("resnext50_32x4d", "layer1.0.conv2.weight", (128, 4, 3, 3)),
        ("resnext50_32x4d", "layer4.2.conv3.weight", (2048, 1024, 1, 1)),
        ("resnext101_32x8d", "layer3.22.conv2.weight", (1024, 32, 3, 3)),
        ("mobilenet_v2", "features.0.0.weight", (32, 3, 3, 3)),
        ("mobilenet_v2", "features.1.conv.0.0.weight", (32, 1, 3, 3)),
        ("mobilenet_v2", "features.1.conv.1.weight", (16, 32, 1, 1)),
        ("mobilenet_v2", "features.1.conv.2.running_var", (16,)),
        ("mobilenet_v2", "features.6.conv.2.weight", (32, 192, 1, 1)),
        ("mobilenet_v2", "features.17.conv.0.0.weight", (960, 160, 1, 1)),
        ("mobilenet_v2", "features.17.conv.3.weight", (320,)),
    ],
)
def test_shapes_are_torchvisions(name: str, key: str, shape: tuple[int, ...]) -> None:
    with torch.device("meta"):
        assert tuple(build_backbone(Network(name)).state_dict()[key].shape) == shape


def test_bottlenecks_stride_in_the_middle() -> None:
    with torch.device("meta"):
        block = build_backbone(Network("resnet50")).layer2[0]
    strides = {n: module.stride for n, module in block.named_modules() if isinstance(module, nn.Conv2d)}
    assert strides == {"conv1": (1, 1), "conv2": (2, 2), "conv3": (1, 1), "downsample.0": (2, 2)}


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


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("resnet18", (128, 256, 512)),
        ("resnext101_32x8d", (512, 1024, 2048)),
        ("mobilenet_v2", (32, 96, 320)),  # the predecessor's laterals
    ],
)
def test_the_taps_are_as_wide_as_published(name: str, channels: tuple[int, int, int]) -> None:
    with torch.device("meta"):
        assert build_backbone(Network(name)).channels == channels


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
