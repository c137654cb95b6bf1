"""DALI shows the network what the torch loader does: the same pictures, views and boxes."""

from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from retinaserve.training.data.augment import LADDER, Batch, StreamSettings
from retinaserve.training.data.dataset import CocoDataset
from retinaserve.training.data.loaders import training_batches
from retinaserve.training.errors import UserError
from retinaserve.training.images.letterbox import letterbox
from retinaserve.training.spec import DetectorSpec
from tests.coco import write_coco
from tests.images import checker, encode

SPEC = DetectorSpec.create(["a", "b"], size=(96, 128), category_ids=[3, 7])
# Two decoders and two resizes: a level or two, more where an edge is.
MEAN_DIFFERENCE, DIFFERENCE_OF_MOST, LARGEST = 0.5, 3, 24
OF_MOST_SCALED = 6  # of a decoding at 1.5 times what is seen and one of all pixels, contrast raised


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> CocoDataset:
    """JPEGs and PNGs, one lying on its side, one grey; a crowd, a box without an area, one without boxes."""
    folder = tmp_path_factory.mktemp("mixed")
    rng = np.random.default_rng(0)
    images, boxes = {}, []
    for number in range(6):
        height, width = 90 + 20 * number, 200 - 15 * number
        coarse = rng.integers(0, 256, (8, 10, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        exif = Image.Exif()
        if number == 1:
            exif[0x0112] = 6
        if number == 2:
            picture = picture.convert("L")
        name = f"{number}.{'png' if number == 3 else 'jpg'}"
        picture.save(folder / name, exif=exif, **({} if number == 3 else {"quality": 95}))
        images[number] = name
        if number != 4:
            for box, crowd in (([10, 20, 40, 30], 0), ([50, 10, 30, 60], int(number == 5)), ([5, 5, 0, 9], 0)):
                boxes.append((number, 7, box, {"iscrowd": crowd}))
    return CocoDataset(folder, write_coco(folder / "annotations.json", images, boxes, {3: "a", 7: "b"}))


def batches(
    data: CocoDataset, count: int, first: int = 0, spec: DetectorSpec = SPEC, **settings: object
) -> list[Batch]:
    stream = training_batches(data, spec, StreamSettings(**{"batch": 4, **settings}), first=first)  # type: ignore[arg-type]
    return list(islice(stream, count))


def assert_same(ours: list[Batch], theirs: list[Batch], most: int = DIFFERENCE_OF_MOST) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert one.image_ids == other.image_ids and one.images.shape == other.images.shape
        for first, second in zip(one.targets, other.targets, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
        difference = (one.images.int() - other.images.int()).abs().float()
        assert difference.mean() < MEAN_DIFFERENCE and difference.max() <= LARGEST
        assert difference.quantile(0.99) <= most


@pytest.mark.parametrize("frame", [{}, {"shorter": 80, "longest": 160}], ids=["letterbox", "shorter side"])
@pytest.mark.parametrize("augment", LADDER)
def test_both_loaders_give_the_same_batches(data: CocoDataset, augment: str, frame: dict[str, int]) -> None:
    torch_batches = batches(data, 3, augment=augment, **frame)
    assert_same(torch_batches, batches(data, 3, augment=augment, loader="dali", **frame))
    assert sum(len(target.boxes) for batch in torch_batches for target in batch.targets) > 0
    assert any(bool(target.crowd.any()) for batch in torch_batches for target in batch.targets)


@pytest.mark.parametrize("augment", ["none", "basic"])
def test_both_loaders_give_the_same_floats(data: CocoDataset, augment: str) -> None:
    spec = replace(SPEC, pixels="float32")
    ours, theirs = (batches(data, 2, spec=spec, augment=augment, loader=each) for each in ("torch", "dali"))
    assert_same(ours, theirs)
    assert {batch.images.dtype for batch in (*ours, *theirs)} == {torch.float32}


@pytest.mark.parametrize(("rule", "share"), [("mmdetection", 0.98), ("detectron2", 0.98)])
def test_both_loaders_round_as_the_author(data: CocoDataset, rule: str, share: float) -> None:
    spec = DetectorSpec.create(["a", "b"], size=(96, 160), category_ids=[3, 7], resize_rule=rule)
    ours, theirs = (batches(data, 3, spec=spec, augment="multiscale", loader=each) for each in ("torch", "dali"))
    assert_same(ours, theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert (one.images == other.images).float().mean() > share


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> CocoDataset:
    """JPEGs of sides that no scale divides, larger than the network sees, one of them lying on its side."""
    folder = tmp_path_factory.mktemp("photos")
    for number, orientation in enumerate((1, 6, 3)):
        stored = checker(1501 - 90 * number, 1003, seed=number, cell=170).resize(
            (1207, 903), Image.Resampling.BICUBIC
        )
        (folder / f"{number}.jpg").write_bytes(encode(stored, orientation=orientation, quality=95))
    boxes = [(number, 1, [300, 300, 90, 60]) for number in range(3)]
    names = {number: f"{number}.jpg" for number in range(3)}
    return CocoDataset(folder, write_coco(folder / "annotations.json", names, boxes))


@pytest.mark.parametrize("augment", ["none", "multiscale", "photometric"])
def test_both_loaders_decode_photos_no_finer_than_they_are_seen(photos: CocoDataset, augment: str) -> None:
    whole = batches(photos, 3, batch=3, augment=augment, full_decode=True)
    scaled = batches(photos, 3, batch=3, augment=augment)
    assert_same(scaled, whole, most=OF_MOST_SCALED)
    assert any(not torch.equal(one.images, other.images) for one, other in zip(scaled, whole, strict=True))
    assert_same(scaled, batches(photos, 3, batch=3, augment=augment, loader="dali"))


def test_without_augmentation_dali_sees_what_is_served(data: CocoDataset) -> None:
    [batch] = batches(data, 1, batch=6, augment="none", loader="dali")
    assert batch.images.dtype == torch.uint8 and batch.images.is_contiguous(memory_format=torch.channels_last)
    for image, image_id in zip(batch.images, batch.image_ids, strict=True):
        served, _ = letterbox(data.load(image_id), SPEC.size, SPEC.pad_value)
        difference = np.abs(image.permute(1, 2, 0).numpy().astype(int) - served)
        assert difference.mean() < MEAN_DIFFERENCE and difference.max() <= LARGEST


@pytest.mark.parametrize("loader", ["torch", "dali"])
def test_the_stream_can_be_entered_anywhere(data: CocoDataset, loader: str) -> None:
    whole = batches(data, 4, augment="crop", loader=loader)
    late = batches(data, 2, 2, augment="crop", loader=loader)
    assert all(torch.equal(a.images, b.images) for a, b in zip(whole[2:], late, strict=True))
    assert [batch.image_ids for batch in whole[2:]] == [batch.image_ids for batch in late]


@pytest.mark.parametrize("loader", ["torch", "dali"])
def test_processes_share_a_batch(data: CocoDataset, loader: str) -> None:
    [whole] = batches(data, 1, loader=loader)
    parts = [batches(data, 1, loader=loader, rank=rank, world=2)[0] for rank in (0, 1)]
    assert whole.image_ids == [number for part in parts for number in part.image_ids]
    assert torch.equal(whole.images, torch.cat([part.images for part in parts]))


@pytest.mark.parametrize("content", [b"no picture", b"", None], ids=["text", "empty", "cut"])
def test_a_bad_image_is_named(data: CocoDataset, tmp_path: Path, content: bytes | None) -> None:
    whole = data.labels[0].path.read_bytes()
    (tmp_path / "bad.jpg").write_bytes(whole[: len(whole) // 2] if content is None else content)
    (tmp_path / "good.jpg").write_bytes(whole)
    file = write_coco(tmp_path / "annotations.json", {1: "bad.jpg", 2: "good.jpg"})
    with pytest.raises(UserError, match=r"bad\.jpg: the image can't be read"):
        batches(CocoDataset(tmp_path, file), 3, batch=2, loader="dali")
