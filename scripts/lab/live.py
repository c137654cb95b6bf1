"""A video file, then a live source at twice the server's capacity: frames, order, drops, delays and memory.

    retinaserve data film runs/film --size 1080 1920 --seconds 60
    python -m retinaserve.scripts.lab.live examples/shapes.pth runs/film --json runs/live.json

The live source is a real RTSP server on loopback (aio-rtsp-toolkit), which sends the film at the rate asked for,
again and again. Memory is the proportional set size of this process, and of the server's, once a second.
"""

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import psutil

from retinaserve.build_tools.repository.builder import build
from retinaserve.eval.client.client import Client
from retinaserve.eval.video import Video, detect_frames
from retinaserve.scripts.cli.video import LIVE_CONCURRENCY
from retinaserve.scripts.lab import run
from retinaserve.scripts.server.triton import Server, free_ports
from retinaserve.training.detections import Detections
from retinaserve.training.files import write_json

FACTOR = 2.0
SETTLED = 10  # seconds, before which memory may grow
RTSP = "import asyncio, sys, aio_rtsp_toolkit.server as server\n"
RTSP += "asyncio.run(server.serve(sys.argv[1], host='127.0.0.1', port=int(sys.argv[2])))"


class Memory(threading.Thread):
    """Megabytes of this process and of the server, its children but for `without`, once a second."""

    def __init__(self, without: int = 0) -> None:
        super().__init__(daemon=True)
        self.client: list[float] = []
        self.server: list[float] = []
        self._without, self._ended = without, threading.Event()

    def run(self) -> None:
        """Look until stopped."""
        me = psutil.Process()
        while not self._ended.wait(1):
            self.client.append(me.memory_full_info().pss / 1e6)
            others = [child for child in me.children(recursive=True) if child.pid != self._without]
            self.server.append(sum(child.memory_full_info().pss for child in others) / 1e6)

    def stop(self) -> dict[str, list[int]]:
        """Return the medians of the first and of the last third after SETTLED, and the most."""
        self._ended.set()
        self.join()
        result = {}
        for name, values in (("client_mb", self.client), ("server_mb", self.server)):
            settled = values[SETTLED:] or values or [0.0]
            third = max(1, len(settled) // 3)
            parts = (settled[:third], settled[-third:])
            result[name] = [*(round(statistics.median(part)) for part in parts), round(max(values or [0.0]))]
        return result


def answer_file(film: Path, server: str) -> dict[str, Any]:
    """Return how a file went: whether each frame was answered once and in order, and how fast."""
    memory = Memory()
    memory.start()
    start = time.perf_counter()
    with Client(server) as client, Video(str(film)) as video:
        answers = [
            (frame.number, frame.time, isinstance(answer, Detections))
            for frame, answer in detect_frames(video, client)
        ]
    seconds = time.perf_counter() - start
    times = [at for _, at, _ in answers]
    return {
        "frames": video.decoded,
        "answered": sum(good for *_, good in answers),
        "in_order_once": [number for number, *_ in answers] == list(range(video.decoded)),
        "times": [times[0], times[-1]],
        "times_rise": all(one < other for one, other in itertools.pairwise(times)),
        "seconds": round(seconds, 1),
        "frames_per_second": round(len(answers) / seconds, 2),
        **memory.stop(),
    }


def at_rate(film: Path, target: Path, fps: float, seconds: float) -> None:
    """Copy a film's packets with other times, as often as they are needed."""
    import av

    with av.open(str(target), "w") as copy:
        stream, offset = None, 0
        while offset * (stream.time_base if stream else 0) < seconds:
            with av.open(str(film)) as source:
                given = source.streams.video[0]
                stream = stream or copy.add_stream_from_template(given)
                scale, end = Fraction(given.average_rate) / Fraction(fps), 0
                for packet in source.demux(video=0):
                    if packet.dts is not None:
                        packet.pts, packet.dts = (offset + int(at * scale) for at in (packet.pts, packet.dts))
                        packet.duration = int(packet.duration * scale)
                        end = max(end, packet.pts + packet.duration)
                        packet.stream = stream
                        copy.mux(packet)
                offset = end


@contextmanager
def rtsp(folder: Path, name: str) -> Iterator[tuple[str, int]]:
    """Serve a folder's videos; gives the address of one and the server's process."""
    port = free_ports(1)[0]
    command = [sys.executable, "-c", RTSP, str(folder), str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield f"rtsp://127.0.0.1:{port}/{name}", process.pid
    finally:
        process.kill()
        process.wait()


def answer_live(film: Path, server: str, fps: float, seconds: float, folder: Path) -> dict[str, Any]:
    """Return how a live source of `fps` frames a second went for a while."""
    at_rate(film, folder / "live.mp4", fps, seconds + SETTLED)
    delays: list[float] = []
    numbers: list[int] = []
    with rtsp(folder, "live.mp4") as (address, pid), Client(server, concurrency=LIVE_CONCURRENCY) as client:
        time.sleep(3)
        memory = Memory(without=pid)
        memory.start()
        start = time.monotonic()
        with Video(address) as video:
            for frame, answer in detect_frames(video, client):
                assert isinstance(answer, Detections), answer
                delays.append(time.monotonic() - frame.arrived)
                numbers.append(frame.number)
                if time.monotonic() - start > seconds:
                    break
        spent = time.monotonic() - start
    half = len(delays) // 2
    return {
        "sent_per_second": fps,
        "decoded_per_second": round(video.decoded / spent, 2),
        "answered_per_second": round(len(delays) / spent, 2),
        "decoded": video.decoded,
        "answered": len(delays),
        "dropped": video.dropped,
        "in_order": numbers == sorted(set(numbers)),
        "reconnected": video.reconnected,
        "seconds": round(spent, 1),
        "delay_s": {
            "median": round(statistics.median(delays), 3),
            "most in the first half": round(max(delays[:half]), 3),
            "most in the second half": round(max(delays[half:]), 3),
        },
        **memory.stop(),
    }


def main() -> None:
    """Measure, print, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("film", type=Path)
    parser.add_argument("--seconds", type=float, default=60.0, help="of the live source")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    film = chosen.film / "film.mp4"
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        build(chosen.model, folder / "repository")
        with Server(folder / "repository") as server:
            report: dict[str, Any] = {"file": answer_file(film, server.grpc_url)}
            print(json.dumps(report, indent=2), flush=True)
            fps = round(FACTOR * report["file"]["frames_per_second"])
            report["live"] = answer_live(film, server.grpc_url, fps, chosen.seconds, folder)
    print(json.dumps(report["live"], indent=2))
    if chosen.json:
        write_json(chosen.json, report)


if __name__ == "__main__":
    run(main)
