"""Tracks of boxes whose identities are known: by hand, and of a drawn video by TrackEval."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from retinaserve.eval.tracks import PATIENCE, Tracker
from retinaserve.training.detections import Detections
from tests.eval.track_scores import read_truth, track_scores


def frame(*rows: tuple[float, float, float], kinds: tuple[int, ...] = ()) -> Detections:
    """Boxes of 20 x 20 at (x, y) with a score."""
    boxes = [[x, y, x + 20, y + 20] for x, y, _ in rows]
    scores, classes = [row[2] for row in rows], kinds or (0,) * len(rows)
    return Detections.from_slots(len(rows), np.reshape(boxes, (-1, 4)), scores, classes, size=(100, 100))


def numbers(tracker: Tracker, *frames: Detections, fps: float = 25, start: float = 0) -> list[list[int]]:
    found = [tracker.update(each, start + n / fps) for n, each in enumerate(frames)]
    return [each.track_ids.tolist() for each in found if each.track_ids is not None]


def test_numbers_come_with_the_second_sighting() -> None:
    still = frame((10, 10, 0.9), (60, 60, 0.8))
    assert numbers(Tracker(score=0.3), frame(), still, still, frame(), still) == [[], [-1, -1], [1, 2], [], [1, 2]]


def test_a_box_seen_once_is_forgotten() -> None:
    tracker = Tracker(score=0.3)
    assert numbers(tracker, frame((10, 10, 0.9)), frame(), frame((10, 10, 0.9))) == [[-1], [], [-1]]
    assert tracker.count == 0


def test_weak_boxes_go_on_with_tracks_and_begin_none() -> None:
    strong, weak = frame((10, 10, 0.9)), frame((10, 10, 0.2), (60, 60, 0.2))
    tracker = Tracker(score=0.3)
    assert numbers(tracker, strong, strong, weak, weak, strong) == [[-1], [1], [1], [1], [1]]
    assert len(tracker.update(frame((10, 10, 0.1)), 0.2)) == 0, "weaker than half of it"


def test_classes_are_not_mixed() -> None:
    """Two objects of different classes that change places between two frames."""
    before = frame((10, 10, 0.9), (14, 10, 0.8), kinds=(0, 1))
    after = frame((14, 10, 0.9), (10, 10, 0.8), kinds=(0, 1))
    assert numbers(Tracker(score=0.3), before, before, after, after) == [[-1, -1], [1, 2], [1, 2], [1, 2]]


def test_two_that_cross_keep_their_numbers() -> None:
    """Towards each other at 4 pixels a frame, one box hidden by the other for five frames in the middle."""
    frames = []
    for n in range(26):
        pair = ((4.0 * n, 10.0, 0.9), (100 - 4.0 * n, 14.0, 0.8))
        frames.append(frame(*(pair[:1] if 10 <= n <= 14 else pair)))
    found = numbers(Tracker(score=0.3), *frames)
    assert found[1] == [1, 2] and found[-1] == [1, 2]
    assert {number for row in found[1:] for number in row} == {1, 2}


@pytest.mark.parametrize(("hidden", "number"), [(PATIENCE - 0.2, 1), (PATIENCE + 0.2, -1)])
def test_patience_is_in_seconds(hidden: float, number: int) -> None:
    still = frame((10, 10, 0.9))
    for fps in (5, 50):
        tracker = Tracker(score=0.3)
        assert numbers(tracker, still, still, fps=fps) == [[-1], [1]]
        gone = [frame()] * int(hidden * fps - 1)
        numbers(tracker, *gone, fps=fps, start=2 / fps)
        assert numbers(tracker, still, start=1 / fps + hidden) == [[number]]


def test_few_frames_a_second_are_enough() -> None:
    """At five frames a second an object moves by more than its width."""
    frames = [frame((26.0 * n, 10, 0.9), (500 - 26.0 * n, 60, 0.9)) for n in range(8)]
    assert numbers(Tracker(score=0.3), *frames, fps=5)[1:] == [[1, 2]] * 7


def test_tracks_of_a_drawn_video(tmp_path: Path) -> None:
    """Truth with what detectors do to it: noise, missing boxes, weak ones where half hidden, and false ones."""
    pytest.importorskip("trackeval", reason="pip install --no-deps trackeval; pip install scipy tabulate")
    pytest.importorskip("av", reason="the extra [video] is not installed")
    from retinaserve.scripts.shapes.draw import CATEGORIES
    from retinaserve.scripts.shapes.scenes import draw_film

    _, path, boxes = draw_film(tmp_path, size=(240, 320), seconds=12, fps=25, seed=3)
    truth = read_truth(path, list(CATEGORIES.values()), 300)
    assert sum(map(len, truth)) == boxes
    perfect = track_scores(truth, truth)
    assert perfect["hota"] == perfect["idf1"] == 100 and perfect["switches"] == 0
    rng, tracker, found = np.random.default_rng(0), Tracker(score=0.3), []
    for n, each in enumerate(truth):
        seen = each.keep(rng.random(len(each)) < 0.93)
        false = frame(*((rng.uniform(0, 300), rng.uniform(0, 220), 0.35) for _ in range(rng.poisson(0.3))))
        noisy = Detections(
            np.concatenate((seen.boxes + rng.normal(0, 0.8, seen.boxes.shape), false.boxes)).astype(np.float32),
            np.concatenate((seen.scores * 0.9 - (seen.scores < 0.7) * 0.4, false.scores)).astype(np.float32),
            np.concatenate((seen.classes, false.classes)),
        )
        found.append(tracker.update(noisy, n / 25))
    scores = track_scores(truth, found)
    assert scores["hota"] > 73 and scores["idf1"] > 78 and scores["switches"] <= 5, scores
    confused = [replace(each, track_ids=np.arange(1, len(each) + 1)) for each in found]
    assert track_scores(truth, confused)["idf1"] < 50, "the metric tells numbers that mean nothing"
