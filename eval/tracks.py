"""Tracks: which boxes of a video's frames are the same object.

    tracker = Tracker(score=0.3)
    found = tracker.update(answer, frame.time)      # Detections with track_ids, -1 where there is none yet

ByteTrack's association (Zhang et al., ECCV 2022, arXiv:2110.06864), within a class: boxes of at least `score` are
joined to tracks first, then weaker ones to the tracks that are left, so that a half hidden object keeps its
number. A filter of constant velocity, in seconds, says where a track is by now: frames may be far apart.

Of our own: `trackers` 2.6 wants numpy 2 and OpenCV, ignores classes and counts frames; edgefirst-tracker
0.38's defaults lose more objects where boxes are noisy. docs/benchmarks.md compares all three.
"""

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from retinaserve.eval.verify.matching import pair
from retinaserve.plugins.reference import iou_matrix
from retinaserve.training.detections import Detections

Array = npt.NDArray[np.float64]

WEAKEST = 0.5  # of --score, a box that goes on with a track
PATIENCE = 2.0  # seconds that an object may be hidden
STRONG_IOU, WEAK_IOU = 0.1, 0.3  # of a box and of where its track is expected
GROWTH, MOST_GROWTH = 3.0, 0.7  # of its sides a second since the last frame, where boxes do not meet otherwise
# Of an object's height: how far a box is off, how unsure a new track's place and velocity are, and how much a
# velocity changes in a second.
MEASURED, PLACE, VELOCITY, CHANGE = 0.05, 0.1, 5.0, 2.0


class _Track:
    """One object: centre x, y, width, height and their velocities (2, 4), and how unsure each is, in heights."""

    def __init__(self, kind: int, box: Array, at: float) -> None:
        self.kind, self.seen = kind, at
        self.number = 0  # until it was seen a second time
        self.state = np.stack((_centred(box), np.zeros(4)))
        self.spread = np.diag([PLACE**2, VELOCITY**2])

    def advance(self, seconds: float) -> None:
        step = np.array([[1, seconds], [0, 1]])
        noise = np.array([[seconds**3 / 3, seconds**2 / 2], [seconds**2 / 2, seconds]])
        self.state = step @ self.state
        self.spread = step @ self.spread @ step.T + CHANGE**2 * noise

    def correct(self, box: Array, at: float) -> None:
        gain = self.spread[:, 0] / (self.spread[0, 0] + MEASURED**2)
        self.state = self.state + np.outer(gain, _centred(box) - self.state[0])
        self.spread = self.spread - np.outer(gain, self.spread[0])
        self.seen = at

    @property
    def box(self) -> Array:
        x, y, width, height = self.state[0]
        half = np.array([max(width, 1), max(height, 1)]) / 2
        return np.array([x - half[0], y - half[1], x + half[0], y + half[1]])


class Tracker:
    """Numbers the objects of one video from 1; boxes of at least `score` begin tracks."""

    def __init__(self, *, score: float) -> None:
        self.score = score
        self.count = 0  # numbers given
        self._tracks: list[_Track] = []
        self._at: float | None = None

    def update(self, found: Detections, at: float) -> Detections:
        """Return a frame's boxes, weak ones only where they go on with a track; `at` is its time in seconds."""
        gap = 0.0 if self._at is None else max(0.0, at - self._at)
        self._at = at
        self._tracks = [track for track in self._tracks if at - track.seen <= PATIENCE]
        for track in self._tracks:
            track.advance(gap)
        boxes, numbers = found.boxes.astype(np.float64), np.full(len(found), -1, np.int64)
        strong = found.scores >= self.score
        weak = ~strong & (found.scores >= WEAKEST * self.score)
        joined = np.zeros(len(found), bool)
        for chosen, least, growth, least_number in (
            (strong, STRONG_IOU, 0.0, 0),
            (strong, STRONG_IOU, min(MOST_GROWTH, GROWTH * gap), 0),
            (weak, WEAK_IOU, 0.0, 1),  # a weak box makes no track certain
        ):
            rows = np.flatnonzero(chosen & ~joined)
            free = [track for track in self._tracks if track.seen != at and track.number >= least_number]
            expected = np.array([track.box for track in free]).reshape(-1, 4)
            same_class = found.classes[rows][:, None] == np.array([track.kind for track in free])
            for one, other in pair(
                iou_matrix(_grown(boxes[rows], growth), _grown(expected, growth)), same_class, least
            ):
                row, track = rows[one], free[other]
                joined[row] = True
                track.correct(boxes[row], at)
                if not track.number:
                    self.count += 1
                    track.number = self.count
                numbers[row] = track.number
        self._tracks = [track for track in self._tracks if track.number or track.seen == at]
        self._tracks += [
            _Track(int(found.classes[row]), boxes[row], at) for row in np.flatnonzero(strong & ~joined)
        ]
        return replace(found, track_ids=numbers).keep(strong | joined)


def _centred(box: Array) -> Array:
    return np.concatenate(((box[:2] + box[2:]) / 2, box[2:] - box[:2]))


def _grown(boxes: Array, share: float) -> Array:
    margin = share * (boxes[:, 2:] - boxes[:, :2])
    return np.concatenate((boxes[:, :2] - margin, boxes[:, 2:] + margin), axis=1)
