"""Video files and cameras through any detector, frame by frame, in order.

    with Video("film.mp4", fps=5) as video, VideoWriter(Path("boxes.mp4")) as writer:
        for frame, answer in detect_frames(video, detector):
            print(frame.time, answer)                   # seconds from the start, Detections or an ImageError

PyAV decodes in a thread (`pip install 'retinaserve[video]'`). Of a file no frame is lost: the thread waits when
AHEAD frames are ready. A live source does not wait, so the oldest of them is dropped and counted, and one that
breaks off is connected again. Frames are upright, their colours by the matrix that the stream is tagged with, and
go to the detector as uncompressed BMP.
"""

import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from queue import Empty, Full, Queue
from typing import Any, Self

import numpy as np
from PIL import Image

from retinaserve.plugins.tiles import encode_bmp
from retinaserve.training.detections import Detections, Detector, ImageError
from retinaserve.training.errors import UserError
from retinaserve.training.files import make_place
from retinaserve.training.images.letterbox import Pixels

SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".ts", ".mts", ".mpg", ".mpeg", ".wmv", ".flv"}
)
SCHEMES = ("rtsp://", "rtsps://", "rtmp://", "srt://", "udp://", "http://", "https://")
DEVICES = "/dev/video"
AHEAD = 4  # decoded frames that wait
TIMEOUT = 5.0  # seconds without anything from a live source, after which it is connected again
GIVE_UP = 30.0  # seconds without a connection
BT709, LIMITED = 1, 1  # of H.273 and of ffmpeg: the colours of what is written
TICKS = 90_000  # a second, in what is written
SLACK = 1e-6  # seconds
TICK = 1e-3  # seconds, between frames of a live source whose clock went back


def is_video(source: str) -> bool:
    """Return whether a word means a video: a file by its suffix, a device, or an address."""
    return Path(source).suffix.lower() in SUFFIXES or is_live(source)


def is_live(source: str) -> bool:
    """Return whether a word means a source that does not wait."""
    return source.startswith((*SCHEMES, DEVICES))


@dataclass(frozen=True, eq=False)
class Frame:
    """A frame as it is seen: its number among all that were decoded, and when it is shown."""

    number: int
    time: float  # seconds from the first frame
    pixels: Pixels  # (h, w, 3) RGB
    arrived: float  # time.monotonic() when it was decoded


class Video:
    """The frames of a file or camera, or `fps` of them a second; a context manager around its thread."""

    def __init__(self, source: str, *, fps: float | None = None, live: bool | None = None) -> None:
        """`live` None goes by the address."""
        self.source, self.live = source, is_live(source) if live is None else live
        self.dropped = self.decoded = self.reconnected = 0
        self._fps = fps
        self._shown = -1.0  # when the last frame was
        self._ready: Queue[Frame | Exception | None] = Queue(AHEAD)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="decoder", daemon=True)

    def __enter__(self) -> Self:
        import av  # here, so that a missing package is told of by the caller's thread

        # With any level PyAV takes the GIL for an error of ffmpeg's threads, which it waits for with the GIL held.
        av.logging.set_level(None)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(TIMEOUT + 1)

    def __iter__(self) -> Iterator[Frame]:
        """Yield the frames in order. Raises UserError for what can't be opened, or breaks off for good."""
        while True:
            item = self._ready.get()
            if item is None:
                return
            if isinstance(item, Exception):
                raise item
            yield item

    def _run(self) -> None:
        try:
            self._follow() if self.live else self._decode(0.0)
            self._put(None)
        except Exception as error:
            self._put(error)

    def _follow(self) -> None:
        """Decode a live source, and connect again until that has failed for GIVE_UP seconds."""
        begun = seen = time.monotonic()
        while not self._ended.is_set():
            count = self.decoded
            try:
                self._decode(time.monotonic() - begun)
                problem = UserError(f"{self.source} ended")
            except UserError as error:
                problem = error
            now = time.monotonic()
            if self._ended.is_set():
                return
            if self.decoded > count:
                seen = now
            elif now - seen > GIVE_UP or not self.decoded:
                raise problem
            self.reconnected += 1
            self._ended.wait(0.5)

    def _decode(self, offset: float) -> None:
        """Decode all there is; `offset` is the time of the first frame."""
        import av

        options = {"rtsp_transport": "tcp"} if self.source.startswith("rtsp") else {}
        kind = "v4l2" if self.source.startswith(DEVICES) else None
        try:
            with av.open(
                self.source, format=kind, options=options, timeout=TIMEOUT if self.live else None
            ) as container:
                if not container.streams.video:
                    raise UserError(f"{self.source}: there is no video in it")
                stream = container.streams.video[0]
                stream.thread_type = "SLICE" if self.live else "AUTO"  # frame threads would hold frames back
                start, due = None, -SLACK
                for decoded in container.decode(stream):
                    if self._ended.is_set():
                        return
                    own = decoded.time
                    at = float(self.decoded / (stream.average_rate or 25) if own is None else own)
                    start = at if start is None else start
                    shown = offset + at - start
                    if self.live and shown <= self._shown:  # clocks of cameras jump
                        offset += self._shown - shown + TICK
                        shown = offset + at - start
                    self._shown = shown
                    number, self.decoded = self.decoded, self.decoded + 1
                    if self._fps and at - start < due:
                        continue
                    if self._fps:  # the next of an even row, or after a gap of a new one
                        step = 1 / self._fps
                        due = due + step if at - start < due + step else at - start + step - SLACK
                    self._put(Frame(number, shown, upright(decoded), time.monotonic()))
        except av.error.FFmpegError as error:
            raise UserError(f"{self.source}: the video can't be read: {error.strerror or error}") from None

    def _put(self, item: Frame | Exception | None) -> None:
        while not self._ended.is_set():
            try:
                self._ready.put(item, timeout=0 if self.live and isinstance(item, Frame) else 0.2)
                return
            except Full:
                if self.live and isinstance(item, Frame):
                    try:
                        self._ready.get_nowait()
                        self.dropped += 1
                    except Empty:
                        continue


def upright(frame: Any) -> Pixels:
    """Return a decoded frame as RGB (h, w, 3), turned as its display matrix says; PyAV itself does not turn."""
    pixels = frame.to_ndarray(format="rgb24")
    return np.ascontiguousarray(np.rot90(pixels, frame.rotation // 90)) if frame.rotation else pixels


def detect_frames(video: Video, detector: Detector) -> Iterator[tuple[Frame, Detections | ImageError]]:
    """Yield each frame with its answer, in order; as many are under way as the detector reads ahead."""
    sent: deque[Frame] = deque()

    def encoded() -> Iterator[bytes]:
        for frame in video:
            sent.append(frame)
            yield encode_bmp(frame.pixels)

    for answer in detector.predict_many(encoded()):
        yield sent.popleft(), answer


class VideoWriter:
    """Writes frames as H.264 at the times they are shown; a context manager, whose end completes the file."""

    def __init__(self, path: Path) -> None:
        import av

        make_place(path)
        try:
            self._container = av.open(str(path), "w")
            options = {"crf": "20", "preset": "veryfast"}
            self._stream: Any = self._container.add_stream("libx264", rate=30, options=options)
        except (av.error.FFmpegError, ValueError) as error:
            raise UserError(f"{path} can't be written: {error}", "a name such as out.mp4 is expected") from None
        self._last = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._last >= 0:
            self._container.mux(self._stream.encode())
        self._container.close()

    def write(self, image: Image.Image, at: float) -> None:
        """Write a frame that is shown at `at` seconds; an odd row or column is left out, as H.264 has none."""
        import av

        if self._last < 0:
            self._stream.width, self._stream.height = image.width // 2 * 2, image.height // 2 * 2
            self._stream.pix_fmt = "yuv420p"
            # Players take what is not tagged for BT.709 where it is large, and ffmpeg codes RGB by BT.601.
            for name in ("colorspace", "color_primaries", "color_trc"):
                setattr(self._stream.codec_context, name, BT709)
            self._stream.codec_context.color_range = LIMITED
            self._stream.time_base = self._stream.codec_context.time_base = Fraction(1, TICKS)
        size = (self._stream.width, self._stream.height)
        even = (image.width // 2 * 2, image.height // 2 * 2) == size
        image = image.crop((0, 0, *size)) if even else image.resize(size)
        frame = av.VideoFrame.from_image(image)
        frame = frame.reformat(format="yuv420p", dst_colorspace=BT709, dst_color_range=LIMITED)
        frame.time_base = Fraction(1, TICKS)
        frame.pts = self._last = max(self._last + 1, round(at * TICKS))
        self._container.mux(self._stream.encode(frame))
