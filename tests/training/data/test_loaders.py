from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image

from retinaserve.build_tools.preprocess import Prepared, Preprocessor
from retinaserve.training.data.augment import (
    LADDER,
    Batch,
    Frame,
    Loader,
    Stream,
    StreamSettings,
    View,
    place,
    place_labels,
    random_view,
)
from retinaserve.training.data.dataset import CocoDataset, Labels
from retinaserve.training.data.loaders import Views, paint, training_batches
from retinaserve.training.errors import UserError
from retinaserve.training.images.letterbox import Source, letterbox
from retinaserve.training.images.resize import RESIZES, PixelType
from retinaserve.training.spec import DetectorSpec
from tests.coco import write_coco

SPEC = DetectorSpec.create(["a", "b"], size=(64, 96), category_ids=[1, 4])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> CocoDataset:
    folder = tmp_path_factory.mktemp("five")
    rng = np.random.default_rng(0)
    for number in range(5):
        width, height = 50 + 20 * number, 60
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    boxes = [(10 + number, 4, [10, 20, 20, 10]) for number in range(5) if number != 2]
    images = {10 + number: f"{number}.png" for number in range(5)}
    return CocoDataset(folder, write_coco(folder / "annotations.json", images, boxes, {1: "a", 4: "b"}))


def same(first: Batch, second: Batch) -> bool:
    pairs = zip(first.targets, second.targets, strict=True)
    return (
        first.image_ids == second.image_ids
        and torch.equal(first.images, second.images)
        and all(torch.equal(a, b) for one, other in pairs for a, b in zip(one, other, strict=True))
    )


def test_a_batch_is_images_and_targets(data: CocoDataset) -> None:
    batch = next(training_batches(data, SPEC, StreamSettings(batch=3)))
    assert batch.images.shape == (3, 3, 64, 96) and batch.images.dtype == torch.uint8
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert len(batch.targets) == len(batch.image_ids) == 3
    for target, image_id in zip(batch.targets, batch.image_ids, strict=True):
        assert target.boxes.shape == (len(target.classes), 4) and target.boxes.dtype == torch.float32
        if image_id == 12:
            assert not len(target.boxes)


@pytest.mark.parametrize("batch", [1, 2, 5, 12])
def test_every_epoch_shows_every_image_once(batch: int) -> None:
    stream = Stream(5, StreamSettings(batch=batch))
    flat = [key for keys in islice(stream, 30 // batch + 1) for key in keys][:30]
    for epoch in range(6):
        assert sorted(flat[5 * epoch : 5 * epoch + 5]) == [(epoch, index) for index in range(5)]
    orders = {tuple(index for _, index in flat[5 * epoch : 5 * epoch + 5]) for epoch in range(6)}
    assert len(orders) > 1, "never shuffled anew"


@pytest.mark.parametrize("workers", [0, 2])
def test_the_stream_can_be_entered_anywhere(data: CocoDataset, workers: int) -> None:
    whole = list(islice(training_batches(data, SPEC, StreamSettings(batch=3, seed=5)), 6))
    late = training_batches(data, SPEC, StreamSettings(batch=3, seed=5, workers=workers), first=4)
    assert all(same(a, b) for a, b in zip(whole[4:], islice(late, 2), strict=True))
    other = list(islice(training_batches(data, SPEC, StreamSettings(batch=3, seed=6)), 6))
    assert not any(same(a, b) for a, b in zip(whole, other, strict=True))


@pytest.mark.parametrize("pixels", get_args(PixelType))
@pytest.mark.parametrize("rule", RESIZES)
def test_without_augmentation_training_sees_what_is_served(
    data: CocoDataset, rule: str, pixels: PixelType
) -> None:
    spec = replace(SPEC, resize=rule, size=(min(SPEC.size), max(SPEC.size)), pixels=pixels)
    views = Views(data, spec, StreamSettings(batch=1, augment="none"))
    for index in range(len(data)):
        served, how = letterbox(data.load(index), spec.size, spec.pad_value, spec.resizing)
        for epoch in (0, 1):  # decoded, and from memory
            sample = views[epoch, index]
            assert not isinstance(sample, UserError)
            seen, target, image_id = sample
            assert seen.dtype == spec.pixels and np.array_equal(seen, served) and image_id == 10 + index
            scale = torch.tensor([how[3] / how[1], how[2] / how[0]] * 2)
            expected = torch.from_numpy(data.labels[index].boxes) * scale
            assert torch.allclose(target.boxes, expected, atol=1e-4)


@pytest.mark.parametrize("augment", LADDER)
def test_views_of_floats_are_those_of_bytes_before_they_are_rounded(data: CocoDataset, augment: str) -> None:
    settings = StreamSettings(batch=1, augment=augment, full_decode=True, jitter=(60, 200))
    for epoch in range(4):
        views = (Views(data, replace(SPEC, pixels=pixels), settings) for pixels in get_args(PixelType))
        (rounded, boxes, _), (exact, same_boxes, _) = (each[epoch, epoch % len(data)] for each in views)
        assert exact.dtype == np.float32 and torch.equal(boxes.boxes, same_boxes.boxes)
        assert np.abs(exact - rounded).max() < 3 and exact.min() >= 0 and exact.max() <= 255
        assert (np.modf(exact)[0] != 0).any()


def square(box: tuple[int, int, int, int], size: tuple[int, int] = (100, 50)) -> tuple[Image.Image, Labels]:
    """A white rectangle on black, labelled with its own box."""
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    pixels[box[1] : box[3], box[0] : box[2]] = 255
    labels = Labels(1, Path("x"), np.array([box], np.float32), np.zeros(1, np.int64), np.zeros(1, np.bool_))
    return Image.fromarray(pixels), labels


@pytest.mark.parametrize("seed", range(12))
def test_boxes_move_with_the_pixels(seed: int) -> None:
    spec = DetectorSpec.create(["a"], size=(120, 160))
    picture, labels = square((30, 10, 60, 35))
    drawn = random_view("basic", np.random.default_rng(seed))
    # The colours would blur where the box ends.
    view = View(drawn.flip, drawn.zoom, drawn.across, drawn.down)
    placement = place(view, (50, 100), Frame(spec.size))
    pixels, target = paint(Source.of(picture), placement, view, spec), place_labels(labels, placement)
    rows, columns = np.nonzero(pixels.min(axis=2) > 127)
    found = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    assert target.boxes[0].tolist() == pytest.approx(found, abs=1.5)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_is_none_is_named_from_a_worker_too(tmp_path: Path, workers: int) -> None:
    (tmp_path / "bad.png").write_text("no picture")
    dataset = CocoDataset(tmp_path, write_coco(tmp_path / "annotations.json", {1: "bad.png"}))
    with pytest.raises(UserError) as caught:
        next(training_batches(dataset, SPEC, StreamSettings(batch=1, workers=workers)))
    assert caught.value.message.startswith(f"{tmp_path}/bad.png: the image can't be read")
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("loader", ["torch", "dali"])
def test_training_sees_a_value_range_as_it_is_served(tmp_path: Path, loader: Loader) -> None:
    values = np.add.outer(np.arange(48) * 40, np.arange(64) * 30).astype(np.uint16)  # of 12 bits
    Image.fromarray(values).save(tmp_path / "a.png")
    spec = DetectorSpec.create(["a"], size=(48, 64), value_range=(0, 4095))
    dataset = CocoDataset(tmp_path, write_coco(tmp_path / "annotations.json", {1: "a.png"}))
    settings = StreamSettings(batch=1, augment="none", loader=loader)
    seen = next(training_batches(dataset, spec, settings)).images[0].numpy()
    preprocessor = Preprocessor(spec.size, spec.pad_value, threads=1, value_range=spec.value_range)
    (served,) = preprocessor.run([(tmp_path / "a.png").read_bytes()])
    assert isinstance(served, Prepared) and (served.image == seen).all()
    assert (seen[0] == np.floor(255.0 * values / 4095 + 0.5)).all()
