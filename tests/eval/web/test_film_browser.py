"""Videos, a camera and tiles on the page, in a real browser on the real server."""

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from retinaserve.eval.client.client import Client
from retinaserve.eval.web.gateway import Gateway
from retinaserve.scripts.server.triton import TritonServer
from tests.browser import open_browser
from tests.eval.web.web_page import SCORE, assert_drawn, choose, drawn, expected, opened, until, wait_for_boxes
from tests.eval.web.web_server import ask, page_of
from tests.images import checker, encode

pytestmark = pytest.mark.server
av = pytest.importorskip("av", reason="the extra [video] is not installed")
FRAMES, FPS = 12, 10
PICTURES = [checker(320, 240, seed=number) for number in range(FRAMES)]
CAMERA = ("--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with open_browser(*CAMERA) as running:
        yield running


@pytest.fixture(scope="module")
def url(browser: Any, server: TritonServer) -> Iterator[str]:
    with page_of(Gateway(server.grpc_url)) as address:
        yield address


@pytest.fixture
def page(browser: Any, url: str) -> Iterator[Any]:
    with opened(browser, url, permissions=["camera"]) as tab:
        yield tab


def film(path: Path) -> bytes:
    """Twelve checkerboards, no two alike; a name that ends in webm makes VP8, which every Chromium plays."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libvpx", rate=FPS)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 320, 240, "yuv420p", 4_000_000
        for image in PICTURES:
            container.mux(stream.encode(av.VideoFrame.from_image(image)))
        container.mux(stream.encode())
    return path.read_bytes()


def shown(page: Any) -> Image.Image:
    """The pixels of the frame that is on the stage."""
    address = page.evaluate(
        """() => {
          const image = document.getElementById("image");
          const canvas = document.createElement("canvas");
          Object.assign(canvas, {width: image.naturalWidth, height: image.naturalHeight});
          canvas.getContext("2d").drawImage(image, 0, 0);
          return canvas.toDataURL("image/png");
        }"""
    )
    return Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))).convert("RGB")


def number(image: Image.Image) -> int:
    """Which frame of the film it is."""
    off = [np.abs(np.asarray(image).astype(int) - np.asarray(each)).mean() for each in PICTURES]
    assert min(off) < 12, off
    return int(np.argmin(off))


def assert_drawn_alike(page: Any, server: TritonServer) -> None:
    """The page's boxes are those of the frame: but for those at a threshold, as the frame was decoded twice."""
    found, boxes = expected(server, encode(shown(page), "PNG")), [each["box"] for each in drawn(page)]
    near = [np.abs(found.boxes - box).max(axis=1).min() < 3 for box in boxes]
    assert len(boxes) > 5 and np.mean(near) >= 0.8 and abs(len(boxes) - len(found)) <= 0.2 * len(found)


def place(page: Any) -> str:
    return str(page.inner_text("#film-time"))


def test_a_video_frame_by_frame(page: Any, server: TritonServer, tmp_path: Path) -> None:
    choose(page, ("film.webm", film(tmp_path / "film.webm")), kind="video/webm")
    wait_for_boxes(page)
    assert number(shown(page)) == 0 and page.inner_text("#caption-name") == "film.webm"
    for n in range(1, FRAMES):
        page.keyboard.press(".")
        until(lambda n=n: place(page).startswith(f"{n / FPS:.2f} /"), f"frame {n} did not come")
        assert number(shown(page)) == n
    assert_drawn_alike(page, server)
    page.click("#film-back")
    until(lambda: place(page).startswith("1.00 /"), "the frame before did not come")
    assert number(shown(page)) == FRAMES - 2
    page.locator("#film-at").fill("0.35")
    until(lambda: place(page).startswith("0.30 /"), "the scrubber moved nothing")
    assert number(shown(page)) == 3
    assert_drawn_alike(page, server)
    page.click("#film-play")
    until(lambda: place(page).startswith("1.10 /"), "it did not play to its end")
    until(lambda: page.get_attribute("#film-play", "aria-label") == "Play", "it did not stop")
    page.keyboard.press("Delete")
    assert page.locator("#film").is_hidden() and page.locator("#empty").is_visible()


def test_a_camera(page: Any) -> None:
    page.click("#camera")
    until(lambda: place(page).endswith(("of 4", "of 5", "of 6")), "no frames came")
    page.keyboard.press(" ")
    until(lambda: page.get_attribute("#film-play", "aria-label") == "Play", "it did not stop")
    last, newest = place(page), np.asarray(shown(page))
    page.locator("#film-at").fill("0")
    until(lambda: place(page).startswith("1 of"), "the scrubber moved nothing")
    assert np.abs(np.asarray(shown(page)).astype(int) - newest).max() > 50, "another frame"
    page.keyboard.press(".")
    until(lambda: place(page).startswith("2 of"), "no next frame")
    page.keyboard.press(" ")
    until(lambda: int(place(page).split()[0]) > int(last.split()[0]), "it did not go on")


def test_a_file_that_the_browser_cannot_read(page: Any) -> None:
    choose(page, ("film.mkv", b"no video" * 100), kind="video/x-matroska")
    until(lambda: "film.mkv: this browser can't read the video" in page.inner_text("#banner"), "nothing said so")


def test_tiles_on_the_page(page: Any, server: TritonServer) -> None:
    image = encode(checker(600, 400), "PNG")
    choose(page, ("wide.png", image), kind="image/png")
    wait_for_boxes(page)
    whole = drawn(page)
    page.select_option("#tile", "512")
    until(lambda: drawn(page) != whole, "the image was not asked for again")
    with Client(server.grpc_url) as client:
        (tiles,) = client.predict([image], tile=(512, 512))
    until(lambda: len(drawn(page)) == len(tiles.above(SCORE)), "not the tiles' boxes")
    assert_drawn(page, tiles.above(SCORE))


def test_tiles_over_http(url: str, server: TritonServer) -> None:
    """Also an image that the server itself would refuse for its bytes."""
    image = encode(checker(3600, 3200), "TIFF")
    reply = ask(url, "/api/detect", image)
    assert reply.status == 413, "larger than 32 MiB"
    reply = ask(url, "/api/detect?tile=1024", image)
    with Client(server.grpc_url) as client:
        (found,) = client.predict([image], tile=(1024, 1024))
    assert reply.status == 200 and len(reply.json["detections"]) == len(found) > 0
    assert (reply.json["height"], reply.json["width"]) == found.size and reply.json["timing"] is None
    with Image.open(io.BytesIO(ask(url, "/api/preview?tile=1024", image).body)) as preview:
        assert preview.size == (2560, 2276)
    assert "neither auto nor a side" in ask(url, "/api/detect?tile=x", image).json["message"]
    assert "too small" in ask(url, "/api/detect?tile=8", image).json["message"]
    assert ask(url, "/api/detect?tile=auto", b"no image").status == 400
