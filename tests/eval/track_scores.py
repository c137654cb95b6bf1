"""A drawn film's truth, and TrackEval's scores of tracks against it."""

import contextlib
import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from retinaserve.plugins.reference import iou_matrix
from retinaserve.training.detections import Detections


def read_truth(path: Path, category_ids: Sequence[int], frames: int) -> list[Detections]:
    """Return the boxes of film.txt frame by frame; those of classes that are not asked for are left out."""
    rows = np.loadtxt(path, delimiter=",", ndmin=2)
    rows = rows[np.isin(rows[:, 7], category_ids)]
    truth = []
    for number in range(1, frames + 1):
        here = rows[rows[:, 0] == number]
        boxes = np.concatenate((here[:, 2:4], here[:, 2:4] + here[:, 4:6]), axis=1)
        classes = [category_ids.index(int(category)) for category in here[:, 7]]
        frame = Detections.from_slots(len(here), boxes, here[:, 8], classes)
        truth.append(replace(frame, track_ids=here[:, 1].astype(np.int64)))
    return truth


def track_scores(truth: Sequence[Detections], found: Sequence[Detections]) -> dict[str, float]:
    """Return TrackEval's numbers in percent for the boxes with a number; one of another class is no match."""
    from trackeval.metrics import CLEAR, HOTA, Identity

    sides = []
    for frames in (truth, [frame.keep(numbers_of(frame) > 0) for frame in found]):
        known, ids = np.unique(np.concatenate([numbers_of(frame) for frame in frames]), return_inverse=True)
        ends = np.cumsum([len(frame) for frame in frames])
        sides.append((frames, np.split(ids, ends[:-1]), len(known)))
    (ours, our_ids, count), (theirs, their_ids, their_count) = sides
    data = {
        "gt_ids": our_ids,
        "tracker_ids": their_ids,
        "num_gt_ids": count,
        "num_tracker_ids": their_count,
        "num_gt_dets": sum(map(len, our_ids)),
        "num_tracker_dets": sum(map(len, their_ids)),
        "num_timesteps": len(ours),
        "similarity_scores": [
            iou_matrix(one.boxes, other.boxes).astype(float) * (one.classes[:, None] == other.classes)
            for one, other in zip(ours, theirs, strict=True)
        ],
    }
    with contextlib.redirect_stdout(io.StringIO()):  # each prints its settings
        hota, identity, clear = (metric().eval_sequence(data) for metric in (HOTA, Identity, CLEAR))
    return {
        "hota": round(100 * float(hota["HOTA"].mean()), 1),
        "assa": round(100 * float(hota["AssA"].mean()), 1),
        "idf1": round(100 * float(identity["IDF1"]), 1),
        "switches": int(clear["IDSW"]),
        "tracks": their_count,
        "objects": count,
    }


def numbers_of(frame: Detections) -> npt.NDArray[np.int64]:
    """Return the numbers that a tracker gave."""
    return np.zeros(len(frame), np.int64) if frame.track_ids is None else frame.track_ids
