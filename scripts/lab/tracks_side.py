"""Joins given boxes by other packages' trackers, in their own environment, for scripts/lab/tracks.py.

ENVIRONMENT/bin/python tracks_side.py boxes.json tracks.json     # with trackers and edgefirst-tracker
"""

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import supervision
import trackers
from edgefirst.tracker import ByteTrack

STRONG, NEW, PATIENCE = 0.4, 0.5, 2.0  # of another detector the best; beside them the defaults


Rows = npt.NDArray[np.float64]
Numbers = Callable[[Rows, int], list[int]]  # from a frame's rows of box, score, class, and its number


def by_class(
    make: Callable[[], Any], update: Callable[[Any, int, Rows, int], Iterable[tuple[int, int]]]
) -> Numbers:
    """Return what asks a tracker a class; `update(tracker, class, rows, frame)` gives rows and their numbers."""
    made: dict[int, Any] = {}

    def numbers(rows: Rows, frame: int) -> list[int]:
        result = [0] * len(rows)
        for kind in {*made, *rows[:, 5].astype(int).tolist()}:
            tracker = made.setdefault(kind, make())
            places = np.flatnonzero(rows[:, 5] == kind)
            for row, number in update(tracker, kind, rows[places], frame):
                result[places[row]] = number
        return result

    return numbers


def by_trackers(make: Callable[..., Any], **settings: Any) -> Numbers:
    """Return the numbers of a tracker of `trackers`."""

    def update(tracker: Any, kind: int, rows: Rows, frame: int) -> Iterator[tuple[int, int]]:
        data = {"at": np.arange(len(rows))}
        found = tracker.update(supervision.Detections(xyxy=rows[:, :4], confidence=rows[:, 4], data=data))
        for row, number in zip(found.data.get("at", []), found.tracker_id, strict=True):
            yield int(row), int(1 + kind + 1000 * number) if number >= 0 else 0

    return by_class(lambda: make(**settings), update)


def by_edgefirst(fps: float, **settings: Any) -> Numbers:
    """Return those of edgefirst-tracker; a number from the second sighting on, as for the others."""
    known: dict[str, int] = {}

    def update(tracker: Any, kind: int, rows: Rows, frame: int) -> Iterator[tuple[int, int]]:
        boxes, scores = rows[:, :4].astype(np.float32), rows[:, 4].astype(np.float32)
        found = tracker.update(boxes, scores, np.zeros(len(rows), np.uintp), int(frame / fps * 1e9))
        for row, track in enumerate(found):
            if track is not None and track.count > 1:
                yield row, known.setdefault(track.uuid, len(known) + 1)

    return by_class(lambda: ByteTrack(**settings), update)


def main(source: Path, target: Path) -> None:
    """Read boxes, write numbers by tracker."""
    given = json.loads(source.read_text())
    fps, frames = given["fps"], [np.array(rows, float).reshape(-1, 6) for rows in given["frames"]]
    byte = {"track_activation_threshold": NEW, "high_conf_det_threshold": STRONG, "frame_rate": fps}
    sides = {
        "trackers ByteTrack": by_trackers(trackers.ByteTrackTracker, **byte, lost_track_buffer=int(30 * PATIENCE)),
        "trackers ByteTrack, defaults": by_trackers(trackers.ByteTrackTracker),
        "trackers OC-SORT, defaults": by_trackers(trackers.OCSORTTracker),
        "edgefirst ByteTrack": by_edgefirst(fps, high_conf=STRONG, update=0.5, lifespan_ns=int(PATIENCE * 1e9)),
        "edgefirst ByteTrack, defaults": by_edgefirst(fps),
    }
    results = {name: [side(rows, number) for number, rows in enumerate(frames)] for name, side in sides.items()}
    target.write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
