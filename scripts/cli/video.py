"""What `predict` does with a video: a JSON line a frame, an annotated video, and how it went.

print_video("film.mp4", detector, fps=5, track=False, score=0.3, quiet=False, output=Path("boxes.mp4"))
"""

import json
import statistics
import sys
import time
from collections import deque
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from retinaserve.eval.tracks import Tracker
    from retinaserve.eval.video import Video
    from retinaserve.training.detections import Detector

LIVE_CONCURRENCY = 2  # more would only be older when they are answered
RECENT = 1000  # answers that the delay is told of


def print_video(
    source: str,
    detector: "Detector",
    *,
    fps: float | None,
    track: bool,
    score: float,
    quiet: bool,
    output: Path | None,
) -> tuple[int, int]:
    """Answer a video until it ends; return how many frames were answered, and how many were not."""
    from PIL import Image
    from tqdm import tqdm

    from retinaserve.eval.predictions import json_line
    from retinaserve.eval.tracks import Tracker
    from retinaserve.eval.video import Video, VideoWriter, detect_frames
    from retinaserve.training.detections import ImageError
    from retinaserve.training.draw import draw

    delays: deque[float] = deque(maxlen=RECENT)
    tracker = Tracker(score=score) if track else None
    failed = answered = 0
    with ExitStack() as stack:
        video = stack.enter_context(Video(source, fps=fps))
        writer = stack.enter_context(VideoWriter(output)) if output else None
        bar = stack.enter_context(
            tqdm(unit="frame", file=sys.stderr, disable=None, dynamic_ncols=True, leave=False)
        )
        # Registered last, so that Ctrl-C, which ends a camera, still tells how it went.
        stack.callback(lambda: _tell(video, answered, delays, tracker))
        for frame, answer in detect_frames(video, detector):
            bar.update()
            if isinstance(answer, ImageError):
                failed += 1
                click.secho(f"{source}, frame {frame.number}: {answer.message}", fg="red", err=True)
                continue
            answered += 1
            found = tracker.update(answer, frame.time) if tracker else answer.above(score)
            if not quiet:
                line = {"frame": frame.number, "time": round(frame.time, 6)}
                click.echo(json.dumps(line | json.loads(json_line(Path(source), found, detector.class_names))))
            if writer:
                writer.write(draw(Image.fromarray(frame.pixels), found, detector.class_names), frame.time)
            delays.append(time.monotonic() - frame.arrived)
    if output:
        click.echo(f"annotated video: {output}", err=True)
    return answered, failed


def _tell(video: "Video", answered: int, delays: "deque[float]", tracker: "Tracker | None") -> None:
    words = f"{video.decoded} frames decoded, {answered} answered"
    words += f", tracks: {tracker.count}" if tracker else ""
    if video.live:
        words += f", {video.dropped} dropped, {video.reconnected} times connected again"
    if delays:
        words += f"; from decoded to answered: median {statistics.median(delays):.2f} s, most {max(delays):.2f} s"
    click.echo(words, err=True)
