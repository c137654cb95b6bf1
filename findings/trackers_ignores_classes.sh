#!/usr/bin/env bash
# The trackers of Roboflow's `trackers`, given boxes with classes.
#
# Expected: a track is one object, so its boxes have one class: class_id is handed in and comes back beside tracker_id.
# Seen:     boxes are joined by overlap alone. A person and a dog that change places within a frame's time change
#           numbers: each number goes on with the other class. Of ByteTrack, OC-SORT and SORT alike.
# Why:      the cost of joining a box to a track is its IoU; class_id is only carried along.
# Matters:  counts by class are wrong where objects of different classes overlap, as riders and horses do. A tracker for
#           each class keeps them apart, but then each begins its numbers from 0.
. "$(dirname "$0")/_venv.sh"
pip 'trackers==2.6.1' 'supervision==0.31.2' 'numpy==2.4.6'
cat > "$folder/swap.py" <<'PYTHON'
import importlib.metadata
import sys

import numpy as np
import supervision
import trackers

LEFT, RIGHT = (100, 100, 160, 200), (130, 100, 190, 200)


def update(tracker, person, dog):
    """Return the number of each class after a frame with a person (0) and a dog (1)."""
    boxes = supervision.Detections(
        xyxy=np.array([person, dog], float), confidence=np.array([0.95, 0.9]), class_id=np.array([0, 1])
    )
    found = tracker.update(boxes)
    return dict(zip(found.class_id.tolist(), found.tracker_id.tolist(), strict=True))


wrong = 0
print("trackers", importlib.metadata.version("trackers"))
for make in (trackers.ByteTrackTracker, trackers.OCSORTTracker, trackers.SORTTracker):
    tracker = make()
    for _ in range(5):
        before = update(tracker, LEFT, RIGHT)
    after = update(tracker, RIGHT, LEFT)
    print(f"{make.__name__:18} person, dog: {before[0]}, {before[1]}; after they changed places: {after[0]}, {after[1]}")
    wrong += before[0] >= 0 and (after[0], after[1]) == (before[1], before[0])
sys.exit(wrong != 3)
PYTHON
python -W ignore "$folder/swap.py"
