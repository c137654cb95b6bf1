"""hotcoco, fed by the judge, against pycocotools on files and result lists as everybody feeds it, bit by bit."""

import contextlib
import io
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from retinaserve.training.scoring.judge import Found, Judge, Labels
from retinaserve.training.scoring.scores import NUMBERS, at_maximum, numbers

SETS = 120
BORDERS = (32, 96)  # sides of boxes whose areas lie on COCO's borders


def random_judge(seed: int) -> Judge:
    """Labels and detections with ties, crowds, empty classes and images, duplicates, and areas on the borders."""
    rng = np.random.default_rng(seed)
    images, classes = int(rng.integers(1, 9)), int(rng.integers(1, 5))
    image_ids = np.sort(rng.choice(1000, images, replace=False))
    category_ids = rng.choice(90, classes, replace=False)  # not sorted
    count = int(rng.integers(0, 6 * images))
    sides = np.where(
        rng.random((count, 2)) < 0.4, rng.choice(BORDERS, (count, 1)), rng.integers(1, 200, (count, 2))
    )
    boxes = np.hstack([rng.integers(0, 60, (count, 2)), sides]) * rng.choice([1.0, 0.7])
    area = boxes[:, 2] * boxes[:, 3]
    segments = rng.random(count) < 0.3  # areas of segmentations are smaller than the boxes
    labels = Labels(
        image=rng.integers(0, images, count),
        category=rng.integers(0, max(1, classes - int(rng.integers(0, 2))), count),  # one may have no label
        boxes=boxes,
        area=np.where(segments, area * rng.uniform(0.3, 1, count), area),
        crowd=rng.random(count) < rng.choice([0, 0.2, 1], p=[0.4, 0.5, 0.1]),
    )
    copies = rng.integers(0, count, int(rng.integers(0, 5 * count + 1))) if count else np.empty(0, np.int64)
    near = boxes[copies] + rng.choice([0, 1, 6], (len(copies), 1)) * rng.normal(0, 1, (len(copies), 4))
    near[:, 2:] = np.abs(near[:, 2:])
    extra = int(rng.integers(0, 10)) + int(rng.choice([0, 150], p=[0.9, 0.1]))  # more than 100 in an image
    shuffled = rng.permutation(len(copies) + extra)
    image = np.concatenate([labels.image[copies], np.zeros(extra, np.int64)])
    wrong = rng.random(len(copies)) < 0.2
    category = np.concatenate(
        [
            np.where(wrong, rng.integers(0, classes, len(copies)), labels.category[copies]),
            np.zeros(extra, np.int64),
        ]
    )
    score = rng.random(len(shuffled))
    found = Found(
        image=image,
        category=category,
        boxes=np.vstack([near, np.hstack([rng.integers(0, 60, (extra, 2)), rng.integers(1, 99, (extra, 2))])]),
        score=score.round(1) if rng.random() < 0.6 else score,  # ties
    )
    ids = tuple(int(key) for key in image_ids), tuple(int(key) for key in category_ids)
    return Judge(labels, found.at(shuffled), *ids, name="hotcoco")


def pycocotools_numbers(judge: Judge, limits: Sequence[int] = (1, 10, 100)) -> Any:
    """Return COCOeval of an annotation file and a result list with the judge's ids, or None without detections."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    labels, found, images, categories = judge.labels, judge.found, judge.image_ids, judge.category_ids
    truth = COCO()
    truth.dataset = {
        "images": [{"id": key} for key in images],
        "categories": [{"id": key, "name": str(key)} for key in categories],
        "annotations": [
            {
                "id": number + 1,
                "image_id": images[labels.image[number]],
                "category_id": categories[labels.category[number]],
                "bbox": labels.boxes[number].tolist(),
                "area": float(labels.area[number]),
                "iscrowd": int(labels.crowd[number]),
            }
            for number in range(len(labels))
        ],
    }
    results = [
        {
            "image_id": images[found.image[number]],
            "category_id": categories[found.category[number]],
            "bbox": found.boxes[number].tolist(),
            "score": float(found.score[number]),
        }
        for number in range(len(found))
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        evaluator = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluator.params.maxDets = list(limits)
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator


@pytest.mark.parametrize("start", range(0, SETS, 40))
def test_the_twelve_numbers_are_those_of_pycocotools(start: int) -> None:
    pytest.importorskip("hotcoco")
    seen = 0
    for seed in range(start, start + 40):
        judge = random_judge(seed)
        if not len(judge.found):  # loadRes fails on an empty list
            assert all(value in (0.0, None) for value in numbers(judge, judge.curves()).values())
            continue
        expected = pycocotools_numbers(judge)
        curves = judge.curves()
        by_id = np.argsort(judge.category_ids)
        assert np.array_equal(curves.precision[:, :, by_id], expected.eval["precision"]), seed
        assert np.array_equal(curves.recall[:, by_id], expected.eval["recall"]), seed
        wanted = [None if value < 0 else value for value in expected.stats]
        assert list(numbers(judge, curves).values()) == wanted, seed  # equal, not nearly
        seen += any(value not in (None, 0.0, 1.0) for value in wanted)
    assert len(NUMBERS) == 12 and seen > 24


def test_without_the_limit_of_100_the_numbers_are_those_of_pycocotools_with_another() -> None:
    dense = 0
    for seed in range(0, SETS, 2):
        judge = random_judge(seed)
        most = judge.most()
        if most <= 100:
            continue
        dense += 1
        expected = pycocotools_numbers(judge, limits=[1, 10, most])
        found = at_maximum(judge, judge.curves(limits=(1, 10, 100, most)), most)
        by_hand = [expected.eval["precision"][..., 0, 2], expected.eval["recall"][..., 0, 2]]
        by_hand = [values[values > -1].mean() if (values > -1).any() else None for values in by_hand]
        assert [found.ap, found.ar] == by_hand and found.detections == most
    assert dense > 3


def test_both_judges_match_the_same_boxes() -> None:
    pytest.importorskip("hotcoco")
    for seed in range(0, SETS, 3):
        judge = random_judge(seed)
        theirs = replace(judge, name="pycocotools").matches()
        for mine, other in zip(judge.matches(), theirs, strict=True):
            for name in ("row", "image", "score", "matched", "ignored", "label", "instances"):
                assert np.array_equal(getattr(mine, name), getattr(other, name)), (seed, name)


def test_matches_do_not_depend_on_how_many_images_are_taken_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    judge = random_judge(7)
    assert len(judge.image_ids) > 3 and sum(len(of_class.row) for of_class in judge.matches())
    whole = judge.matches()
    monkeypatch.setattr("retinaserve.training.scoring.judge.BLOCK", 2)
    for mine, other in zip(judge.matches(), whole, strict=True):
        assert np.array_equal(mine.row, other.row) and np.array_equal(mine.label, other.label)
        assert np.array_equal(mine.instances, other.instances)


def test_pycocotools_stands_in_for_a_judge_that_is_not_installed() -> None:
    code = """
import sys; sys.modules["hotcoco"] = None
from tests.training.scoring.test_judge import random_judge
from dataclasses import replace
judge = random_judge(3)
print(replace(judge, name=None).ap50() == replace(judge, name="pycocotools").ap50())
judge.ap50()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "True\n" and "ModuleNotFoundError: import of hotcoco" in done.stderr
