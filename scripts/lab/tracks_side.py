"""Joins given boxes by other packages' trackers, in their own environment, for scripts/lab/tracks.py.

ENVIRONMENT/bin/python tracks_side.py boxes.json tracks.json     # with trackers and edgefirst-tracker
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import supervision
import trackers
from edgefirst.tracker import ByteTrack

STRONG, NEW, PATIENCE = 0.4, 0.5, 2.0  # the best of what was tried; the defaults are worse


def by_trackers(make: Callable[..., Any], **settings: Any) -> Callable[..., list[int]]:
    """Return a function from a frame's rows of box, score, class to their numbers, a tracker a class."""
    made: dict[int, Any] = {}

    def numbers(rows: npt.NDArray[np.float64], frame: int) -> list[int]:
        result = np.zeros(len(rows), int)
        for kind in {*made, *rows[:, 5].astype(int).tolist()}:
            tracker = made.setdefault(kind, make(**settings))
            places = np.flatnonzero(rows[:, 5] == kind)
            boxes = supervision.Detections(xyxy=rows[places, :4], confidence=rows[places, 4], data={"at": places})
            found = tracker.update(boxes)
            for place, number in zip(found.data.get("at", []), found.tracker_id, strict=True):
                result[place] = 1 + kind + 1000 * number if number >= 0 else 0
        return [int(number) for number in result]

    return numbers


def by_edgefirst(fps: float, **settings: Any) -> Callable[..., list[int]]:
    """Return the same for edgefirst-tracker; a number from the second sighting on, as for the others."""
    made: dict[int, ByteTrack] = {}
    known: dict[str, int] = {}

    def numbers(rows: npt.NDArray[np.float64], frame: int) -> list[int]:
        result = np.zeros(len(rows), int)
        for kind in {*made, *rows[:, 5].astype(int).tolist()}:
            tracker = made.setdefault(kind, ByteTrack(**settings))
            places = np.flatnonzero(rows[:, 5] == kind)
            boxes, scores = rows[places, :4].astype(np.float32), rows[places, 4].astype(np.float32)
            found = tracker.update(boxes, scores, np.zeros(len(places), np.uintp), int(frame / fps * 1e9))
            for place, track in zip(places, found, strict=True):
                if track is not None and track.count > 1:
                    result[place] = known.setdefault(track.uuid, len(known) + 1)
        return [int(number) for number in result]

    return numbers


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
