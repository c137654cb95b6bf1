import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retinaserve.training.coco import Annotations
from retinaserve.training.detections import Detections
from retinaserve.training.scoring.bootstrap import draw, interval, margin, resampled_ap
from retinaserve.training.scoring.scores import evaluate
from tests.eval.scenes import label


def random_set(folder: Path, *, images: int = 12, seed: int = 0) -> tuple[Annotations, dict[int, Detections]]:
    """Labels of three classes, one of them rare, and detections around them that are right, loose and wrong."""
    rng = np.random.default_rng(seed)
    labels: list[Any] = []
    results = {}
    for image_id in range(1, images + 1):
        corners = rng.uniform(0, 300, (rng.integers(0, 5), 2))
        boxes = np.hstack([corners, corners + rng.uniform(20, 120, corners.shape)])
        classes = rng.choice(3, len(boxes), p=[0.6, 0.35, 0.05])
        labels += [(image_id, int(c) + 1, box.tolist()) for c, box in zip(classes, boxes, strict=True)]
        loose = boxes + rng.normal(0, 8, boxes.shape)
        found = np.vstack([loose, loose + 4, rng.uniform(0, 150, (2, 4)) + np.array([0, 0, 150, 150])]).astype(
            np.float32
        )
        said = np.concatenate([classes, rng.permutation(classes), [0, 1]]).astype(np.int32)
        results[image_id] = Detections(found, rng.uniform(0.05, 1, len(found)).astype(np.float32), said)
    names = {image_id: f"{image_id}.png" for image_id in range(1, images + 1)}
    return label(folder, labels, images=names, categories={1: "a", 2: "b", 3: "rare"}), results


def repeated(truth: Annotations, results: dict[int, Detections], weights: np.ndarray) -> float | None:
    """Return pycocotools' AP of a file in which image n stands weights[n] times."""
    images, boxes, answers = {}, [], {}
    for image_id, times in zip(sorted(truth.images), weights, strict=True):
        for time in range(times):
            images[1000 * image_id + time] = ""
            answers[1000 * image_id + time] = results[image_id]
            mine = [box for box in truth.boxes if box["image_id"] == image_id]
            boxes += [{**box, "image_id": 1000 * image_id + time} for box in mine]
    numbered = tuple({**box, "id": number} for number, box in enumerate(boxes, 1))
    return evaluate(dataclasses.replace(truth, images=images, boxes=numbered), answers, (1, 2, 3)).ap


@pytest.mark.parametrize("crowds", [False, True], ids=["no crowds", "crowds"])
def test_a_draw_has_the_ap_of_a_file_with_its_images(tmp_path: Path, crowds: bool) -> None:
    truth, results = random_set(tmp_path)
    if crowds:
        boxes = tuple({**box, "iscrowd": int(box["id"] % 4 == 0)} for box in truth.boxes)
        truth = dataclasses.replace(truth, boxes=boxes)
    scores = evaluate(truth, results, (1, 2, 3))
    weights = np.vstack([np.ones((1, 12), int), draw(12, resamples=15, seed=1)])
    found = resampled_ap(scores.matches, weights)
    assert found[0] == pytest.approx(scores.ap, abs=1e-12)
    assert found == pytest.approx([repeated(truth, results, row) for row in weights], abs=1e-12)
    assert len(set(found.round(6))) > 10


def test_a_draw_without_labelled_boxes_has_no_ap(tmp_path: Path) -> None:
    truth = label(tmp_path, [(10, 7, (0, 0, 50, 50))])
    scores = evaluate(truth, {}, (7, 3))
    assert np.isnan(resampled_ap(scores.matches, np.array([[0, 2, 1]]))).all()
    assert resampled_ap(scores.matches, np.array([[2, 1, 0]])).tolist() == [0.0]
    assert interval(np.array([np.nan]), seed=0) is None


def test_the_margin_of_two_images_one_of_them_missed(tmp_path: Path) -> None:
    """Both drawn (1 of 2): recall 0.5, AP 51/101; the found one twice (1 of 4): 1; the missed one twice: 0.

    Each of 0 and 1 is a quarter of the draws, so the middle 95 % reach from 0 to 1, and half of that is 0.5.
    """
    truth = label(tmp_path, [(10, 7, (0, 0, 50, 50)), (11, 7, (0, 0, 50, 50))], images={10: "a.png", 11: "b.png"})
    box = Detections(np.array([[0, 0, 50, 50]], np.float32), np.array([0.9], np.float32), np.array([0], np.int32))
    matches = evaluate(truth, {10: box}, (7,)).matches
    weights = np.array([[1, 1], [2, 0], [0, 2]])
    assert resampled_ap(matches, weights).tolist() == pytest.approx([51 / 101, 1, 0])
    assert margin(matches) == 0.5
    assert margin(dataclasses.replace(matches, image_ids=(10,))) is None  # of one image every draw is the same


def test_draws_are_of_the_whole_set_and_repeatable() -> None:
    weights = draw(50, resamples=200, seed=3)
    assert weights.shape == (200, 50) and (weights.sum(axis=1) == 50).all()
    assert (weights == draw(50, resamples=200, seed=3)).all()
    assert (weights != draw(50, resamples=200, seed=4)).any()


def test_the_interval_is_the_middle_of_the_draws() -> None:
    found = interval(np.append(np.linspace(0, 1, 1001), np.nan), seed=7)
    assert found is not None
    assert (found.low, found.high) == pytest.approx((0.025, 0.975))
    assert (found.resamples, found.seed) == (1001, 7)


def test_the_interval_covers_what_it_claims_to(tmp_path: Path) -> None:
    """Of 25 sets drawn from one world, the intervals of most hold that world's AP."""
    worlds = [random_set(tmp_path, images=30, seed=seed) for seed in range(25)]
    scores = [evaluate(truth, results, (1, 2, 3)) for truth, results in worlds]
    # The rare class decides by its luck alone: only the common ones have an AP that sets of 30 images can tell.
    matches = [dataclasses.replace(s.matches, of_class=s.matches.of_class[:2]) for s in scores]
    every = [float(resampled_ap(m, np.ones((1, 30), int))[0]) for m in matches]
    truth = float(np.mean(every))
    found = [interval(resampled_ap(m, draw(30, resamples=200, seed=0)), seed=0) for m in matches]
    held = sum(item is not None and item.low <= truth <= item.high for item in found)
    assert held >= 20, f"{held} of 25"
