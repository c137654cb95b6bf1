"""Videos made here with PyAV, files and live, through a detector that makes no mistakes."""

import json
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from retinaserve import open_detector
from retinaserve.eval.video import Video, VideoWriter, detect_frames, is_live, is_video
from retinaserve.plugins.reference import iou_matrix
from retinaserve.plugins.tiles import encode_bmp
from retinaserve.scripts.server.triton import TritonServer, free_ports
from retinaserve.scripts.shapes.draw import draw_scene
from retinaserve.scripts.shapes.scenes import draw_film
from retinaserve.training.detections import Detections
from retinaserve.training.errors import UserError
from tests.cli import invoke
from tests.eval.test_tiled import Thresholding

av = pytest.importorskip("av", reason="the extra [video] is not installed")
SIZE = (96, 128)


def picture(number: int) -> np.ndarray:
    """Return a grey frame with a dark square that moves by four pixels a frame."""
    pixels = np.full((*SIZE, 3), 230, np.uint8)
    left = 4 * number % 96
    pixels[40:60, left : left + 20] = 10
    return pixels


def film(path: Path, *, frames: int = 20, times: Callable[[int], float] = lambda n: n / 10) -> Path:
    """Write a video whose frames are shown at `times`, in lossless H.264 with B-frames."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"qp": "0", "bf": "2"})
        stream.width, stream.height, stream.pix_fmt = SIZE[1], SIZE[0], "yuv444p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(number), format="rgb24")
            frame.pts, frame.time_base = round(1000 * times(number)), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_every_frame_of_a_file_is_answered_once_in_order(suffix: str, tmp_path: Path) -> None:
    times = [0, 0.1, 0.2, 0.5, 0.6, 1.6, *(2 + n / 25 for n in range(24))]  # a variable rate
    path = film(tmp_path / f"a.{suffix}", frames=30, times=lambda n: times[n])
    with Video(str(path)) as video:
        answers = list(detect_frames(video, Thresholding()))
    assert [frame.number for frame, _ in answers] == list(range(30)) and video.dropped == 0
    assert [frame.time for frame, _ in answers] == pytest.approx(times, abs=2e-3)
    for number, (frame, answer) in enumerate(answers):
        assert np.abs(frame.pixels.astype(int) - picture(number)).max() <= 3
        assert isinstance(answer, Detections) and answer.size == SIZE
        left = 4 * number % 96
        assert answer.boxes.min(axis=0)[:2].tolist() == [left, 40] and answer.boxes.max(axis=0)[2] == left + 20


@pytest.mark.parametrize(("fps", "expected"), [(5, 10), (10, 20), (3, 6), (100, 20), (0.5, 1)])
def test_frames_are_sampled(fps: float, expected: int, tmp_path: Path) -> None:
    with Video(str(film(tmp_path / "a.mp4")), fps=fps) as video:
        frames = list(video)
    gaps = np.diff([frame.time for frame in frames])
    assert len(frames) == expected and (gaps >= 1 / fps - 0.101).all()


def turn(path: Path, matrix: tuple[int, ...]) -> Path:
    """Write a display matrix into the only track of an MP4 (ISO 14496-12, 8.3.2)."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40
    data[at : at + 36] = struct.pack(">9i", *matrix)
    path.write_bytes(data)
    return path


ONE, W = 1 << 16, 1 << 30


@pytest.mark.parametrize(
    ("matrix", "quarters"),
    [
        ((0, ONE, 0, -ONE, 0, 0, 0, 0, W), -1),
        ((-ONE, 0, 0, 0, -ONE, 0, 0, 0, W), 2),
        ((0, -ONE, 0, ONE, 0, 0, 0, 0, W), 1),
    ],
    ids=["clockwise", "upside down", "counterclockwise"],
)
def test_frames_are_upright(matrix: tuple[int, ...], quarters: int, tmp_path: Path) -> None:
    with Video(str(turn(film(tmp_path / "a.mp4", frames=3), matrix))) as video:
        frame = next(iter(video))
    expected = np.rot90(picture(0), quarters)
    assert frame.pixels.shape == expected.shape
    assert np.abs(frame.pixels.astype(int) - expected).max() <= 3


def coded(path: Path, frames: Iterable[Any], *, matrix: int, limits: int) -> Path:
    """Write frames as they are, lossless, with the tags."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"qp": "0"})
        stream.pix_fmt = "yuv420p"
        stream.codec_context.colorspace, stream.codec_context.color_range = matrix, limits
        for number, frame in enumerate(frames):
            if not number:
                stream.width, stream.height = frame.width, frame.height
            frame.colorspace, frame.color_range = matrix, limits
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


# By hand for Y 100, Cb 90, Cr 200. Limited range: L = 1.164 (Y - 16), R = L + 1.793 or 1.596 (Cr - 128),
# G = L - 0.213 or 0.392 (Cb - 128) - 0.533 or 0.813 (Cr - 128), B = L + 2.112 or 2.017 (Cb - 128). Full range:
# R = Y + 1.575 or 1.402 (Cr - 128), and so on. A stream without a tag is taken for BT.601.
@pytest.mark.parametrize(
    ("matrix", "limits", "colour"),
    [
        (1, 1, (227, 67, 18)),
        (5, 1, (213, 54, 21)),
        (2, 0, (213, 54, 21)),
        (1, 2, (213, 73, 29)),
        (5, 2, (201, 62, 33)),
    ],
    ids=["BT.709", "BT.601", "untagged", "BT.709, full range", "BT.601, full range"],
)
def test_colours_go_by_the_tags(matrix: int, limits: int, colour: tuple[int, ...], tmp_path: Path) -> None:
    planes = np.concatenate((np.full((64, 64), 100), np.full((16, 64), 90), np.full((16, 64), 200)))
    frame = av.VideoFrame.from_ndarray(planes.astype(np.uint8), format="yuv420p")
    with Video(str(coded(tmp_path / "a.mp4", [frame], matrix=matrix, limits=limits))) as video:
        (seen,) = video
    assert seen.pixels[30, 30].tolist() == pytest.approx(colour, abs=3)


def test_boxes_do_not_depend_on_how_colours_are_coded(tmp_path: Path) -> None:
    """The same scenes by matrix and range; and BT.709 without its tag, which is read by the wrong matrix."""
    detector = open_detector(Path(__file__).parents[2] / "examples" / "shapes.pth")
    scenes = [draw_scene((320, 240), np.random.default_rng(seed), count=4)[0] for seed in range(4)]
    direct = detector.predict([encode_bmp(np.asarray(scene)) for scene in scenes])
    for matrix, limits, tag in ((5, 1, 5), (1, 1, 1), (1, 2, 1), (5, 2, 5), (1, 1, 2)):
        frames = [
            av.VideoFrame.from_image(scene).reformat(
                format="yuv420p", dst_colorspace=matrix, dst_color_range=limits
            )
            for scene in scenes
        ]
        with Video(str(coded(tmp_path / "a.mp4", frames, matrix=tag, limits=limits))) as video:
            answers = [answer for _, answer in detect_frames(video, detector)]
        overlap = np.concatenate([agreement(one, other) for one, other in zip(direct, answers, strict=True)])
        if tag == matrix:
            assert len(overlap) == 25 and overlap.min() > 0.7 and (overlap > 0.97).sum() >= 24
        else:
            assert overlap.min() > 0.5 and (overlap > 0.97).sum() >= 19


def agreement(one: Detections, other: Any) -> Any:
    """The IoU of each box above 0.3 with the best of its class in the other answer."""
    one = one.above(0.3)
    return (iou_matrix(one.boxes, other.boxes) * (one.classes[:, None] == other.classes)).max(axis=1)


class Slow(Thresholding):
    """Ten frames a second."""

    def predict_many(self, images):  # type: ignore[no-untyped-def]
        for answer in super().predict_many(images):
            time.sleep(0.1)
            yield answer


@pytest.fixture
def camera(tmp_path: Path) -> Iterator[tuple[str, list[int]]]:
    """A server on loopback that sends 20 frames a second, breaks off after 30, and takes the next connection."""
    content = film(tmp_path / "camera.ts", frames=30, times=lambda n: n / 20).read_bytes()
    connections: list[int] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            connections.append(1)
            if len(connections) > 2:
                self.send_error(404)
                return
            self.send_response(200)
            self.end_headers()
            for start in range(0, len(content), len(content) // 30):
                self.wfile.write(content[start : start + len(content) // 30])
                time.sleep(0.05)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/camera.ts", connections
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_camera_drops_the_oldest_and_comes_back(
    camera: tuple[str, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retinaserve.eval.video.GIVE_UP", 0.5)
    url, connections = camera
    seen, delays = [], []
    with Video(url) as video, pytest.raises(UserError, match="the video can't be read"):
        for frame, _ in detect_frames(video, Slow()):
            seen.append(frame)
            delays.append(time.monotonic() - frame.arrived)
    assert len(connections) > 2 and video.reconnected >= 2
    assert video.decoded == 60 and video.dropped > 0 and len(seen) + video.dropped >= 55
    assert [frame.number for frame in seen] == sorted(frame.number for frame in seen)
    assert (np.diff([frame.time for frame in seen]) > 0).all(), "also over the break"
    assert max(delays) < 1.5, "four that wait, at a tenth of a second each, and some slack"


def rtsp_server(folder: Path, port: int) -> "subprocess.Popen[bytes]":
    """Start aio-rtsp-toolkit's server on loopback and wait until it listens."""
    code = "import asyncio, aio_rtsp_toolkit.server as server\n"
    code += f"asyncio.run(server.serve({str(folder)!r}, host='127.0.0.1', port={port}))"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return process
        time.sleep(0.1)
    raise AssertionError("the RTSP server does not listen")


def test_rtsp_over_a_restart_of_its_server(tmp_path: Path) -> None:
    pytest.importorskip("aio_rtsp_toolkit")
    film(tmp_path / "camera.mp4", frames=100)
    port = free_ports(1)[0]
    process = rtsp_server(tmp_path, port)
    seen: list[float] = []
    try:
        with Video(f"rtsp://127.0.0.1:{port}/camera.mp4") as video:
            for frame, answer in detect_frames(video, Thresholding()):
                assert isinstance(answer, Detections) and answer.size == SIZE
                seen.append(frame.time)
                if len(seen) == 10:
                    process.kill()
                    process.wait()
                    process = rtsp_server(tmp_path, port)
                if len(seen) == 20:
                    break
    finally:
        process.kill()
        process.wait()
    assert video.reconnected >= 1 and (np.diff(seen) > 0).all()


def test_leaving_early_ends_the_decoder(tmp_path: Path) -> None:
    """With a level of logging PyAV waits for ever for a thread of ffmpeg that logs, soon in this loop."""
    path, *_ = draw_film(tmp_path, size=(480, 640), seconds=3, fps=25, seed=3)
    for _ in range(12):
        with Video(str(path)) as video:
            next(iter(video))
            time.sleep(0.1)
        assert not video._thread.is_alive()


@pytest.mark.server
def test_predict_takes_a_video(server: TritonServer, tmp_path: Path) -> None:
    path, output = film(tmp_path / "film.mp4"), tmp_path / "drawn" / "boxes.mp4"
    words = ["predict", str(path), "--server", server.grpc_url, "--score", "0", "--fps", "5"]
    result = invoke(*words, "--output", output)
    assert result.exit_code == 0, result.stderr
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["frame"] for line in lines] == list(range(0, 20, 2))
    assert [line["time"] for line in lines] == pytest.approx([n / 5 for n in range(10)], abs=1e-3)
    assert lines[0].keys() == {"frame", "time", "file", "width", "height", "detections"}
    assert "20 frames decoded, 10 answered; from decoded to answered: median" in result.stderr
    tracked = invoke(*words, "--track")
    assert tracked.exit_code == 0, tracked.stderr
    numbered = [json.loads(line) for line in tracked.stdout.splitlines()]
    ids = [[box.pop("track_id") for box in line["detections"]] for line in numbered]
    given = [number for row in ids for number in row if number is not None]
    assert numbered == lines and f"tracks: {max(given, default=0)};" in tracked.stderr
    with Video(str(output)) as drawn:
        frames = list(drawn)
    assert [frame.time for frame in frames] == pytest.approx([n / 5 for n in range(10)], abs=1e-3)
    both, coco, fps, track = [str(path)], ["--format", "coco"], ["--fps", "5"], ["--track"]
    for wrong in (["a.png", *both], [*both, *coco], ["a.png", *fps], ["a.png", *track]):
        result = invoke("predict", *wrong)
        assert result.exit_code == 2 and "video" in result.stderr
    assert invoke("predict", "none.mp4").exit_code == 3


def test_an_odd_size_is_written_and_cut(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "a.mp4") as writer:
        for number in range(3):
            writer.write(Image.new("RGB", (101, 51), (200, 0, 0)), number / 10)
    with Video(str(tmp_path / "a.mp4")) as video:
        frames = list(video)
    assert [frame.pixels.shape for frame in frames] == [(50, 100, 3)] * 3
    assert np.abs(frames[0].pixels[25, 50].astype(int) - (200, 0, 0)).max() <= 4
    with av.open(str(tmp_path / "a.mp4")) as container:
        frame = next(container.decode(video=0))
    assert (frame.colorspace, frame.color_range) == (1, 1), "tagged BT.709, which players take for it"


@pytest.mark.parametrize(
    ("content", "words"), [(b"", "can't be read"), (b"a text\n" * 100, "can't be read"), (None, "No such file")]
)
def test_what_is_no_video(content: bytes | None, words: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "a.mp4").write_bytes(content)
    with Video(str(tmp_path / "a.mp4")) as video, pytest.raises(UserError, match=words):
        list(video)


def test_a_place_that_cannot_be_written() -> None:
    for words in (["film", "/proc/x"], ["mosaic", "/proc/x", "--side", "1000"]):
        result = invoke("data", *words)
        assert result.exit_code == 2 and "/proc/x" in result.stderr and "can't be written" in result.stderr


def test_what_words_mean() -> None:
    assert is_video("a.MP4") and is_video("rtsp://h/a") and is_video("/dev/video0") and not is_video("a.jpg")
    assert is_live("rtsp://h/a.mp4") and not is_live("a.mp4")
