import pytest
import torch
from torch import nn

from training.backbones import ResNet
from training.spec import BACKBONES

# torchvision's published parameter counts, less the classifier's 512 or 2048 x 1000 + 1000.
PARAMETERS = {
    "resnet18": 11_689_512 - 513_000,
    "resnet34": 21_797_672 - 513_000,
    "resnet50": 25_557_032 - 2_049_000,
    "resnet101": 44_549_160 - 2_049_000,
    "resnet152": 60_192_808 - 2_049_000,
}


@pytest.mark.parametrize("name", BACKBONES)
def test_parameter_counts_are_the_published_ones(name: str) -> None:
    with torch.device("meta"):
        model = ResNet(name)
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
        assert list(ResNet(name).state_dict()) == expected


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
    ],
)
def test_shapes_are_torchvisions(name: str, key: str, shape: tuple[int, ...]) -> None:
    with torch.device("meta"):
        assert tuple(ResNet(name).state_dict()[key].shape) == shape


def test_bottlenecks_stride_in_the_middle() -> None:
    with torch.device("meta"):
        block = ResNet("resnet50").layer2[0]
    strides = {n: module.stride for n, module in block.named_modules() if isinstance(module, nn.Conv2d)}
    assert strides == {"conv1": (1, 1), "conv2": (2, 2), "conv3": (1, 1), "downsample.0": (2, 2)}


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
@pytest.mark.parametrize("size", [(32, 32), (65, 97), (64, 200)])
def test_features_have_the_stride_rounded_up(name: str, size: tuple[int, int]) -> None:
    model = ResNet(name, width=8).eval()
    with torch.inference_mode():
        features = model(torch.zeros(1, 3, *size))
    for feature, stride, channels in zip(features, (8, 16, 32), model.channels, strict=True):
        assert feature.shape == (1, channels, -(-size[0] // stride), -(-size[1] // stride))
