from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

from retinaserve.training.checkpoint import Backbone, Checkpoint, save, save_backbone
from retinaserve.training.errors import UserError
from retinaserve.training.model import build_model
from retinaserve.training.model.retinanet import RetinaNet
from retinaserve.training.spec import DetectorSpec, Network
from retinaserve.training.trainer.record import find_settings, read_settings
from retinaserve.training.trainer.start import CLASS_OUTPUT, detector_to_train, find_start, initialise
from tests.toys import small_spec
from tests.training.squares import draw


def detector(*classes: str, seed: int = 0, width: int = 8, fpn_channels: int = 8) -> RetinaNet:
    spec = small_spec(classes, size=(64, 64), width=width, fpn_channels=fpn_channels)
    torch.manual_seed(seed)
    return build_model(spec)


@pytest.fixture
def source(tmp_path: Path) -> tuple[Path, RetinaNet]:
    model = detector("cat", "dog", "hen", seed=1)
    torch.nn.init.normal_(model.cls_head.output.bias)
    save(tmp_path / "source.pth", Checkpoint(model.spec, model.state_dict()))
    return tmp_path / "source.pth", model


def test_the_same_detector_is_kept_whole(source: tuple[Path, RetinaNet]) -> None:
    path, old = source
    model = detector("cat", "dog", "hen")
    transfer = initialise(model, path)
    assert not transfer.replaced and not transfer.dropped
    assert all(torch.equal(value, old.state_dict()[name]) for name, value in model.state_dict().items())


def test_other_classes_replace_the_class_output_but_for_those_it_knows(source: tuple[Path, RetinaNet]) -> None:
    path, old = source
    model = detector("hen", "fox")
    fresh = model.cls_head.output.weight.detach().clone().view(9, 2, 8, 3, 3)
    transfer = initialise(model, path)
    assert transfer.replaced == ("cls_head.output.weight", "cls_head.output.bias")
    assert transfer.classes == ("hen",) and len(transfer.kept) == len(old.state_dict()) - 2
    now, before = model.cls_head.output.weight.view(9, 2, 8, 3, 3), old.cls_head.output.weight.view(9, 3, 8, 3, 3)
    assert torch.equal(now[:, 0], before[:, 2]) and torch.equal(now[:, 1], fresh[:, 1])
    bias, old_bias = model.cls_head.output.bias, old.cls_head.output.bias
    assert bias is not None and old_bias is not None
    assert torch.equal(bias.view(9, 2)[:, 0], old_bias.view(9, 3)[:, 2])
    assert torch.equal(model.box_head.output.weight, old.box_head.output.weight)
    text = str(transfer)
    assert "2 replaced" in text and "cls_head.output (2)" in text and "outputs kept of: hen" in text


def test_as_many_classes_of_other_names_don_t_fit(source: tuple[Path, RetinaNet]) -> None:
    model = detector("a", "b", "c")
    fresh = model.cls_head.output.weight.detach().clone()
    assert "cls_head.output.weight" in initialise(model, source[0]).replaced
    assert torch.equal(model.cls_head.output.weight, fresh)


def test_classes_in_another_order_keep_their_meaning(source: tuple[Path, RetinaNet]) -> None:
    path, old = source
    model = detector("hen", "cat", "dog")
    assert initialise(model, path).classes == ("hen", "cat", "dog")
    now, before = (each.cls_head.output.weight.view(9, 3, 8, 3, 3) for each in (model, old))
    assert torch.equal(now, before[:, [2, 0, 1]])


def test_an_authors_resize_rule_stays_with_his_weights(tmp_path: Path) -> None:
    spec = replace(detector("dark").spec, resize="torchvision", size=(96, 160), pixels="float32")
    save(tmp_path / "import.pth", Checkpoint(spec, build_model(spec).state_dict()))
    data = draw(tmp_path / "data", 2)

    def started(**settings: object) -> tuple[str, tuple[int, int], str]:
        found = detector_to_train(tmp_path / "new.pth", data, settings, tmp_path / "import.pth")
        return found.resize, found.size, found.pixels

    assert started() == ("torchvision", (96, 160), "float32")
    assert started(size=(64, 128)) == ("torchvision", (64, 128), "float32")
    assert started(resize_rule="letterbox", size=(64, 64)) == ("letterbox", (64, 64), "uint8")
    assert started(resize_rule="detectron2") == ("detectron2", (800, 1333), "uint8")


def test_a_backbone_leaves_pyramid_and_heads(tmp_path: Path) -> None:
    old, model = detector("a", seed=1), detector("b")
    weights = {**old.backbone.state_dict(), "fc.weight": torch.zeros(3)}
    save_backbone(tmp_path / "backbone.pth", Backbone("resnet18", 8, weights))
    transfer = initialise(model, tmp_path / "backbone.pth")
    assert {name.split(".")[0] for name in transfer.kept} == {"backbone"}
    assert {name.split(".")[0] for name in transfer.replaced} == {"fpn", "cls_head", "box_head"}
    assert transfer.dropped == ("backbone.fc.weight",) and "without a use: backbone.fc (1)" in str(transfer)
    assert all(torch.equal(v, old.backbone.state_dict()[n]) for n, v in model.backbone.state_dict().items())


def test_another_pyramid_leaves_the_backbone(source: tuple[Path, RetinaNet]) -> None:
    model = detector("cat", fpn_channels=16)
    transfer = initialise(model, source[0])
    assert "fpn.p7.weight" in transfer.replaced and "backbone.conv1.weight" in transfer.kept
    assert not transfer.classes


def test_the_start_that_comes_along_fits_its_preset_whole() -> None:
    start = find_start(Path("fast-n"))
    assert start.stat().st_size < 5e6
    values = read_settings(find_settings(Path("fast-n")))
    recipe = {str(name).replace("-", "_"): value for name, value in values.items()}
    names = {each.name for each in fields(Network)} | {"one_anchor"}
    spec = DetectorSpec.create(["cat"], **{name: recipe[name] for name in recipe if name in names})
    transfer = initialise(build_model(spec), start)
    assert set(transfer.replaced) == set(CLASS_OUTPUT) and not transfer.dropped


def test_nothing_that_fits_is_a_mistake(tmp_path: Path) -> None:
    save_backbone(tmp_path / "backbone.pth", Backbone("resnet18", 8, {"x": torch.zeros(1)}))
    with pytest.raises(UserError, match="none of its weights fit"):
        initialise(detector("a"), tmp_path / "backbone.pth")
