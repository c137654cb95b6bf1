"""Tracks of a drawn video against its known identities: HOTA and IDF1 by TrackEval, beside other packages.

    retinaserve data film runs/film --seconds 60
    python -m retinaserve.scripts.lab.tracks frames runs/frames
    retinaserve train runs/film.pth --images runs/frames --annotations runs/frames/train.json ...
    python -m retinaserve.scripts.lab.tracks score runs/film.pth runs/film [--beside ENVIRONMENT/bin/python]

The frames are of FILMS short films with other shapes, one in EVERY of each, to train a detector on.
`pip install --no-deps trackeval scipy tabulate`: TrackEval's metadata asks for numpy 2, its metrics do not. For
--beside, an environment of its own with trackers and edgefirst-tracker; it joins the same boxes (tracks_side.py).
"""

import argparse
import contextlib
import io
import json
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from retinaserve.build_tools.repository.builder import build
from retinaserve.eval.client.client import Client
from retinaserve.eval.tracks import Tracker
from retinaserve.eval.video import Video, detect_frames
from retinaserve.plugins.reference import iou_matrix
from retinaserve.scripts.lab import run
from retinaserve.scripts.server.triton import Server
from retinaserve.scripts.shapes.draw import CATEGORIES
from retinaserve.scripts.shapes.film import draw_film
from retinaserve.training.detections import Detections
from retinaserve.training.files import make_place, write_json

SCORES = (0.3, 0.7)  # that begin tracks of ours: by default, and as those of `trackers`
STEPS = (1, 5)  # every frame, every fifth
FILMS, SECONDS, EVERY = 80, 2.0, 10


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


def write_frames(folder: Path) -> None:
    """Draw films, and write some of their frames as JPEGs with train.json."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    ids = list(CATEGORIES.values())
    for seed in range(1, FILMS + 1):
        with tempfile.TemporaryDirectory() as scratch:
            drawn, rows, _ = draw_film(Path(scratch), size=(480, 640), seconds=SECONDS, fps=25, seed=seed)
            with Video(str(drawn)) as video:
                frames = [frame for frame in video if frame.number % EVERY == 0]
            truth = read_truth(rows, ids, video.decoded)
        for frame in frames:
            number = len(images) + 1
            height, width = frame.pixels.shape[:2]
            file = folder / f"{number:06}.jpg"
            make_place(file)
            Image.fromarray(frame.pixels).save(file, quality=95)
            images.append({"id": number, "file_name": file.name, "width": width, "height": height})
            boxes = truth[frame.number]
            for (x1, y1, x2, y2), kind in zip(boxes.boxes.tolist(), boxes.classes, strict=True):
                row = {"id": len(annotations) + 1, "image_id": number, "category_id": ids[kind], "iscrowd": 0}
                annotations.append({**row, "bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1)})
    categories = [{"id": number, "name": name} for name, number in CATEGORIES.items()]
    write_json(folder / "train.json", {"images": images, "annotations": annotations, "categories": categories})


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


def tracked(answers: Sequence[Detections], times: Sequence[float], score: float) -> list[Detections]:
    """Return the answers as our tracker gives them."""
    tracker = Tracker(score=score)
    return [tracker.update(answer, at) for answer, at in zip(answers, times, strict=True)]


def beside(python: str, answers: Sequence[Detections], fps: float, folder: Path) -> dict[str, list[Detections]]:
    """Return the same by the packages of another environment."""
    frames = [
        [[*box, score, kind] for box, score, kind in zip(*_lists(answer), strict=True)] for answer in answers
    ]
    write_json(folder / "boxes.json", {"fps": fps, "frames": frames}, indent=None)
    script = Path(__file__).with_name("tracks_side.py")
    subprocess.run([python, script, folder / "boxes.json", folder / "tracks.json"], check=True)
    results = {}
    for name, numbers in json.loads((folder / "tracks.json").read_text()).items():
        results[name] = [
            replace(answer, track_ids=np.array(ids, np.int64))
            for answer, ids in zip(answers, numbers, strict=True)
        ]
    return results


def _lists(answer: Detections) -> tuple[list[Any], list[Any], list[Any]]:
    return answer.boxes.tolist(), answer.scores.tolist(), answer.classes.tolist()


def main() -> None:
    """Write frames; or measure, print, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parts = parser.add_subparsers(dest="part", required=True)
    frames = parts.add_parser("frames")
    frames.add_argument("folder", type=Path)
    scores = parts.add_parser("score")
    scores.add_argument("model", type=Path)
    scores.add_argument("film", type=Path)
    scores.add_argument("--beside", metavar="PYTHON")
    scores.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    if chosen.part == "frames":
        write_frames(chosen.folder)
    else:
        score(chosen.model, chosen.film, chosen.beside, chosen.json)


def score(model: Path, film: Path, python: str | None, target: Path | None) -> None:
    """Track the film of a directory by all trackers, at each rate of STEPS."""
    report: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        build(model, folder / "repository")
        with (
            Server(folder / "repository") as server,
            Client(server.grpc_url) as client,
            Video(str(film / "film.mp4")) as video,
        ):
            seen = [
                (frame.time, answer)
                for frame, answer in detect_frames(video, client)
                if isinstance(answer, Detections)
            ]
            truth = read_truth(film / "film.txt", client.category_ids, len(seen))
        times = [at for at, _ in seen]
        known = [replace(frame, track_ids=None, scores=np.ones(len(frame), np.float32)) for frame in truth]
        for kind, boxes in (("boxes of the detector", [answer for _, answer in seen]), ("true boxes", known)):
            for step in STEPS:
                fps = (len(times[::step]) - 1) / (times[::step][-1] - times[0])
                found = {
                    f"ours, --score {least}": tracked(boxes[::step], times[::step], least) for least in SCORES
                }
                if python:
                    found |= beside(python, boxes[::step], fps, folder)
                report[f"{kind}, {fps:.3g} frames a second"] = {
                    name: track_scores(truth[::step], frames) for name, frames in found.items()
                }
    print(json.dumps(report, indent=2))
    if target:
        write_json(target, report)


if __name__ == "__main__":
    run(main)
